"""The stages of a config file: it, and what it starts from. Running them is in stages.py, which imports what trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.config import ConfigError, RunConfig, load_config
from grpo.folder import RunFolder

# Overrides that say where a run happens, not what it learns: they hold for the stages before it too.
MACHINE_SETTINGS = ("engine.", "device", "ray_address", "placement", "tracking.")


@dataclass(frozen=True)
class Stage:
    """One config with the folder its run lives in."""

    config: RunConfig
    folder: RunFolder
    path: Path

    @property
    def title(self) -> str:
        return self.folder.path.name


def plan(path: Path, overrides: Sequence[str], run_dir: Path | None, *, seen: tuple[Path, ...] = ()) -> list[Stage]:
    """The stages of a config file in the order they run: those it starts from first.

    A stage's run lives in runs/NAME, after its file. `run_dir` is another place for the last one; the others lie beside it.
    """
    if path.resolve() in seen:
        raise ConfigError(f"{path}: model.start_from leads back to this file. The first stage starts from a model.path alone.")
    config = load_config(path, overrides)
    place = run_dir or Path("runs") / path.stem
    if config.model.start_from is None:
        return [Stage(config, RunFolder(place), path)]
    before = path.parent / config.model.start_from
    inherited = [override for override in overrides if override.startswith(MACHINE_SETTINGS)]
    earlier = plan(before, inherited, place.parent / before.stem, seen=(*seen, path.resolve()))
    model = config.model.model_copy(update={"path": str(earlier[-1].folder.model)})
    return [*earlier, Stage(config.model_copy(update={"model": model}), RunFolder(place), path)]
