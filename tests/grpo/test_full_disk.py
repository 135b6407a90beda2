"""A disk that is full, and a clock that is set: a run loses no checkpoint, says what is wrong, and goes on when it is mended."""

from __future__ import annotations

import errno
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from grpo.checkpoint import CheckpointFailed, Checkpoints, find_problem
from grpo.config import CheckpointConfig
from grpo.folder import RunFolder
from grpo.plan import Stage
from grpo.stages import DiskFull, raise_when_full
from grpo.tracking import read_metrics
from tests.fakes import FakeLearner
from tests.grpo.fake_runs import config, curve, make_run, trained


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system may not be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the room there is."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with pytest.raises(OSError, match="No space left"):
                deque(map(file.write, repeat(b"x" * size)))
    return filler


class Filling(FakeLearner):
    """The disk is full once it has made so many updates. `holds` is written with every checkpoint."""

    def __init__(self, disk: Path, *, at: int) -> None:
        super().__init__()
        self._disk, self._at, self._updates = disk, at, 0

    async def update(self, examples: Any) -> Any:
        self._updates += 1
        if self._updates == self._at:
            fill(self._disk)
        return await super().update(examples)


@pytest.mark.parametrize("at", [3, 4], ids=["between checkpoints", "before a checkpoint"])
async def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path, at: int):
    settings = config(checkpoints=CheckpointConfig(every=2, keep=9))
    steady = await trained(make_run(tmp_path / "steady", FakeLearner(), settings))

    run = make_run(small_disk / "run", Filling(small_disk, at=at), settings)
    with pytest.raises((CheckpointFailed, OSError)) as caught:
        await trained(run)
    checkpoints = Checkpoints(small_disk / "run" / "checkpoints", keep=9)
    assert [path.name for path in checkpoints.paths()] == ["step-000002"]
    assert find_problem(checkpoints.paths()[0]) is None
    if isinstance(caught.value, OSError):
        with pytest.raises(DiskFull, match=r"no space is left .* \(0 MiB are free\)\. The newest checkpoint, of step 2, is"):
            raise_when_full(Stage(settings, RunFolder(small_disk / "run"), Path("x.toml")), caught.value)

    (small_disk / "filler").unlink()
    checkpoints.sweep()
    resumed = await trained(make_run(small_disk / "run", FakeLearner(), settings))
    assert resumed.step == steady.step
    assert curve(small_disk / "run") == curve(tmp_path / "steady")


def test_another_error_stays_what_it_is(tmp_path: Path):
    raise_when_full(Stage(config(), RunFolder(tmp_path), Path("x.toml")), OSError(errno.EIO, "Input/output error"))


async def test_a_clock_that_jumps_changes_no_duration_and_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steady = await trained(make_run(tmp_path / "steady", FakeLearner(), config()))
    now, jumps = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now() + (-1) ** next(jumps) * 1e7)
    state = await trained(make_run(tmp_path / "jumping", FakeLearner(), config()))
    assert curve(tmp_path / "jumping") == curve(tmp_path / "steady")
    assert 0 <= state.elapsed_s < 60
    assert steady.cursor == state.cursor
    lines = read_metrics(tmp_path / "jumping" / "metrics.jsonl")
    durations = [value for line in lines for name, value in line.items() if name.startswith("time/")]
    assert durations
    assert all(0 <= seconds < 60 for seconds in durations)
