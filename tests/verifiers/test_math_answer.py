"""Right answers in other words are right; near ones, other ones and evasive ones are wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from math_cases import RIGHT, WRONG

from verifiers.errors import InvalidReference
from verifiers.math_answer import MathAnswer
from verifiers.registry import find
from verifiers.types import Outcome, Score, Task

Judge = Callable[..., Score]


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_an_equal_answer_is_right(judge: Judge, reference: object, answer: str):
    score = judge(reference, answer)
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_an_answer_that_is_not_equal_is_wrong(judge: Judge, reference: str, answer: str):
    score = judge(reference, answer)
    assert score.value == 0.0, score.reason
    assert score.outcome is Outcome.WRONG


@pytest.mark.parametrize("reference", [reference for reference, _ in (*RIGHT, *WRONG)])
def test_a_reference_equals_itself(judge: Judge, math: MathAnswer, reference: object):
    math.prepare(reference)
    text = str(reference).rpartition("####")[2].strip()
    assert judge(reference, text).value == 1.0


@pytest.mark.parametrize(
    "reference",
    ["", "  ", "#### ", None, True, [], {}, "}{", r"\frac{1}{2", "(1, 2", "?!", r"\boxed{}", "9" * 5000, "{" * 60 + "1" + "}" * 60],
)
def test_a_reference_that_is_no_answer_is_refused_when_tasks_are_loaded(math: MathAnswer, reference: Any):
    with pytest.raises(InvalidReference):
        math.prepare(reference)


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("42", Outcome.UNPARSEABLE, "no \\boxed"),
        ("<think>\\boxed{42}", Outcome.UNPARSEABLE, "nothing after the reasoning"),
        ("<think>\\boxed{42}</think> so 42", Outcome.UNPARSEABLE, "no \\boxed"),
        ("<think>\\boxed{41}</think> \\boxed{42}", Outcome.CORRECT, "same text"),
        ("\\boxed{41} and after thought \\boxed{42}", Outcome.WRONG, "hedged"),
        ("\\boxed{42.0} as said \\boxed{42}", Outcome.CORRECT, "same text"),
        ("\\boxed{43}", Outcome.WRONG, "is not 42"),
        ("\\boxed{}", Outcome.WRONG, "is not 42"),
        ("\\boxed{" + "9" * 1000 + "}", Outcome.TIMEOUT, "too large"),
        ("\\boxed{9^{9^{9^{9^{9}}}}}", Outcome.TIMEOUT, "tower"),
        ("\\boxed{2^{100000}}", Outcome.TIMEOUT, "exponent"),
        ("\\boxed{99999!}", Outcome.TIMEOUT, "factorial"),
    ],
)
def test_the_outcome_says_what_happened(math: MathAnswer, text: str, outcome: Outcome, reason: str):
    score = asyncio.run(math.score(Task("t", "", "42", "math"), text))
    assert score.outcome is outcome
    assert reason in score.reason


@pytest.mark.parametrize(
    ("options", "reference", "answer", "value"),
    [
        ({"percent": "number"}, "42", r"42\%", 1.0),
        ({"percent": "number"}, "0.42", r"42\%", 0.0),
        ({"percent": "either"}, "42", r"42\%", 1.0),
        ({"percent": "either"}, "0.42", r"42\%", 1.0),
        ({"tolerance": 0.01}, "3.14159", "3.15", 1.0),  # |3.15 - 3.14159| / 3.14159 = 0.0027
        ({"tolerance": 0.01}, "3.14159", "3.2", 0.0),  # 0.0186
        ({"tolerance": 0.01}, r"\pi", "3.14", 1.0),
        ({"tolerance": 0.01}, "0", "0.001", 0.0),  # relative to 0, nothing else is near
        ({"units": "required"}, "15 cm", "15", 0.0),
        ({"units": "required"}, "15", "15 cm", 1.0),
        ({"units": "ignored"}, "15 cm", "15 m", 1.0),
        ({"evaluated": False}, "10", "9+1", 1.0),
        ({"evaluated": False}, "10", "9+2", 0.0),
        (
            {"evaluated": False},
            r"\begin{pmatrix}6&8\end{pmatrix}",
            r"\begin{pmatrix}1&2\end{pmatrix}+\begin{pmatrix}5&6\end{pmatrix}",
            1.0,
        ),
        ({"rounded": 4}, "1/3", "0.3333", 1.0),
        ({"rounded": 4}, "1/3", "0.333", 0.0),  # too few digits
        ({"rounded": 4}, "1/3", "0.3334", 0.0),  # not the nearest
        ({"rounded": 4}, r"(\frac35, \frac83]", "(0.6, 2.6667]", 1.0),
        ({"rounded": 4}, "0.3333", r"\frac13", 1.0),
        ({"rounded": 4}, r"\sqrt{2}", "1.4142", 1.0),
        ({"rounded": 4}, r"\sqrt{2}", "1.4143", 0.0),
        ({"rounded": 4}, "16386.20", "16386.17", 0.0),
        ({"rounded": 4}, "1000", "1001", 0.0),
        ({"ordered": True}, "1, 2", "2, 1", 0.0),
        ({"ordered": True}, "1, 2", "1, 2.0", 1.0),
        ({"ordered": True}, r"\{1, 2\}", "2, 1", 1.0),  # a set has no order
        ({"vectors": True}, r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", 1.0),
        ({"vectors": True}, r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)", 0.0),
    ],
)
def test_policies_are_options(judge: Judge, math: MathAnswer, options: dict[str, Any], reference: str, answer: str, value: float):
    built: Any = find("math").build(options)
    built._pool = math._pool
    assert judge(reference, answer, built).value == value


def test_lenient_reads_what_has_no_box_and_is_not_the_default(math: MathAnswer):
    lenient: Any = find("math").build({"lenient": True})
    task = Task("t", "", "42", "math")
    assert asyncio.run(lenient.score(task, "so we get 42.")).value == 1.0
    assert asyncio.run(lenient.score(task, "42 or 43")).value == 0.0
    assert asyncio.run(math.score(task, "so we get 42.")).value == 0.0


@given(st.integers(-(10**9), 10**9), st.integers(1, 1000), st.integers(-(10**9), 10**9))
def test_fractions_are_right_exactly_when_they_are_equal(numerator: int, denominator: int, other: int):
    verifier = MathAnswer()
    reference = Task("t", "", f"{numerator}/{denominator}", "math")
    same = asyncio.run(verifier.score(reference, rf"\boxed{{\frac{{{3 * numerator}}}{{{3 * denominator}}}}}"))
    different = asyncio.run(verifier.score(reference, rf"\boxed{{\frac{{{other}}}{{{denominator}}}}}"))
    assert same.value == 1.0
    assert (different.value == 1.0) is (other == numerator)
    assert not verifier._pool.pids()


GSM8K = Path("/work/shared/data/gsm8k_test.jsonl")


@pytest.mark.skipif(not GSM8K.exists(), reason="needs GSM8K, which is not part of the project")
def test_every_answer_of_gsm8k_equals_itself_without_a_worker():
    verifier = MathAnswer()

    async def verify_all() -> None:
        for line in GSM8K.read_text().splitlines():
            solution = json.loads(line)["answer"]
            answer = solution.rpartition("####")[2].strip()
            task = Task("t", "", solution, "math")
            assert (await verifier.score(task, rf"\boxed{{{answer}}}")).value == 1.0
            assert (await verifier.score(task, rf"\boxed{{{answer}7}}")).value == 0.0

    asyncio.run(verify_all())
    assert not verifier._pool.pids()
