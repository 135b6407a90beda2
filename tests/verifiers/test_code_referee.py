"""Trusted tests against a function elsewhere: what passes, what fails, and that nothing of the answer can pass for a success."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandbox.agent.calls import Answer, Call, NotPlain, Raised, Returned, decode_call, encode_answer
from verifiers.code_referee import Ask, BrokenTests, Failure, Referee, RefereeLost, RefereeOverrun, Refused, TrustedTests


@pytest.fixture
async def referee() -> AsyncIterator[Referee]:
    made = Referee(size=2, cpu_s=1, wall_s=30)
    yield made
    await made.close()


def answering(function: Callable[[Call], Answer]) -> Ask:
    async def ask(question: str) -> str:
        return encode_answer(function(decode_call(question)))

    return ask


plus_one = answering(lambda call: Returned(call.args[0] + 1))


async def judged(
    referee: Referee, *tests: str, ask: Ask = plus_one, setup: tuple[str, ...] = (), stop: bool = False, **fields: Any
) -> list[Failure | None]:
    async with aclosing(referee.run(TrustedTests(setup, tests, "f", **fields), ask, stop=stop)) as failures:
        return [failure async for failure in failures]


async def test_tests_pass_or_fail_with_the_line_that_failed(referee: Referee):
    check = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(1) == 3, 'three'\n"
    failures = await judged(referee, "check(candidate)", "assert f(1) == 2", "f(1) / 0", setup=("import math", check))
    assert failures == [
        Failure("wrong", "AssertionError: three at assert candidate(1) == 3, 'three'"),
        None,
        Failure("wrong", "ZeroDivisionError: division by zero at f(1) / 0"),
    ]


async def test_a_failure_can_be_the_end(referee: Referee):
    failures = await judged(referee, "assert f(1) == 2", "assert f(1) == 3", "assert f(1) == 2", stop=True)
    assert failures == [None, Failure("wrong", "AssertionError at assert f(1) == 3")]


async def test_tests_see_the_cases_and_any_plain_data(referee: Referee):
    value = [(1, {2}), {"a": b"b", None: frozenset({1.5})}, 2**100, "\ud800"]
    failures = await judged(
        referee,
        "assert f(*cases[0], key=cases) == cases",
        cases=(value, 1),
        ask=answering(lambda call: Returned(call.kwargs["key"])),
    )
    assert failures == [None]


RAISED = [
    (Raised("ValueError", "ValueError", "no"), "ValueError", "ValueError: no"),
    (Raised("Mine", "KeyError", "no"), "LookupError", "KeyError: 'no'"),
    (Raised("UnicodeDecodeError", "UnicodeDecodeError", "no"), "ValueError", "UnicodeError: no"),
    (Raised("Mine", "Exception", ""), "Exception", "Exception"),
    (Raised("AssertionError", "AssertionError", ""), "AssertionError", "AssertionError"),
    (Raised("NameError", "NameError", "x"), "NameError", "NameError: x"),
    (Raised("MemoryError", "MemoryError", ""), "MemoryError", "MemoryError"),
    (Raised("StopIteration", "StopIteration", ""), "Exception", "CandidateRaised: StopIteration"),
    (Raised("SystemExit", "SystemExit", "0"), "Exception", "CandidateRaised: SystemExit 0"),
    (Raised("KeyboardInterrupt", "KeyboardInterrupt", ""), "Exception", "CandidateRaised: KeyboardInterrupt"),
    (Raised("GeneratorExit", "GeneratorExit", ""), "Exception", "CandidateRaised: GeneratorExit"),
    (Raised("x", "print", ""), "Exception", "CandidateRaised: x"),
    (Raised("x", "__import__('os')._exit(0)", ""), "Exception", "CandidateRaised: x"),
]


@pytest.mark.parametrize(("raised", "caught_as", "told"), RAISED, ids=lambda value: str(value)[:30])
async def test_what_the_program_raised_is_raised_among_the_tests(referee: Referee, raised: Raised, caught_as: str, told: str):
    catching = f"try:\n    f(1)\n    assert False\nexcept {caught_as} as error:\n    pass"
    failures = await judged(referee, catching, "f(1)", ask=answering(lambda call: raised))
    assert failures == [None, Failure("raised", f"{told} at f(1)")]


@pytest.mark.parametrize("builtin", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(f, [1]))",
        "assert not any(map(lambda x: f(x) != 2, [1]))",
        "for answer in map(f, [1]): assert answer == 2",
        "assert [f(x) for x in [1]] == [2]",
        "assert list(zip(map(f, [1]), [2])) == []",
        "def answers():\n    yield f(1)\nassert list(answers()) == []",
    ],
)
async def test_no_exception_ends_a_loop_of_the_tests_early(referee: Referee, test: str, builtin: str):
    (failure,) = await judged(referee, test, ask=answering(lambda call: Raised(builtin, builtin, "")))
    assert failure is not None


REFUSED = [
    (encode_answer(Returned([math.nan])), "the answer is NaN or holds one"),
    (encode_answer(Returned({1: (math.nan,)})), "the answer is NaN or holds one"),
    (encode_answer(Returned({math.nan: 1})), "the answer is NaN or holds one"),
    (encode_answer(Returned(complex(math.nan, 0))), "the answer is NaN or holds one"),
    (encode_answer(NotPlain("Sly is no plain data")), "Sly is no plain data"),
    ("passed", "what was written is no answer: the line is no JSON"),
    ("", "what was written is no answer: the line is no JSON"),
    ('{"done":true}', "what was written is no answer"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
async def test_what_is_no_plain_answer_ends_the_tests_and_they_never_see_it(referee: Referee, line: str, reason: str):
    async def ask(question: str) -> str:
        return line

    with pytest.raises(Refused, match=reason):
        await judged(referee, "try:\n    f(1)\nexcept BaseException:\n    pass", ask=ask)


async def test_nan_reaches_tests_that_ask_for_it(referee: Referee):
    nan = answering(lambda call: Returned(math.nan))
    assert await judged(referee, "assert f(1) != f(1)", ask=nan, nan=True) == [None]


BROKEN = [
    ("assert undefined(f(1))", "NameError: name 'undefined' is not defined"),
    ("f(1); import no_such_module", "ModuleNotFoundError"),
    ("def", "SyntaxError"),
    ("1 + 1", "a test asked nothing of the program, so it says nothing: 1 \\+ 1"),
    ("f(object())", "the tests call the program with what is no plain data: object is no plain data"),
    ("f(1); exit(0)", "a test raised SystemExit"),
    ("f(1); raise KeyboardInterrupt", "a test raised KeyboardInterrupt"),
]


@pytest.mark.parametrize(("test", "message"), BROKEN, ids=[test for test, _ in BROKEN])
async def test_broken_tests_are_the_tasks_fault(referee: Referee, test: str, message: str):
    with pytest.raises(BrokenTests, match=message):
        await judged(referee, test)


async def test_a_setup_that_fails_is_the_tasks_fault(referee: Referee):
    with pytest.raises(BrokenTests, match="ZeroDivisionError"):
        await judged(referee, "f(1)", setup=("1 / 0",))


async def test_tests_that_loop_are_stopped_by_the_processor_clock(referee: Referee):
    with pytest.raises(RefereeOverrun, match="more than 1 s of CPU"):
        await judged(referee, "f(1)\nwhile True: pass")
    assert await judged(referee, "assert f(1) == 2") == [None]


async def test_tests_that_sleep_are_stopped_by_the_clock_on_the_wall():
    referee = Referee(size=1, wall_s=0.5)
    with pytest.raises(RefereeOverrun, match="time on the clock"):
        await judged(referee, "f(1)\n__import__('time').sleep(60)")
    assert await judged(referee, "assert f(1) == 2") == [None]
    await referee.close()


async def test_the_programs_time_is_not_the_tests():
    async def slowly(question: str) -> str:
        await asyncio.sleep(0.5)
        return await plus_one(question)

    referee = Referee(size=1, wall_s=0.9)
    assert await judged(referee, "assert f(1) == 2", "assert f(2) == 3", ask=slowly) == [None, None]
    await referee.close()


@pytest.mark.parametrize(
    ("test", "what"), [("f(1); x = 'x' * 10**11", "memory"), ("f(1)\ndef deep(x): return deep(x)\ndeep(1)", "depth")]
)
async def test_memory_and_depth_have_bounds(referee: Referee, test: str, what: str):
    assert await judged(referee, test) == [Failure("exhausted", what)]


async def test_one_programs_tests_leave_nothing_to_the_next(referee: Referee):
    spoil = "import builtins, random\nbuiltins.max = lambda x: 7\nrandom.randrange = None\nassert f(1) == 2"
    draw = "import random\nassert max([1]) == 1\nassert f(random.randrange(10**9)) == 1 + random.Random(0).randrange(10**9)"
    for test in (draw, spoil, draw, spoil, draw):
        assert await judged(referee, test) == [None]
    assert len(referee.pids()) == 1


async def test_what_asking_raises_ends_the_tests_which_cannot_swallow_it(referee: Referee):
    async def ask(question: str) -> str:
        raise LookupError("the program ended")

    with pytest.raises(LookupError, match="the program ended"):
        await judged(referee, "try:\n    f(1)\nexcept BaseException:\n    pass", ask=ask)
    (before,) = referee.pids()
    assert await judged(referee, "assert f(1) == 2") == [None]
    assert referee.pids() == [before]  # none was lost by it


async def test_a_process_that_dies_is_our_loss_and_the_next_run_has_another(referee: Referee):
    async def kill(question: str) -> str:
        parent = int(Path(f"/proc/{decode_call(question).args[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, 9)
        os.kill(decode_call(question).args[0], 9)
        return await plus_one(question)

    with pytest.raises(RefereeLost, match="a process for tests is gone"):
        await judged(referee, "import os\nf(os.getpid())", ask=kill)
    assert await judged(referee, "assert f(1) == 2") == [None]


async def test_an_idle_process_that_died_is_replaced_unnoticed(referee: Referee):
    await judged(referee, "f(1)")
    os.kill(referee.pids()[0], 9)
    await asyncio.sleep(0.1)
    assert await judged(referee, "assert f(1) == 2") == [None]


async def test_cancelling_and_leaving_early_leave_no_process(referee: Referee):
    before, asked = children(), asyncio.Event()

    async def never(question: str) -> str:
        asked.set()
        await asyncio.sleep(60)
        return ""

    running = asyncio.create_task(judged(referee, "f(1)", ask=never))
    await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with aclosing(referee.run(TrustedTests((), ("f(1)", "f(2)"), "f"), plus_one, stop=False)) as failures:
        async for _ in failures:
            break
    assert referee.pids() == []
    assert children() <= before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


async def test_as_many_run_at_one_time_as_there_are_places_and_closing_ends_all():
    before, referee, at_one_time, most = children(), Referee(size=3), 0, 0

    async def ask(question: str) -> str:
        nonlocal at_one_time, most
        at_one_time += 1
        most = max(most, at_one_time)
        await asyncio.sleep(0.01)
        at_one_time -= 1
        return await plus_one(question)

    results = await asyncio.gather(*(judged(referee, f"assert f({n}) == {n + 1}", ask=ask) for n in range(30)))
    assert results == [[None]] * 30
    assert (most, len(referee.pids())) == (3, 3)
    await referee.close()
    assert children() <= before
