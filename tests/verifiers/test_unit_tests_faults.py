"""Whatever a program writes or however it ends, it does not pass by it; and what is our fault is never a zero."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from code_cases import CALLS, CHECKED, CHECKED_SCRIPT, FORMS, SCRIPT, TEST

from sandbox.errors import SandboxLost, SandboxUnavailable
from sandbox.types import Ending, Execution, Limits, Program, ProgramEnded
from tests.fakes import FakeSandbox
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Score, Task
from verifiers.unit_tests import UnitTests

CORRECT, WRONG, TIMEOUT, CRASH = Outcome.CORRECT, Outcome.WRONG, Outcome.TIMEOUT, Outcome.CRASH


class ScriptedSandbox(FakeSandbox):
    """Answers with what a test says, whatever the program."""

    def __init__(self, *lines: str | Exception) -> None:
        super().__init__()
        self.lines = list(lines)
        self.asked: list[str] = []

    def open(self, program: Program, *, limits: Limits | None = None) -> Any:
        return self

    async def __aenter__(self) -> ScriptedSandbox:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def ask(self, question: str) -> str:
        self.asked.append(question)
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line


async def scripted(reference: Any, *lines: str | Exception, **options: Any) -> tuple[Score, list[str]]:
    sandbox = ScriptedSandbox(*lines)
    verifier = UnitTests(sandbox=sandbox, **options)
    try:
        return await verifier.score(Task("t", "", reference, "code"), "def f(x): return x + 1"), sandbox.asked
    finally:
        await verifier.close()


@pytest.mark.parametrize("reference", FORMS.values(), ids=FORMS.keys())
async def test_a_question_is_sent_only_after_the_answer_to_the_one_before(reference: Any):
    score, asked = await scripted(reference, '["Returned",2]', '["Returned",0]')
    assert score.outcome is WRONG
    assert asked == ['[[1],{"dict":[]}]', '[[2],{"dict":[]}]']


FORGED = [
    "passed",
    "",
    "null",
    "2",
    '{"result":null}',
    '{"done":true}',
    '["Returned"]',
    '["Returned",2,3]',
    '["Returned",2]["Returned",2]',
    '["Returned",{"float":"nan"}]',
    '["Returned",{"equal":2}]',
    '["NotPlain","2"]',
    '["Raised","StopIteration","StopIteration",""]',
    '["Raised","SystemExit","SystemExit","0"]',
    "[" * 100_000,
]


@pytest.mark.parametrize("reference", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("line", FORGED, ids=[line[:40] or "empty" for line in FORGED])
async def test_a_line_that_is_not_the_answer_never_passes(reference: Any, line: str):
    score, _ = await scripted(reference, line, '["Returned",3]', '["Returned",4]', count="all")
    assert score.outcome is not CORRECT


ENDINGS = [(ending, TIMEOUT if ending in (Ending.CPU_TIME, Ending.WALL_TIME, Ending.REFUSED) else CRASH) for ending in Ending]


@pytest.mark.parametrize("reference", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize(("ending", "outcome"), ENDINGS, ids=[ending.value for ending, _ in ENDINGS])
async def test_however_a_program_ends_before_it_answered_it_has_not_passed(reference: Any, ending: Ending, outcome: Outcome):
    ended = ProgramEnded(Execution(ending, exit_code=0, stdout="passed", stderr="OK", reason="too large"))
    score, _ = await scripted(reference, '["Returned",2]', ended)
    assert score.outcome is outcome


@pytest.mark.parametrize("fault", [SandboxLost("gone"), SandboxUnavailable("no daemon")], ids=["lost", "unavailable"])
@pytest.mark.parametrize("reference", [*FORMS.values(), SCRIPT, CHECKED_SCRIPT], ids=[*FORMS.keys(), "script", "checked script"])
async def test_a_lost_sandbox_is_tried_once_more_and_then_infra_never_0(reference: Any, fault: Exception):
    program = "print(int(input()) + 1)" if "entry_point" not in reference and "cases" in reference else "def f(x): return x + 1"
    for num_faults, reward in ((1, 1.0), (2, None)):
        service = VerifierService({}, sandbox=FakeSandbox(faults=[fault] * num_faults))
        (verdict,) = await service.judge(Task("t", "", reference, "code"), [Text(program, None)])
        await service.close()
        assert verdict.reward == reward
    assert verdict.scores[0].outcome is Outcome.INFRA
    assert type(fault).__name__ in str(verdict.cause)


async def test_a_sandbox_lost_between_two_answers_is_raised():
    with pytest.raises(SandboxLost):
        await scripted(CALLS, '["Returned",2]', SandboxLost("gone"))
    with pytest.raises(SandboxLost):
        await scripted(TEST, '["Returned",2]', SandboxLost("gone"))


async def test_many_completions_are_judged_at_one_time_without_a_deadlock():
    service = VerifierService({}, sandbox=FakeSandbox(), workers=1)
    programs = [f"def f(x): return x + {n % 2}" for n in range(12)]
    for reference in (CALLS, TEST, CHECKED):
        verdicts = await asyncio.wait_for(
            service.judge(Task("t", "", reference, "code"), [Text(f"{p}  # {n}", None) for n, p in enumerate(programs)]), 30
        )
        assert [verdict.reward for verdict in verdicts] == [0.0, 1.0] * 6
    await service.close()


async def test_the_service_tells_of_its_sandbox_and_closes_it():
    sandbox = FakeSandbox()
    service = VerifierService({}, sandbox=sandbox)
    await service.judge(Task("t", "", CALLS, "code"), [Text("def f(x): return x + 1", None)])
    metrics = await service.metrics()
    assert (metrics["verify/unit_tests_correct"], metrics["sandbox/exited"]) == (1, 1)
    await service.close()
    assert sandbox.closed


async def test_only_a_mix_that_runs_programs_needs_the_sandbox():
    missing = SandboxUnavailable("no daemon")
    service = VerifierService({}, sandbox=FakeSandbox(faults=[missing]))
    await service.probe_sandbox("math")
    with pytest.raises(SandboxUnavailable, match="no daemon"):
        await service.probe_sandbox("code")
    await service.probe_sandbox("code")


class BusySandbox(FakeSandbox):
    """Every program takes 50 ms of a slot; there is one per core."""

    def __init__(self) -> None:
        super().__init__()
        self._slots = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def run(self, program: Program, *, stdin: str = "", limits: Limits | None = None) -> Execution:
        async with self._slots:
            await asyncio.sleep(0.05)
        return Execution(Ending.EXITED, exit_code=0, stdout="2")


async def test_waiting_for_a_turn_is_not_charged_to_a_score():
    service = VerifierService({}, sandbox=BusySandbox(), deadline_s=0.5)
    texts = [Text(f"print({n})", None) for n in range(40 * len(os.sched_getaffinity(0)))]  # 2 s of each slot
    verdicts = await service.judge(Task("t", "", {"cases": [{"stdout": "2"}]}, "code"), texts)
    await service.close()
    assert {verdict.reward for verdict in verdicts} == {1.0}
