"""Deadlines: what hangs is named, restarted where that helps, and ends the run where it does not."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from grpo import watchdog as watchdog_module
from grpo.watchdog import PhaseOverdue, Watchdog, Watched


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watchdog(folder: Path, clock: Clock, told: list[tuple[str, str]] | None = None) -> Watchdog:
    tell = (lambda title, text: None) if told is None else lambda title, text: told.append((title, text))
    return Watchdog(deadline_s=10, folder=folder / "stalls", tell=tell, clock=clock)


def test_the_first_of_a_kind_gets_twice_as_long_and_ten_times_the_longest_is_no_hang(tmp_path: Path):
    clock, killed = Clock(), []
    dog = watchdog(tmp_path, clock)

    def takes(seconds: float) -> bool:
        """Whether a call of so many seconds is given up."""
        killed.clear()
        with dog.waiting("sample", part="worker-0", restart=lambda: killed.append(1)):
            clock.now += seconds
            dog.check()
        return bool(killed)

    assert takes(20.5)  # 2 x 10
    assert not takes(2)
    assert takes(20.1)  # the longest that came back took 2
    assert not takes(9)
    assert not takes(89)
    assert takes(891)
    assert not takes(889)


def test_a_hung_part_is_named_with_its_task_and_restarted_once_and_the_stacks_are_kept(tmp_path: Path):
    clock, told, killed = Clock(), [], []
    dog = watchdog(tmp_path, clock, told)
    with dog.waiting("sample"), dog.waiting("sample", part="worker-1", about="task t7", restart=lambda: killed.append(1)):
        clock.now += 21
        dog.check()
        dog.check()
    assert killed == [1]
    (stacks,) = (tmp_path / "stalls").iterdir()
    assert told == [
        (
            "worker-1 is restarted",
            "sample of task t7 on worker-1 has taken 21 s and may take 20 s: worker-1 is restarted. The stacks of all processes "
            f"are in {stacks}.",
        )
    ]
    text = stacks.read_text()
    assert "21.0 s  sample of task t7 on worker-1" in text
    assert "test_a_hung_part_is_named_with_its_task" in text


def test_a_restart_gives_the_phases_that_wait_for_it_their_time_again(tmp_path: Path):
    clock = Clock()
    dog = watchdog(tmp_path, clock)
    with dog.waiting("evaluate"):
        for _ in range(5):
            with dog.waiting("verify", part="verifiers-0", restart=lambda: None):
                clock.now += 30
                dog.check()
        clock.now += 39
        dog.check()  # 40 s since the last restart would be too much
        assert dog._cause is None


async def hang(dog: Watchdog, *waits: AbstractContextManager[None]) -> None:
    with dog.guard(), contextlib.ExitStack() as stack:
        for wait in waits:
            stack.enter_context(wait)
        await asyncio.sleep(60)


async def test_what_cannot_be_restarted_ends_the_run_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watchdog_module, "LOOK_EVERY_S", 0.01)
    dog = Watchdog(deadline_s=0.05, folder=tmp_path / "stalls")
    with pytest.raises(PhaseOverdue, match=r"update on learner has taken 0 s and may take 0 s\. The stacks .*raise deadline_s"):
        await hang(dog, dog.waiting("update", part="learner"))
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_phase_that_hangs_names_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watchdog_module, "LOOK_EVERY_S", 0.01)
    clock = Clock()
    dog = watchdog(tmp_path, clock)
    dog._longest[("sample", False)] = 100.0  # calls of this kind are slow
    call = dog.waiting("sample", part="worker-0", about="task t3", restart=lambda: None)
    asyncio.get_running_loop().call_later(0.05, setattr, clock, "now", 1041)
    with pytest.raises(PhaseOverdue, match=r"sample has taken 41 s .* It waits for: sample of task t3 on worker-0\. "):
        await hang(dog, dog.waiting("sample"), call)


async def test_a_cancellation_by_somebody_else_stays_one(tmp_path: Path):
    async def guarded() -> None:
        with Watchdog(folder=tmp_path).guard():
            await asyncio.sleep(60)

    running = asyncio.create_task(guarded())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_clock_that_jumps_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[str, str]] = []
    dog = Watchdog(deadline_s=60, folder=tmp_path / "stalls", tell=lambda title, text: told.append((title, text)))
    real = time.time
    with dog.guard(), dog.waiting("update", part="learner"):
        for jump_s in (-1e6, 1e6):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
            dog.check()
    assert told == []


async def test_only_the_named_methods_of_a_part_are_phases(tmp_path: Path):
    class Part:
        async def take(self, count: int, *, version: int) -> tuple[int, int, list[str]]:
            return count, version, [wait.phase for wait in dog._waits.values()]

        def metrics(self) -> list[str]:
            return [wait.phase for wait in dog._waits.values()]

    dog = Watchdog()
    part = Watched(Part(), dog, take="sample")
    assert await part.take(3, version=4) == (3, 4, ["sample"])
    assert part.metrics() == []


def test_waits_come_and_go_on_any_thread(tmp_path: Path):
    dog = Watchdog(deadline_s=100, folder=tmp_path)

    def many() -> None:
        for _ in range(300):
            with dog.waiting("verify", part="verifiers-0"):
                dog.check()

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not dog._waits


BLOCKED = """
import asyncio, sys, time
from pathlib import Path
from grpo import watchdog
watchdog.LOOK_EVERY_S, watchdog.GRACE_S = 0.02, 0.1
dog = watchdog.Watchdog(deadline_s=0.05, folder=Path(sys.argv[1]), tell=lambda title, text: print(title, flush=True))
async def main():
    with dog.guard(), dog.waiting("checkpoint"):
        time.sleep(60)  # the loop itself hangs: nobody hears the cancellation
asyncio.run(main())
"""


def test_a_driver_that_hangs_itself_is_ended_and_leaves_its_stacks(tmp_path: Path):
    ended = subprocess.run([sys.executable, "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout.splitlines()) == (1, ["the run ends", "the run does not end"])
    (stacks,) = tmp_path.iterdir()
    assert 'File "<string>", line 9 in main' in stacks.read_text()
