"""Hostile completions by the thousand, through a service of two workers, while ordinary ones are judged."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from verifiers.hostile_texts import few_hostile_texts, hostile_texts
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Task

REFERENCES = (r"1+\sqrt{2}", "x^2+1", "1789")
ORDINARY = [
    (Task("number", "", "42", "math"), r"so it is \boxed{42}", 1.0),
    (Task("number", "", "42", "math"), r"so it is \boxed{43}", 0.0),
    (Task("root", "", r"\sqrt{8}", "math"), r"\boxed{2\sqrt{2}}", 1.0),
    (Task("polynomial", "", "(x+1)^2", "math"), r"\boxed{x^2+2x+%d}", 0.0),
    (Task("set", "", r"\{\sqrt{2}, 1\}", "math"), r"\boxed{\{1, \frac{2}{\sqrt{2}}\}}", 1.0),
]
# Two attempts of 3 s, a worker started between them (sympy: half a second, more on a busy machine).
BOUND_S = 15.0
MEMORY_MB = 1100


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def judge_hostile(
    service: VerifierService, named: list[tuple[str, str]], reference: str, slots: asyncio.Semaphore
) -> Counter[str]:
    """Judge them all, a few at a time, and say what came of them. Every one has to end within the bound, at 0."""
    outcomes: Counter[str] = Counter()

    async def judge(name: str, text: str) -> None:
        async with slots:
            (verdict,) = await service.judge(Task(name, "", reference, "math"), [Text(text, None)])
        score = verdict.scores[0]
        assert verdict.reward == 0.0, (name, text[:80], score.reason)
        assert score.outcome is not Outcome.INFRA, (name, score.reason)
        assert score.seconds < BOUND_S, (name, score.seconds)
        outcomes[score.outcome.value] += 1

    await asyncio.gather(*(judge(name, text) for name, text in named))
    return outcomes


async def judge_ordinary(service: VerifierService, stop: asyncio.Event) -> int:
    """Judge ordinary completions until told to stop; each must get what it deserves."""
    count = 0
    while not stop.is_set():
        for task, text, reward in ORDINARY:
            if "%d" in text:
                text = text % (count + 2)  # another one each time, so that a worker is asked
            (verdict,) = await service.judge(task, [Text(text, None)])
            assert verdict.reward == reward, (task.id, text, verdict.scores[0].reason)
            count += 1
        await asyncio.sleep(0.01)
    return count


async def run_both(named: list[tuple[str, str]], references: tuple[str, ...]) -> tuple[int, Counter[str]]:
    service = VerifierService({}, workers=2)
    verifier: Any = service.verifiers_of("math")["math"]
    stop, slots = asyncio.Event(), asyncio.Semaphore(2)
    ordinary = asyncio.create_task(judge_ordinary(service, stop))
    before_mb = resident_mb(os.getpid())
    try:
        outcomes: Counter[str] = Counter()
        for reference in references:
            outcomes += await judge_hostile(service, named, reference, slots)
        stop.set()
        count = await ordinary
        # Both workers answer, and neither has kept what it was fed.
        await asyncio.gather(
            *(service.judge(Task("t", "", "x+1", "math"), [Text(rf"\boxed{{{i}+x}}", None)]) for i in (1, 2, 3, 4))
        )
        assert 1 <= len(verifier.pids()) <= 2
        assert all(resident_mb(pid) < MEMORY_MB for pid in verifier.pids())
        assert resident_mb(os.getpid()) - before_mb < 500
        return count, outcomes
    finally:
        ordinary.cancel()
        await service.close()
        assert verifier.pids() == []


async def test_some_of_each_kind_end_in_time_and_disturb_nobody():
    started = time.perf_counter()
    count, outcomes = await run_both([*few_hostile_texts(3)], (r"1+\sqrt{2}",))
    assert count >= len(ORDINARY)
    assert sum(outcomes.values()) > 50
    assert time.perf_counter() - started < 60


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1500)
async def test_over_a_thousand_end_in_time_and_disturb_nobody():
    count, outcomes = await run_both([*hostile_texts()], REFERENCES)
    assert sum(outcomes.values()) > 3000
    assert count > 100
    assert set(outcomes) == {"wrong", "timeout", "unparseable"}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1500)
async def test_a_lenient_reading_survives_them_too():
    service = VerifierService({}, workers=2)
    try:
        for name, text in hostile_texts():
            (verdict,) = await service.judge(Task(name, "", r"1+\sqrt{7}", "math_lenient"), [Text(text, None)])
            assert verdict.reward == 0.0, (name, text[:80], verdict.scores[0].reason)
            assert verdict.scores[0].seconds < BOUND_S, name
    finally:
        await service.close()
