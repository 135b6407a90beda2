"""Checkpoints: folders that are either whole or not there.

A checkpoint is written beside its place, flushed to disk, marked complete last and renamed; a crash or a full disk at any moment leaves
the ones before it as they were.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from grpo.state import RunState
from rollout.snapshot import file_fingerprint
from rollout.tasks import TaskStream
from sandbox.errors import SystemFault

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"  # holds the xxh3-128 of every other file; written last
STATE = "state.json"


class CheckpointFailed(SystemFault):
    """A checkpoint could not be written. The ones before it are untouched."""


class Persistent(Protocol):
    """What a checkpoint asks of the learner."""

    async def save(self, folder: str) -> None: ...
    async def restore(self, folder: str) -> None: ...


class Checkpoints:
    """The checkpoints of one run: `step-000120/` folders under `folder`. Keeps the newest `keep` and the best."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    async def restore(self, learner: Persistent, tasks: TaskStream) -> RunState:
        """The newest whole checkpoint, loaded into the learner and the task stream; a state at step 0 when there is none."""
        for path in reversed(self.paths()):
            problem = find_problem(path)
            if problem is not None:
                logger.warning("%s is skipped: %s. Using the checkpoint before it.", path, problem)
                continue
            state = read_state(path)
            await learner.restore(str(path))
            tasks.rewind(state.cursor)
            logger.info("resuming from %s", path)
            return state
        return RunState()

    def latest(self) -> RunState | None:
        """The state of the newest whole checkpoint, without loading anything else."""
        return next((read_state(path) for path in reversed(self.paths()) if find_problem(path) is None), None)

    async def save(self, state: RunState, learner: Persistent) -> Path:
        """Write a checkpoint of this state. Raises CheckpointFailed when the disk is full or cannot be written."""
        place = self._folder / f"step-{state.step:06d}"
        beside = self._folder / f".{place.name}.{os.getpid()}.partial"
        try:
            beside.mkdir(parents=True)
            await learner.save(str(beside))
            (beside / STATE).write_text(state.model_dump_json(indent=1))
            _mark_complete(beside)
            if place.exists():
                shutil.rmtree(place)
            beside.rename(place)
            _flush(self._folder)
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            # torch and safetensors report a full disk as errors of their own.
            if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
                kept = self.paths()
                raise CheckpointFailed(
                    f"{place}: the checkpoint could not be written: {error}. {shutil.disk_usage(self._folder).free >> 20} MiB are free. "
                    f"The newest whole checkpoint is {kept[-1] if kept else 'none'}; free some space and start the run again to resume."
                ) from error
            raise
        self._prune(state)
        return place

    def paths(self) -> list[Path]:
        """Checkpoint folders, oldest first, whole or not."""
        return sorted(self._folder.glob("step-*")) if self._folder.is_dir() else []

    def sweep(self) -> None:
        """Remove what interrupted writes left beside the checkpoints."""
        for partial in self._folder.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def _prune(self, state: RunState) -> None:
        paths = self.paths()
        accuracy = {f"step-{e.step:06d}": (e.sampled_accuracy, e.step) for e in state.evaluations}
        best = max((path for path in paths if path.name in accuracy), key=lambda path: accuracy[path.name], default=None)
        for path in paths[: -self._keep]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)


def find_problem(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when it is whole."""
    try:
        digests = dict(line.rsplit(" ", 1) for line in (path / COMPLETE).read_text().splitlines())
    except OSError:
        return "it was never finished"
    except (UnicodeDecodeError, ValueError):
        return f"its file {COMPLETE} is damaged"
    for name, digest in digests.items():
        if not (path / name).is_file() or file_fingerprint(path / name) != digest:
            return f"its file {name} is missing or damaged"
    try:
        read_state(path)
    except (OSError, ValidationError):
        return f"its file {STATE} is damaged"
    return None


def read_state(path: Path) -> RunState:
    return RunState.model_validate_json((path / STATE).read_text())


def _mark_complete(folder: Path) -> None:
    """Flush every file, then write the mark that says so, then flush the folder."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        _flush(file)
    mark = folder / COMPLETE
    mark.write_text("\n".join(f"{file.name} {file_fingerprint(file)}" for file in files))
    _flush(mark)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
