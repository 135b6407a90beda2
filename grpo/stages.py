"""Running the stages of a config file: resuming, stopping on request, and what is printed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from grpo.checkpoint import Checkpoints
from grpo.folder import HARMLESS, RunFolder
from grpo.jobs.driver import takes_stop_request
from grpo.learner_config import check_optimizer
from grpo.learner_group import LearnerLost
from grpo.plan import MACHINE_SETTINGS, Stage
from grpo.prepare import check_references
from grpo.run import Run, is_complete, open_run
from grpo.state import RunState
from grpo.trackers.progress import curve
from grpo.trackers.tensorboard_tracker import check_tensorboard
from grpo.tracking import read_metrics
from grpo.train import train
from rollout.tasks import load_tasks
from sandbox.errors import SystemFault, UserError

logger = logging.getLogger(__name__)

REPORT_S = 300.0  # in which a report is written, or given up

MAX_LEARNER_LOSSES = 3  # in a row, from one checkpoint


class DiskFull(SystemFault):
    """Nothing more can be written to the run folder; what stands there is whole."""


class Interrupted(Exception):
    """The person asked to stop; what was learnt is in the newest checkpoint."""


def run_stages(
    stages: Sequence[Stage],
    *,
    fresh: bool,
    overwrite: bool,
    allow_changes: bool,
    console: Console,
    command: Sequence[str] = (),
) -> None:
    """Train each stage that is not done yet, and print what came of the last one. `fresh` concerns the last stage only.

    `command` are the words that go on with it, written down for `grpo resume`.
    """
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
                if is_last and command:
                    stage.folder.record_command(command)
                try:
                    state = outliving_learners(stage, console)
                except OSError as error:
                    raise_when_full(stage, error)
                    raise
                write_report(stage)
            else:
                say(f"{stage.title}: done already, step {state.step} of {stage.config.steps}; --fresh --overwrite starts over")
            if is_last:
                say(reward_curve(stage))
                if stage.folder.report.exists():
                    say(f"the whole of it: {stage.folder.report}")
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


def raise_when_full(stage: Stage, error: OSError) -> None:
    """Raise DiskFull when that is what the error says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        newest = Checkpoints(stage.folder.checkpoints, keep=1).latest()
        saved = "There is no checkpoint yet" if newest is None else f"The newest checkpoint, of step {newest.step}, is whole"
        raise DiskFull(
            f"{stage.folder.path}: no space is left to write to ({shutil.disk_usage(stage.folder.path).free >> 20} MiB are free). "
            f"{saved}. Make room, and start the run again to resume."
        ) from error


def outliving_learners(stage: Stage, console: Console) -> RunState:
    """Run a stage. When its learner dies, all parts are started again from the newest checkpoint.

    Raises LearnerLost when MAX_LEARNER_LOSSES of them died without a new checkpoint between.
    """
    checkpoints = Checkpoints(stage.folder.checkpoints, keep=1)
    num_losses, before = 0, -1
    while True:
        try:
            return asyncio.run(run_stage(stage, console))
        except LearnerLost as loss:
            step = (checkpoints.latest() or RunState()).step
            num_losses, before = num_losses + 1 if step == before else 1, step
            if num_losses == MAX_LEARNER_LOSSES:
                raise
            say = functools.partial(console.print, style="yellow", highlight=False, markup=False, soft_wrap=True)
            say(f"{stage.title}: {loss} Starting again from step {step}.")


async def run_stage(stage: Stage, console: Console) -> RunState:
    """One stage from where it stands to its end, with its model exported. Raises Interrupted when stopped on request."""
    started = time.perf_counter()
    if stage.config.tracking.tensorboard:
        check_tensorboard()
    check_optimizer(stage.config.learner)
    task_set = load_tasks(stage.config.tasks)
    await check_references(stage.config, task_set)
    console.print(
        f"{stage.title}: {len(task_set.train)} training tasks, {len(task_set.held_out)} held out; starting Ray and the workers, "
        f"logs in {stage.folder.logs}",
        highlight=False,
        soft_wrap=True,
    )
    with stop_on_request(stage.folder, console) as stopper:
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
                await run.save(state)
            await export_model(run)
    return state


def write_report(stage: Stage) -> None:
    """report.html of a run that ended, by a process of its own: whatever goes wrong there, the run has ended well."""
    command = [sys.executable, "-m", "grpo.cli", "report", str(stage.folder.path)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=REPORT_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        logger.warning("no report was written: %s. `grpo report %s` tries again.", said, stage.folder.path)


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
    """Turns signals into a request to stop: the first lets the step end and saves a checkpoint, the second ends at once.

    So does a request in the run folder, which reaches a job on another machine and kills nothing, however long the step.
    """

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

    async def look_for_request(self, folder: RunFolder, *, every_s: float = 0.5) -> None:
        """Look again and again, until cancelled."""
        while True:
            if takes_stop_request(folder.path) and not (self.run is not None and self.run.stop_requested):
                self()
            await asyncio.sleep(every_s)


@contextlib.contextmanager
def stop_on_request(folder: RunFolder, console: Console) -> Iterator[_Stopper]:
    loop, stopper = asyncio.get_running_loop(), _Stopper(console)
    looking = loop.create_task(stopper.look_for_request(folder))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopper)
    try:
        yield stopper
    except asyncio.CancelledError:
        raise Interrupted("stopped before the step was done") from None
    finally:
        looking.cancel()
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
