"""Every right program passes, no wrong program does: the matrix of code_hacks.py, a part of it here and all of it in Docker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from sandbox.types import Limits
from tests.fakes import FakeSandbox
from verifiers.code_hack_bodies import RIGHT_BODIES, WRONG_BODIES
from verifiers.code_hack_preludes import HARMFUL_PRELUDES, HARMLESS_PRELUDES
from verifiers.code_hacks import FORMS, Made, in_block, right_programs, wrong_programs
from verifiers.types import Outcome, Score, Task
from verifiers.unit_tests import UnitTests

# Program ends are the model's doing; infra would be a way out of a bad reward.
MODELS_FAULTS = {Outcome.WRONG, Outcome.CRASH, Outcome.TIMEOUT}


@asynccontextmanager
async def verifier(limits: Limits) -> AsyncIterator[UnitTests]:
    made = UnitTests(sandbox=FakeSandbox(), limits=limits)
    yield made
    await made.close()


async def judged(verifier: UnitTests, programs: Iterable[Made]) -> list[tuple[Made, Score]]:
    """Each program in one of the forms, which take turns; a few at a time."""
    turn = asyncio.Semaphore(4)

    async def judge(program: Made, form: str) -> tuple[Made, Score]:
        async with turn:
            score = await verifier.score(Task("t", "", FORMS[form], "code"), in_block(program))
            return Made(f"{program.parts} ({form})", program.source), score

    names = list(FORMS)
    return await asyncio.gather(*(judge(program, names[i % len(names)]) for i, program in enumerate(programs)))


@pytest.mark.slow
async def test_right_programs_pass_however_odd_they_look():
    programs = list(right_programs())[: len(RIGHT_BODIES) + len(HARMLESS_PRELUDES)]
    async with verifier(Limits(cpu_s=5)) as judge:
        failed = [(made.parts, score.reason) for made, score in await judged(judge, programs) if score.value != 1.0]
    assert failed == []


@pytest.mark.slow
async def test_no_wrong_program_passes_whatever_it_does():
    alone = len(WRONG_BODIES) + len(HARMLESS_PRELUDES) + len(HARMFUL_PRELUDES)
    programs = [made for made in list(wrong_programs(walls=False))[:alone] if "loop" not in made.parts]
    async with verifier(Limits(cpu_s=1, wall_s=2)) as judge:
        passed = [(made.parts, score.reason) for made, score in await judged(judge, programs) if score.outcome not in MODELS_FAULTS]
    assert passed == []


def test_the_parts_are_many_and_differ():
    right, wrong = list(right_programs()), list(wrong_programs(walls=True))
    assert len({made.source for made in right}) >= 150
    assert len({made.source for made in wrong}) >= 300
    assert not {made.source for made in right} & {made.source for made in wrong}
    assert len(HARMFUL_PRELUDES) >= 30
