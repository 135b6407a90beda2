"""What a run wrote into its folder, as the report and the watch need it. Everything but the folder itself may be missing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from grpo.folder import RunFolder
from grpo.tracking import read_metrics
from sandbox.errors import UserError

MAX_NAMED = 8


@dataclass(frozen=True)
class RecordedRun:
    """One run as it stands in its folder. `steps` has the metrics of each step in order, those of its evaluation among them."""

    folder: RunFolder
    name: str
    is_training: bool
    record: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config by dotted names; empty when config.json cannot be read."""
        return self.record.get("config", {})

    @property
    def last_step(self) -> int:
        return max(self.steps, default=0)

    @property
    def total_steps(self) -> int | None:
        """How many steps the config asks for; None when that is unknown."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def is_done(self) -> bool:
        """Whether it reached its last step, or the accuracy to stop at."""
        if self.total_steps is not None and self.last_step >= self.total_steps:
            return True
        stop_at, accuracies = self.config.get("evaluation.stop_at"), self.series("eval/sampled_accuracy")
        return isinstance(stop_at, int | float) and bool(accuracies) and accuracies[-1][1] >= stop_at

    @property
    def status(self) -> str:
        """Such as `training, step 12 of 100`."""
        where = f"step {self.last_step}" + (f" of {self.total_steps}" if self.total_steps is not None else "")
        if self.is_done:
            return f"done, {where}"
        return f"training, {where}" if self.is_training else f"stopped at {where}"

    @cached_property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric that was logged, in the order of first sight."""
        return tuple(dict.fromkeys(name for metrics in self.steps.values() for name in metrics))

    @cached_property
    def rollout_files(self) -> list[Path]:
        """One for each stored step, in order of the steps."""
        return sorted(self.folder.rollouts.glob("step-*.parquet"), key=lambda path: (len(path.name), path.name))

    def series(self, metric: str) -> list[tuple[int, float]]:
        """A metric's values with their steps."""
        return [(step, metrics[metric]) for step, metrics in self.steps.items() if metric in metrics]


def read_run(path: Path) -> RecordedRun:
    """The run in a folder. Raises UserError when there is no run."""
    folder = RunFolder(path)
    if not path.is_dir():
        what = "this is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{path}: {what}. Give the folder of a run, such as runs/quickstart{_runs_near(path)}.")
    if not folder.holds_a_run and not folder.metrics.is_file() and not any(folder.rollouts.glob("step-*.parquet")):
        raise UserError(
            f"{path}: holds no run: neither config.json nor metrics.jsonl nor rollouts. Give the folder that `grpo train` made"
            f"{_runs_near(path)}."
        )
    record, problem = _read_record(path / "config.json")
    return RecordedRun(
        folder=folder,
        name=path.resolve().name,
        is_training=folder.is_in_use,
        record=record,
        steps=by_step(read_metrics(folder.metrics)),
        problems=(problem,) if problem else (),
    )


def by_step(lines: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl as one set of finite numbers for each step, in order of the steps."""
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        numbers = {name: value for name, value in line.items() if name != "step" and _is_number(value)}
        steps.setdefault(line["step"], {}).update(numbers)
    return dict(sorted(steps.items()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_record(path: Path) -> tuple[dict[str, Any], str]:
    """What config.json says, and what is wrong with it when something is."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["config"], dict):
            return record, ""
    except FileNotFoundError:
        return {}, f"{path.name} is not there, so the config is unknown."
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"{path.name} cannot be read ({type(error).__name__}: {error}), so the config is unknown."
    return {}, f"{path.name} holds no table of the config, so the config is unknown."


def _runs_near(path: Path) -> str:
    """What could have been meant: runs beside the path, and in runs/."""
    near = {run.parent for place in (path.parent, path, Path("runs")) for run in sorted(place.glob("*/config.json"))}
    named = ", ".join(str(run) for run in sorted(near)[:MAX_NAMED])
    return f"; there are {named}" if named else ""
