"""Workers that can be killed: clock, memory, death, cancellation, and a parent that vanishes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from verifiers.deadline import Overrun, WorkerLost, WorkerPool

PROGRAM = """
import os, sys, time
def answer(question):
    kind, value = question
    if kind == "loop":
        while True: pass
    if kind == "sleep": time.sleep(value)
    if kind == "memory": return len("x" * (value * 2**20))
    if kind == "keep": KEPT.append("x" * (value * 2**20))
    if kind == "depth": return answer(question)
    if kind == "die once" and not os.path.exists(value):
        open(value, "w").close(); os._exit(7)
    if kind == "die": os._exit(7)
    if kind == "leave a child behind":
        child = os.fork()
        if not child: time.sleep(60); os._exit(0)
        open(value, "a").write(f"{child}\\n"); os._exit(7)
    if kind == "raise": raise ValueError("nonsense")
    if kind == "print": print("x" * 10**6); sys.stdout.flush(); os.write(1, b"garbage")
    return [kind, value, os.getpid()]
KEPT = []
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
async def pool(program: Path) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(program, size=2, deadline_s=0.5, memory_mb=512, recycle_mb=100)
    yield made
    await made.close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pids: list[int], within_s: float = 5.0) -> bool:
    ends = time.monotonic() + within_s
    while time.monotonic() < ends and any(map(is_alive, pids)):
        await asyncio.sleep(0.02)
    return not any(map(is_alive, pids))


async def test_no_process_is_started_before_it_is_needed(pool: WorkerPool):
    assert pool.pids() == []
    kind, value, pid = await pool.ask(["echo", {"text": "ü\ud800\x00"}])
    assert (kind, value) == ("echo", {"text": "ü\ud800\x00"})
    assert pool.pids() == [pid]


async def test_a_question_that_never_ends_is_stopped_twice_and_the_next_is_answered(pool: WorkerPool):
    started = time.monotonic()
    with pytest.raises(Overrun, match=r"longer than 0\.5 s"):
        await pool.ask(["loop", None])
    assert time.monotonic() - started >= 1.0
    assert (await pool.ask(["echo", 1]))[1] == 1


@pytest.mark.parametrize(("question", "reason"), [(["memory", 2000], "memory"), (["depth", 0], "depth")])
async def test_a_question_that_exhausts_its_worker_is_an_overrun(pool: WorkerPool, question: list[object], reason: str):
    with pytest.raises(Overrun, match=f"exhausts {reason}"):
        await pool.ask(question)
    assert (await pool.ask(["echo", 1]))[1] == 1


async def test_a_worker_that_dies_is_replaced_and_its_question_asked_again(pool: WorkerPool, tmp_path: Path):
    assert (await pool.ask(["die once", str(tmp_path / "died")]))[0] == "die once"


async def test_a_killed_worker_is_replaced_and_its_question_asked_again(pool: WorkerPool):
    first = (await pool.ask(["echo", 0]))[2]
    asked = asyncio.create_task(pool.ask(["sleep", 0.3]))
    await asyncio.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    assert (await asked)[2] != first


@pytest.mark.parametrize("question", [["die", 0], ["raise", 0]])
async def test_a_worker_that_fails_twice_is_lost_not_slow(pool: WorkerPool, question: list[object]):
    with pytest.raises(WorkerLost, match=r"exit status 7|ValueError: nonsense"):
        await pool.ask(question)
    assert (await pool.ask(["echo", 1]))[1] == 1


async def test_what_a_library_prints_does_not_enter_the_answer(pool: WorkerPool):
    assert (await pool.ask(["print", 3]))[1] == 3


async def test_waiting_for_a_worker_is_not_charged(program: Path):
    # Five times 0.4 s on one worker: the last waits for 1.6 s, more than its deadline.
    pool = WorkerPool(program, size=1, deadline_s=1.5, clock="wall")
    answers = await asyncio.gather(*(pool.ask(["sleep", 0.4]) for _ in range(5)))
    assert [value for _, value, _ in answers] == [0.4] * 5
    assert len({pid for _, _, pid in answers}) == 1
    await pool.close()


async def test_a_worker_that_other_work_keeps_waiting_is_not_charged_for_it(program: Path):
    pool = WorkerPool(program, size=1, deadline_s=0.2)
    assert (await pool.ask(["sleep", 0.6]))[1] == 0.6
    await pool.close()


