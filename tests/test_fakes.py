"""The fakes keep the promises of what they stand for."""

import asyncio
from pathlib import Path

import pytest

from rollout.errors import WorkerLost
from rollout.sampling import Sampling
from sandbox.agent.calls import NotPlain, Raised, Returned, decode_answer, encode_call
from sandbox.errors import SandboxLost
from sandbox.types import Ending, Limits, Program, ProgramEnded
from tests.fakes import (
    FakeLearner,
    FakeSandbox,
    FakeTracker,
    FakeVerifiers,
    FakeWorker,
    guess,
    is_right,
    make_group,
    make_snapshot,
    make_task,
    make_tasks,
)

WARM, GREEDY = Sampling(), Sampling(temperature=0)


async def loaded(version: int = 0) -> FakeWorker:
    worker = FakeWorker()
    await worker.load(make_snapshot(version))
    return worker


async def test_completions_depend_on_task_seed_and_version_alone():
    task, one, other = make_task(), await loaded(), await loaded()
    completions = await one.sample(task, WARM, n=8, seed=5)
    assert completions == await other.sample(task, WARM, n=8, seed=5)
    assert completions != await one.sample(task, WARM, n=8, seed=50)
    assert completions != await one.sample(make_task("u"), WARM, n=8, seed=5)
    assert [c.text for c in completions] != [c.text for c in await (await loaded(1)).sample(task, WARM, n=8, seed=5)]


async def test_completions_carry_their_index_seed_and_version():
    completions = await (await loaded(3)).sample(make_task(), WARM, n=3, seed=10)
    assert [(c.index, c.seed, c.policy_version) for c in completions] == [(0, 10, 3), (1, 11, 3), (2, 12, 3)]
    assert all(c.behavior_logprobs is not None and len(c.behavior_logprobs) == len(c.token_ids) for c in completions)


async def test_greedy_completions_are_equal():
    assert len({c.text for c in await (await loaded()).sample(make_task(), GREEDY, n=8, seed=1)}) == 1


async def test_guesses_are_right_about_half_of_the_time():
    completions = await (await loaded()).sample(make_task(), WARM, n=64, seed=1)
    verdicts = await FakeVerifiers(is_right).verify(make_task(), completions)
    assert 16 < sum(verdict.is_correct for verdict in verdicts) < 48
    assert guess is not None


async def test_a_killed_worker_loses_what_is_under_way_and_all_that_follows():
    worker = FakeWorker(hold=asyncio.Event())
    worker.snapshot = make_snapshot(0)
    under_way = asyncio.create_task(worker.sample(make_task(), WARM, n=1, seed=0))
    await asyncio.sleep(0.01)
    worker.kill()
    with pytest.raises(WorkerLost):
        await under_way
    with pytest.raises(WorkerLost):
        await worker.load(make_snapshot(1))


async def test_a_held_worker_waits():
    hold = asyncio.Event()
    worker = FakeWorker(hold=hold)
    loading = asyncio.create_task(worker.load(make_snapshot(1)))
    await asyncio.sleep(0.01)
    assert not loading.done()
    hold.set()
    await loading
    assert worker.loaded == [1]


async def test_a_learner_goes_on_from_what_it_saved(tmp_path):
    one, other = FakeLearner(), FakeLearner()
    one.weight = 0.1 + 0.2
    await one.save(str(tmp_path))
    await other.restore(str(tmp_path))
    assert other.weight == one.weight


def test_a_tracker_keeps_what_it_is_told():
    tracker = FakeTracker()
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 2.0, "b": 0.5})
    assert tracker.values("a") == [1.0, 2.0]


def test_groups_and_tasks_are_what_they_say():
    group = make_group([1, 0, None, 0.5], version=3)
    assert group.scored_rewards == (1, 0, 0.5)
    assert group.num_correct == 1
    assert group.policy_version == 3
    assert len({task.prompt for task in make_tasks(5)}) == 5


# The sandbox


async def test_a_script_reads_stdin_and_its_files_and_its_execution_is_told():
    source = "import sys\nprint(input(), open('data/n.txt').read())\nprint('oh', file=sys.stderr)\nsys.exit(3)"
    execution = await FakeSandbox().run(Program(source, files={"data/n.txt": b"7"}), stdin="in\n")
    assert (execution.ending, execution.exit_code, execution.stdout, execution.stderr) == (Ending.EXITED, 3, "in 7\n", "oh\n")
    assert not execution.ok


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("while True: pass", Ending.CPU_TIME),
        ("import time; time.sleep(9)", Ending.WALL_TIME),
        ("x = 'x' * 10**9", Ending.MEMORY),
        ("import os; os.kill(os.getpid(), 9)", Ending.KILLED),
        ("while True: print('x' * 10**5)", Ending.OUTPUT),
        ("def", Ending.EXITED),
    ],
)
async def test_a_script_ends_as_it_would_in_the_real_sandbox(source: str, ending: Ending):
    wall_s = 0.5 if ending is Ending.WALL_TIME else 30
    execution = await FakeSandbox().run(Program(source), limits=Limits(cpu_s=1, wall_s=wall_s, memory_mb=64, output_kb=16))
    assert execution.ending is ending
    assert len(execution.stdout) <= 16384


async def test_a_program_answers_one_question_after_the_other():
    async with FakeSandbox().open(Program("def f(x): return (x, [1 / x]) if x else f", entry_point="f")) as session:
        answers = [decode_answer(await session.ask(encode_call((x,), {}))) for x in (2, "a", 0)]
    text = "unsupported operand type(s) for /: 'int' and 'str'"
    assert answers == [Returned((2, [0.5])), Raised("TypeError", "TypeError", text), NotPlain("function is no plain data")]


WRITE = "import os\ndef write(*lines):\n    for line in lines: os.write(int(__import__('sys').argv[4]), line)\n"


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        ("import os; os._exit(0)", Ending.EXITED),
        ("while True: pass", Ending.CPU_TIME),
        ("import time; time.sleep(9)", Ending.WALL_TIME),
        ("write(b'1\\n2\\n')", Ending.PROTOCOL),
        ("write(b'x' * 2**21)", Ending.PROTOCOL),
    ],
)
async def test_a_program_that_ends_or_writes_out_of_turn_has_not_answered(body: str, ending: Ending):
    sandbox, limits = FakeSandbox(), Limits(cpu_s=1, wall_s=0.5 if ending is Ending.WALL_TIME else 30)
    async with sandbox.open(Program(f"{WRITE}def f():\n    {body}", "f"), limits=limits) as session:
        for _ in range(2):
            with pytest.raises(ProgramEnded) as ended:
                await session.ask(encode_call((), {}))
            assert ended.value.execution.ending is ending
    assert sandbox.num_alive == 0


async def test_nothing_of_a_program_is_alive_after_its_context(tmp_path: Path):
    mark = tmp_path / "mark"
    source = f"import os, time\nif os.fork() == 0:\n    time.sleep(0.5)\n    open({str(mark)!r}, 'w')\ndef f(): return 1"
    async with FakeSandbox().open(Program(source, "f")) as session:
        await session.ask(encode_call((), {}))
    await asyncio.sleep(0.7)
    assert not mark.exists()


async def test_a_lost_sandbox_is_raised_in_place_of_a_program():
    sandbox = FakeSandbox(faults=[SandboxLost("gone")])
    with pytest.raises(SandboxLost):
        await sandbox.run(Program(""))
    assert (await sandbox.run(Program(""))).ok
    assert sandbox.programs == [Program("")]
