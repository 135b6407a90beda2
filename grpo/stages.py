"""Running a config file: the stages it starts from, resuming, stopping on request, and what is printed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from grpo.checkpoint import Checkpoints
from grpo.config import ConfigError, RunConfig, load_config
from grpo.folder import HARMLESS, RunFolder
from grpo.prepare import check_references
from grpo.progress import curve
from grpo.run import Run, is_complete, open_run
from grpo.state import RunState
from grpo.tracking import read_metrics
from grpo.train import train
from rollout.tasks import load_tasks
from sandbox.errors import UserError

# Overrides that say where a run happens, not what it learns: they hold for the stages before it too.
MACHINE_SETTINGS = ("engine.", "device", "ray_address", "tracking.")


class Interrupted(Exception):
    """The person asked to stop; what was learnt is in the newest checkpoint."""


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


def run_stages(stages: Sequence[Stage], *, fresh: bool, overwrite: bool, allow_changes: bool, console: Console) -> None:
    """Train each stage that is not done yet, and print what came of the last one. `fresh` concerns the last stage only."""
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for stage in stages:
        is_last = stage is stages[-1]
        stage.folder.acquire()
        try:
            if fresh and is_last:
                clear_folder(stage.folder, overwrite=overwrite)
            state = finished_state(stage)
            # A finished stage that another starts from may have been sampled by another engine: its model is what counts.
            harmless = HARMLESS if is_last or state is None else HARMLESS + MACHINE_SETTINGS
            # A run that failed before its first checkpoint left nothing that another config could be mixed with.
            changes = []
            if Checkpoints(stage.folder.checkpoints, keep=1).paths():
                changes = stage.folder.check_config(stage.config, allow_changes=allow_changes, harmless=harmless)
            if state is None:
                for change in changes:
                    say(f"{stage.title}: resumed with {change}")
                stage.folder.record(stage.config)
                state = asyncio.run(run_stage(stage, console))
            else:
                say(f"{stage.title}: done already, step {state.step} of {stage.config.steps}; --fresh --overwrite starts over")
            if is_last:
                say(reward_curve(stage))
            say(summary_line(stage, state))
        finally:
            stage.folder.release()


def finished_state(stage: Stage) -> RunState | None:
    """The state of a run that has nothing left to do, None when there is something."""
    state = Checkpoints(stage.folder.checkpoints, keep=1).latest()
    is_done = state is not None and is_complete(stage.config, state) and stage.folder.model.is_dir()
    return state if is_done else None


def clear_folder(folder: RunFolder, *, overwrite: bool) -> None:
    """Make room for a new run. Raises UserError when that would delete one without being told to."""
    if not folder.holds_a_run:
        return
    if not overwrite:
        raise UserError(
            f"{folder.path} holds a run already. Add --overwrite to delete it and start over, leave --fresh out "
            "to resume it, or use another --run-dir."
        )
    folder.clear()


async def run_stage(stage: Stage, console: Console) -> RunState:
    """One stage from where it stands to its end, with its model exported. Raises Interrupted when stopped on request."""
    started = time.perf_counter()
    task_set = load_tasks(stage.config.tasks)
    await check_references(stage.config, task_set)
    console.print(
        f"{stage.title}: {len(task_set.train)} training tasks, {len(task_set.held_out)} held out; starting Ray and the workers, "
        f"logs in {stage.folder.logs}",
        highlight=False,
        soft_wrap=True,
    )
    with stop_on_signals(console) as stopper:
        async with open_run(stage.config, stage.folder, task_set=task_set, console=console, title=stage.title) as run:
            run.started = started
            run.checkpoints.sweep()
            stopper.run = run
            try:
                state = await train(run)
            finally:
                run.tracker.close()
            if run.stop_requested and not is_complete(stage.config, state):
                raise Interrupted(f"stopped at step {state.step} of {stage.config.steps}")
            if not run.checkpoints.paths():  # it had reached its accuracy before the first step
                await run.checkpoints.save(state, run.learner)
            await export_model(run)
    return state


async def export_model(run: Run) -> None:
    """The final model in Hugging Face form; the folder appears when it is whole."""
    place = run.folder.model
    beside = place.with_name(".model.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    await run.learner.export(str(beside.resolve()))
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)


class _Stopper:
    """Turns signals into a request to stop: the first lets the step end and saves a checkpoint, the second ends at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._main = asyncio.current_task()
        self.run: Run | None = None

    def __call__(self) -> None:
        if self.run is None or self.run.stop_requested:
            if self._main is not None:
                self._main.cancel()
            return
        self.run.request_stop()
        self._console.print("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")


@contextlib.contextmanager
def stop_on_signals(console: Console) -> Iterator[_Stopper]:
    loop, stopper = asyncio.get_running_loop(), _Stopper(console)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopper)
    try:
        yield stopper
    except asyncio.CancelledError:
        raise Interrupted("stopped before the step was done") from None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def reward_curve(stage: Stage) -> str:
    """The reward over the steps; the loss where no rewards vary."""
    name, title = ("reward/mean", "mean reward") if stage.config.is_live else ("loss/value", "loss")
    lines = [line for line in read_metrics(stage.folder.metrics) if name in line]
    return curve([line[name] for line in lines], title=title, first_step=lines[0]["step"]) if lines else ""


def summary_line(stage: Stage, state: RunState) -> str:
    """`held-out accuracy (T=1): 0.51 -> 0.86 | greedy 0.55 -> 0.90 | 240 s | runs/quickstart`"""
    first, last = state.evaluations[0], state.evaluations[-1]
    temperature = f"{stage.config.sampling.temperature:g}"
    return (
        f"held-out accuracy (T={temperature}): {first.sampled_accuracy:.2f} -> {last.sampled_accuracy:.2f} | greedy "
        f"{first.greedy_accuracy:.2f} -> {last.greedy_accuracy:.2f} | {state.elapsed_s:.0f} s | {stage.folder.path}"
    )
