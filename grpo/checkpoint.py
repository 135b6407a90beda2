"""Checkpoints: folders that are either whole or not there.

A checkpoint is written beside its place, flushed to disk, marked complete last and renamed; a crash or a full disk at any moment
leaves the ones before it as they were.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from grpo.config import RunConfig
from grpo.state import RunState
from rollout.judged import Judged, from_json, to_json
from rollout.snapshot import file_fingerprint
from rollout.tasks import TaskStream
from sandbox.errors import SystemFault

logger = logging.getLogger(__name__)

COMPLETE = "COMPLETE"  # names every other file with its xxh3-128; written last
STATE = "state.json"
GROUPS = "groups.json"  # finished groups that were not learnt from yet, where there are any
NAME = re.compile(r"step-\d+")


def checkpoints_per_weights(config: RunConfig) -> float:
    """About how many bytes the checkpoints of a run take together, for each byte of its model's files.

    Beside those that are kept there may be the best one, and one that is being written.
    """
    moments = 1.1 if config.learner.optimizer == "adamw_8bit" else 4.0  # for each weight two in float32, or in 8 bits
    share = 0.05 if config.model.lora.rank else 2.0 + moments  # and weights in float32, of weights stored in 16 bits
    return (config.checkpoints.keep + 2) * share


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
        self.collected: dict[int, Judged] = {}  # finished groups of the checkpoint that was restored

    async def restore(self, learner: Persistent, tasks: TaskStream) -> RunState:
        """The newest whole checkpoint, loaded into the learner and the task stream; a state at step 0 when there is none."""
        paths = self.paths()
        for path in reversed(paths):
            problem = find_problem(path)
            if problem is None:
                state = read_state(path)
                await learner.restore(str(path.resolve()))
                tasks.rewind(state.cursor)
                self.collected = from_json((path / GROUPS).read_text()) if (path / GROUPS).exists() else {}
                logger.info("resuming from %s", path)
                return state
            logger.warning("%s is skipped: %s. The checkpoint before it is used.", path, problem)
        if paths:
            logger.warning("no checkpoint in %s is whole: starting from step 0", self._folder)
        return RunState()

    def latest(self) -> RunState | None:
        """The state of the newest whole checkpoint, without loading anything else; None when there is none."""
        return next((read_state(path) for path in reversed(self.paths()) if find_problem(path) is None), None)

    async def save(self, state: RunState, learner: Persistent, *, collected: Mapping[int, Judged] | None = None) -> Path:
        """Write a checkpoint of this state, with the groups that were collected and not learnt from.

        Raises CheckpointFailed when the disk is full or cannot be written.
        """
        place = self._folder / f"step-{state.step:06d}"
        beside = self._folder / f".{place.name}.{os.getpid()}.partial"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            await learner.save(str(beside.resolve()))
            (beside / STATE).write_text(state.model_dump_json(indent=1))
            if collected:
                (beside / GROUPS).write_text(to_json(collected))
            # Gigabytes are read and flushed: off the event loop, where rollouts may be going on.
            await asyncio.to_thread(_mark_complete, beside)
            if place.exists():  # damaged, or it would have been resumed from
                shutil.rmtree(place)
            beside.rename(place)
            _flush(self._folder)
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            # torch and safetensors report a full disk as errors of their own.
            if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
                raise CheckpointFailed(self._failure(place, error)) from error
            raise
        self._prune(state)
        return place

    def _failure(self, place: Path, error: BaseException) -> str:
        kept = self.paths()
        existing = next(folder for folder in (self._folder, *self._folder.resolve().parents) if folder.exists())
        return (
            f"{place}: the checkpoint could not be written: {error}. {shutil.disk_usage(existing).free >> 20} MiB are free. "
            f"The checkpoint before it is {kept[-1] if kept else 'none'}. Make room, and start the run again to resume from there."
        )

    def paths(self) -> list[Path]:
        """Checkpoint folders, oldest first, whole or not."""
        return sorted((path for path in self._folder.glob("step-*") if NAME.fullmatch(path.name)), key=_step)

    def sweep(self) -> None:
        """Remove what interrupted writes left beside the checkpoints."""
        for partial in self._folder.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def _prune(self, state: RunState) -> None:
        """Remove all but the newest `keep` and the best. Those of later steps are damaged, or they would have been resumed from."""
        accuracy = {evaluation.step: evaluation.sampled_accuracy for evaluation in state.evaluations}
        later = [path for path in self.paths() if _step(path) > state.step]
        paths = [path for path in self.paths() if _step(path) <= state.step]
        evaluated = [path for path in paths if _step(path) in accuracy]
        best = max(evaluated, key=lambda path: (accuracy[_step(path)], _step(path)), default=None)
        for path in (*later, *paths[: -self._keep]):
            if path != best:
                shutil.rmtree(path, ignore_errors=True)


def find_problem(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when it is whole: its mark names every file, with the digest it has."""
    try:
        digests = dict(line.rsplit(" ", 1) for line in (path / COMPLETE).read_text().splitlines())
    except OSError:
        return "it was never finished"
    except ValueError:
        return f"its file {COMPLETE} is damaged"
    if STATE not in digests or {str(file.relative_to(path)) for file in files_in(path)} - {COMPLETE} - digests.keys():
        return f"its file {COMPLETE} is damaged"
    for name, digest in digests.items():
        try:
            if file_fingerprint(path / name) != digest:
                return f"its file {name} is damaged"
        except OSError as error:
            return f"its file {name} cannot be read ({error.strerror})"
    try:
        read_state(path)
    except ValidationError:
        return f"its file {STATE} is not one that this version reads"
    return None


def read_state(path: Path) -> RunState:
    return RunState.model_validate_json((path / STATE).read_text())


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def files_in(folder: Path) -> list[Path]:
    """Those in the folders within, too."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _mark_complete(folder: Path) -> None:
    """Flush every file, then write the mark that says so, then flush the folder."""
    files = files_in(folder)
    for path in (*files, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush(path)
    mark = folder / COMPLETE
    mark.write_text("\n".join(f"{file.relative_to(folder)} {file_fingerprint(file)}" for file in files))
    _flush(mark)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
