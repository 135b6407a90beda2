"""The form of a completion."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from verifiers.errors import VerifierError
from verifiers.registry import find
from verifiers.reward import RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Score, Task

TASK = Task("t", "", None, "mix")


async def score(name: str, text: str, **options: object) -> Score:
    verifier = find(name).build(options)
    try:
        return await verifier.score(TASK, text)
    finally:
        await verifier.close()


@pytest.mark.parametrize(
    ("preset", "text", "passes"),
    [
        ("think_answer", "<think>a</think><answer>b</answer>", True),
        ("think_answer", " <think>\na\n</think>\n\n<answer>b</answer>\n", True),
        ("think_answer", "<think>a</think><answer>b</answer> more", False),
        ("think_answer", "so <think>a</think><answer>b</answer>", False),
        ("think_answer", "<think>a</think> so <answer>b</answer>", False),
        ("think_answer", "<answer>b</answer><think>a</think>", False),
        ("think_answer", "<think>a<think></think><answer>b</answer>", False),
        ("think_answer", "<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("think_answer", "<think></think><answer>b</answer>", False),
        ("think_answer", "<think>a</think><answer> </answer>", False),
        ("think_answer", "<think>a</think>", False),
        ("think_answer", "", False),
        ("think_boxed", "<think>a</think> It is \\boxed{5}.", True),
        ("think_boxed", "<think>a \\boxed{4}</think> $\\boxed{\\frac{1}{2}}$", True),
        ("think_boxed", "<think>a</think> \\boxed{5} indeed", False),
        ("think_boxed", "<think>a</think> \\boxed{5} \\boxed{5}", False),
        ("think_boxed", "<think>a</think> 5", False),
        ("think_boxed", "<think>a \\boxed{5}</think>", False),
        ("think_boxed", "\\boxed{5}", False),
        ("think_boxed", "<think>a</think><think>b</think>\\boxed{5}", False),
        ("boxed", "It is \\boxed{5}", True),
        ("boxed", "It is \\[\\boxed{5}.\\]", True),
        ("boxed", "It is \\boxed{5", False),
        ("boxed", "It is \\boxed{ }", False),
        ("boxed", "\\boxed{5} or \\boxed{6}", False),
    ],
)
async def test_a_preset_accepts_only_its_form(preset: str, text: str, passes: bool):
    judged = await score("format", text, preset=preset)
    assert (judged.value == 1.0) is passes, judged.reason


async def test_a_pattern_of_ones_own_must_match_the_whole_text():
    assert (await score("format", "abc", pattern="[a-c]+")).outcome is Outcome.CORRECT
    assert (await score("format", "abcd", pattern="[a-c]+")).outcome is Outcome.WRONG


def test_a_pattern_that_does_not_compile_is_refused_with_the_options():
    with pytest.raises(VerifierError, match="is not a regular expression"):
        find("format").build({"pattern": "("})


CATASTROPHES = [
    ("(a|a|aa)+(a|aa)+c", "a" * 60 + "b"),
    (r"(\w+\s*)+:", "word " * 40),
    ("(.*a){25}", "a" * 24 + "b" * 5000),
    ("(x+x+)+y", "x" * 5000),
]


@pytest.mark.parametrize(
    ("pattern", "text"), [CATASTROPHES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CATASTROPHES[1:])]
)
async def test_a_catastrophic_pattern_ends_within_its_bound(pattern: str, text: str):
    verifier = find("format").build({"pattern": pattern}, workers=1)
    try:
        await verifier.score(TASK, "warm", num_tokens=None)  # a worker's start is not charged
        started = time.perf_counter()
        judged = await verifier.score(TASK, text)
        # Twice half a second of the processor, and a fresh worker in between; on the clock of a busy machine many times that.
        assert time.perf_counter() - started < 30
        assert judged.outcome in (Outcome.TIMEOUT, Outcome.WRONG)
        assert (await verifier.score(TASK, "zz")).outcome is Outcome.WRONG
    finally:
        await verifier.close()


async def test_a_pattern_that_never_ends_holds_up_nobody_else():
    service = VerifierService(
        {"mine": RewardMix.model_validate({"format": {"options": {"pattern": "(a|a|aa)+(a|aa)+c"}}})}, workers=1
    )
    judging = asyncio.create_task(service.judge(Task("t", "", None, "mine"), [Text("a" * 60 + "b", None)]))
    others = Task("t", "", "42", "math")
    longest_s = 0.0
    while not judging.done():
        started = time.perf_counter()
        (verdict,) = await service.judge(others, [Text("\\boxed{42}", None)])
        longest_s = max(longest_s, time.perf_counter() - started)
        assert verdict.reward == 1.0
        await asyncio.sleep(0.01)
    assert (await judging)[0].reward == 0.0
    assert longest_s < 0.4
    await service.close()


@pytest.mark.parametrize(
    ("options", "text", "passes"),
    [
        ({"names": ["plan", "code"]}, "so <plan>a</plan> then <code>b</code>.", True),
        ({"names": ["plan", "code"], "alone": True}, "<plan>a</plan>\n<code>b</code>\n", True),
        ({"names": ["plan", "code"], "alone": True}, "<plan>a</plan>, <code>b</code>", False),
        ({"names": ["plan", "code"]}, "<code>b</code><plan>a</plan>", False),
        ({"names": ["plan", "code"]}, "<plan>a<code>b</plan></code>", False),
        ({"names": ["plan"]}, "<plan>a</plan><plan>b</plan>", False),
        ({"names": ["plan"]}, "<plan> </plan>", False),
        ({"names": ["plan"], "filled": False}, "<plan> </plan>", True),
        ({"names": ["plan"]}, "<plan>a", False),
    ],
)
async def test_tags_of_ones_own_stand_once_and_in_order(options: dict[str, Any], text: str, passes: bool):
    judged = await score("tags", text, **options)
    assert (judged.value == 1.0) is passes, judged.reason
