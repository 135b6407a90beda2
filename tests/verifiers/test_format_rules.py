"""The form and the length of a completion."""

from __future__ import annotations

import time

import pytest

from verifiers.errors import VerifierError
from verifiers.registry import find
from verifiers.types import Outcome, Score, Task

TASK = Task("t", "", None, "mix")


async def score(name: str, text: str, num_tokens: int | None = None, **options: object) -> Score:
    return await find(name).build(options).score(TASK, text, num_tokens=num_tokens)


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


async def test_a_catastrophic_pattern_ends_as_a_timeout():
    started = time.perf_counter()
    judged = await score("format", "a" * 60 + "b", pattern="(a|a|aa)+(a|aa)+c")
    assert judged.outcome in (Outcome.TIMEOUT, Outcome.WRONG)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("num_tokens", "value"),
    # DAPO's own numbers (section 4.1): 20,480 tokens at most, of which a buffer of 4,096.
    [(0, 1.0), (16384, 1.0), (17408, 0.75), (18432, 0.5), (20479, 1 / 4096), (20480, 0.0), (30000, 0.0)],
)
async def test_length_falls_linearly_over_the_buffer(num_tokens: int, value: float):
    judged = await score("length", "", num_tokens, max_tokens=20480, buffer_tokens=4096)
    assert judged.value == pytest.approx(value)


@pytest.mark.parametrize(("num_tokens", "value"), [(10, 1.0), (11, 0.0)])
async def test_without_a_buffer_length_is_a_cliff(num_tokens: int, value: float):
    assert (await score("length", "", num_tokens, max_tokens=10, buffer_tokens=0)).value == value


async def test_an_unknown_length_is_our_fault_and_says_so():
    judged = await score("length", "", None, max_tokens=10, buffer_tokens=5)
    assert judged.outcome is Outcome.INFRA
    assert "number of tokens" in judged.reason
