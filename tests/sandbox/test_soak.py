"""Five thousand programs, one in fifty hostile, over four slots: every outcome right, memory flat, nothing left."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandbox.agent.calls import encode_call
from sandbox.config import SandboxConfig
from sandbox.docker import connect
from sandbox.ownership import LABEL_OWNER, Owner
from sandbox.pool import Pool, _host
from sandbox.types import Ending, Execution, Limits, Program, ProgramEnded

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_JOBS, NUM_SLOTS, HOSTILE = 5000, 4, 0.02
LIMITS = Limits(cpu_s=0.5, wall_s=6.0, memory_mb=96, output_kb=16)
CONFIG = SandboxConfig(slots=NUM_SLOTS, memory_mb=160)


class Case(NamedTuple):
    """A program, and whether what became of it is right."""

    program: Program
    is_right: Callable[[Execution], bool]
    stdin: str = ""


def ends(*endings: Ending) -> Callable[[Execution], bool]:
    return lambda execution: execution.ending in endings


def prints(text: str, *, exit_code: int = 0) -> Callable[[Execution], bool]:
    return lambda execution: (execution.ending, execution.exit_code, execution.stdout) == (Ending.EXITED, exit_code, text)


def ordinary(number: int, chance: random.Random) -> Case:
    kind = chance.randrange(5)
    if kind == 0:
        return Case(Program("import sys; print(sum(map(int, sys.stdin.read().split())))"), prints(f"{number + 7}\n"), f"{number} 7")
    if kind == 1:
        return Case(Program(f"import collections, re\nprint(re.sub('a', 'b', 'a{number}'))"), prints(f"b{number}\n"))
    if kind == 2:
        return Case(
            Program(f"open('x', 'w').write('{number}'); import os; print(os.listdir(), open('x').read())"),
            prints(f"['x'] {number}\n"),
        )
    if kind == 3:
        return Case(Program(f"print({number}); exit({number % 5})"), prints(f"{number}\n", exit_code=number % 5))
    return Case(Program(f"1/0 # {number}"), lambda execution: execution.exit_code == 1 and "ZeroDivisionError" in execution.stderr)


STOPPED = ends(Ending.CPU_TIME, Ending.WALL_TIME, Ending.MEMORY, Ending.KILLED, Ending.EXITED)
DAEMON = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: pass
    os._exit(0)
print(1)
"""
HOSTILE_CASES = [
    Case(Program("while True: pass"), ends(Ending.CPU_TIME)),
    Case(Program("import time; time.sleep(60)"), ends(Ending.WALL_TIME)),
    Case(Program("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"), STOPPED),
    Case(Program("x = []\nwhile True: x.append(bytearray(1 << 20))"), ends(Ending.MEMORY)),
    Case(Program("import os\nfor _ in range(6):\n    if os.fork() == 0: break\nx = b'1' * (80 << 20)\nwhile True: pass"), STOPPED),
    Case(Program("while True: print('x' * 10000)"), ends(Ending.OUTPUT)),
    Case(Program("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))"), STOPPED),
    Case(Program("import os\ni = 0\nwhile True:\n    open(str(i), 'w').close(); i += 1"), STOPPED),
    Case(Program("import os\nos.kill(-1, 9)\nwhile True: pass"), STOPPED),
    Case(Program(DAEMON), prints("1\n")),
    Case(
        Program(
            "import signal\nfor s in range(1, 31):\n    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
        ),
        ends(Ending.CPU_TIME),
    ),
]


def resident_kb(pid: int) -> int:
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))


def servers(client: Any) -> dict[int, int]:
    """Resident memory, in KiB, of each fork server and template, by host process id."""
    mine = client.api.containers(filters={"label": f"{LABEL_OWNER}={Owner.current()}"})
    pids = [int(row[1]) for container in mine for row in client.api.top(container["Id"])["Processes"]]
    return {pid: resident_kb(pid) for pid in pids}


async def test_five_thousand_programs_of_which_some_are_hostile(image):
    client, chance = connect(), random.Random(5)
    pool = Pool(lambda: _host(CONFIG), num_slots=NUM_SLOTS, name="warm", max_jobs=NUM_JOBS, max_age_s=3600)
    cases = [chance.choice(HOSTILE_CASES) if chance.random() < HOSTILE else ordinary(number, chance) for number in range(NUM_JOBS)]
    wrong: list[tuple[Program, Execution]] = []
    answers: list[str] = []

    async def run(case: Case) -> None:
        execution = await pool.run(case.program, stdin=case.stdin, limits=LIMITS)
        if not case.is_right(execution):
            wrong.append((case.program, execution))

    async def ask(number: int) -> None:
        async with pool.open(Program("def f(x): return x + 1", "f"), limits=LIMITS) as session:
            answers.append(await session.ask(encode_call((number,), {})))

    try:
        await asyncio.gather(*(run(case) for case in cases[:1000]))
        ours, theirs = resident_kb(os.getpid()), servers(client)
        await asyncio.gather(*(run(case) for case in cases[1000:]), *(ask(number) for number in range(100)))
        ours_after, theirs_after = resident_kb(os.getpid()), servers(client)
        assert wrong == []
        assert sorted(answers) == sorted(f'["Returned",{number + 1}]' for number in range(100))
        assert len(theirs_after) == 2 * NUM_SLOTS
        grown = {pid: theirs_after[pid] - kb for pid, kb in theirs.items() if pid in theirs_after}
        print(f"\nours {ours} -> {ours_after} KiB; servers grew by {sorted(grown.values())} KiB; {pool.metrics()}")
        assert ours_after - ours < 16 << 10
        assert grown
        assert max(grown.values()) < 4 << 10
    finally:
        await pool.close()
    assert client.api.containers(all=True, filters={"label": f"{LABEL_OWNER}={Owner.current()}"}) == []


async def test_a_session_of_a_hostile_program_leaves_the_slot_to_the_next(image):
    pool = Pool(lambda: _host(CONFIG), num_slots=1, name="warm")

    async def ask(source: str) -> Ending | str:
        try:
            async with pool.open(Program(source, "f"), limits=LIMITS) as session:
                return await session.ask(encode_call((1,), {}))
        except ProgramEnded as ended:
            return ended.execution.ending

    try:
        for source in ("def f(x):\n    while True: pass", "import os\ndef f(x): os.kill(-1, 9)", "def f(x): return 'x' * 10**7"):
            await ask(source)
            assert await ask("def f(x): return x") == '["Returned",1]'
    finally:
        await pool.close()