async def test_a_worker_that_never_gets_the_processor_is_lost_not_slow(program: Path):
    pool = WorkerPool(program, size=1, deadline_s=0.05)
    with pytest.raises(WorkerLost, match=r"less than 0\.05 s of the processor in 0\.5 s: the machine is too busy"):
        await pool.ask(["sleep", 30])
    await pool.close()


async def test_by_the_clock_on_the_wall_waiting_is_charged_too(program: Path):
    pool = WorkerPool(program, size=1, deadline_s=0.2, clock="wall")
    with pytest.raises(Overrun, match=r"longer than 0\.2 s"):
        await pool.ask(["sleep", 30])
    await pool.close()


async def test_the_other_worker_notices_nothing_of_an_overrun(pool: WorkerPool):
    endless = asyncio.create_task(pool.ask(["loop", None]))
    await asyncio.sleep(0.05)
    pids = {(await pool.ask(["echo", i]))[2] for i in range(20)}
    assert len(pids) == 1
    with pytest.raises(Overrun):
        await endless


async def test_a_worker_that_has_grown_is_replaced_between_questions(pool: WorkerPool):
    first = (await pool.ask(["keep", 150]))[2]
    assert (await pool.ask(["echo", 0]))[2] != first


async def test_cancelling_kills_the_worker_that_is_at_it(program: Path):
    pool = WorkerPool(program, size=2, deadline_s=30, memory_mb=512, recycle_mb=100)
    pid = (await pool.ask(["echo", 0]))[2]
    asked = asyncio.create_task(pool.ask(["sleep", 30]))
    await asyncio.sleep(0.2)
    assert pool.pids() == [pid]
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await gone([pid])
    assert (await pool.ask(["echo", 1]))[1] == 1
    await pool.close()


async def test_closing_leaves_no_process_and_answers_what_is_open(pool: WorkerPool):
    open_questions = [asyncio.create_task(pool.ask(["sleep", 30])) for _ in range(5)]
    await asyncio.sleep(0.3)
    pids = pool.pids()
    assert len(pids) == 2
    await pool.close()
    for outcome in await asyncio.gather(*open_questions, return_exceptions=True):
        assert isinstance(outcome, WorkerLost)
    assert await gone(pids)
    with pytest.raises(WorkerLost, match="closed"):
        await pool.ask(["echo", 1])


async def test_what_a_worker_started_dies_with_it(pool: WorkerPool, tmp_path: Path):
    with pytest.raises(WorkerLost, match="exit status"):
        await pool.ask(["leave a child behind", str(tmp_path / "children")])
    children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(children) == 2  # asked twice
    assert await gone(children)


async def test_a_question_larger_than_a_pipe_is_asked_whole(pool: WorkerPool):
    assert (await pool.ask(["echo", "x" * 3 * 2**20]))[1] == "x" * 3 * 2**20


async def test_a_process_is_set_up_before_its_first_question(tmp_path: Path):
    program = tmp_path / "prepared.py"
    program.write_text("def setup(given):\n    global known\n    known = given\ndef answer(question): return [known, question]\n")
    prepared = WorkerPool(program, setup={"a": 1}, size=1)
    assert await prepared.ask(2) == [{"a": 1}, 2]
    assert await asyncio.to_thread(prepared.ask_and_wait, 3) == [{"a": 1}, 3]
    assert prepared.counters() == {"asked": 2, "killed": 0}
    assert prepared.counters()["asked"] == 0
    await prepared.close()


async def test_a_program_that_cannot_start_says_why(tmp_path: Path):
    program = tmp_path / "broken.py"
    program.write_text("import no_such_module")
    broken = WorkerPool(program)
    with pytest.raises(WorkerLost, match="did not start: ModuleNotFoundError"):
        await broken.ask(1)
    await broken.close()


async def test_a_pool_works_in_an_event_loop_outside_the_main_thread(pool: WorkerPool):
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(pool.ask(["echo", 5]))[1]))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert answers == [5]


async def test_when_the_parent_is_killed_its_workers_die(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    parent_code = f"""
        import asyncio
        from pathlib import Path
        from verifiers.deadline import WorkerPool
        async def main():
            pool = WorkerPool(Path({str(program)!r}), deadline_s=60)
            print((await pool.ask(["echo", 0]))[2], flush=True)
            await pool.ask(["loop", 0])
        asyncio.run(main())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent_code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert is_alive(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert await gone([worker])
