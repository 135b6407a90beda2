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

from verifiers.errors import InvalidReference
from verifiers.math_answer import MathAnswer
from verifiers.registry import find
from verifiers.types import Outcome, Score, Task

Judge = Callable[..., Score]

RIGHT = [
    ("42", "42.0"), ("42", "x = 42"), ("42", r"x \approx 42"), ("42", "42 dollars"), ("42", r"42\text{ eggs}"), ("42", r"\frac{84}{2}"),
    ("1/2", "0.5"), ("1000", "1{,}000"), ("1000.99", "1000,99"), ("x = 5", "5"), ("5", "5 = x"), ("|AB| = 1", "1"), ("(p,q)=(3,2)", "(3,2)"),
    ("50%", "0.5"), (r"28\%", "28 percent"), (r"15\text{ cm}^2", "15"), ("15 cm", r"15\text{ centimeters}"), (r"90^\circ", "90"),
    (r"2\sqrt{2}", r"\sqrt{8}"), (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt3}"), (r"\frac{3\pi}{4}", r"\frac34\pi"), (r"\ln 8", r"3\ln 2"),
    ("(x+1)^2", "x^2+2x+1"), (r"\sin 2x", r"2\sin x\cos x"), (r"\tan^2(y)+1", r"\sec^2(y)"), ("x^{2/3}", r"\sqrt[3]{x^2}"), ("2+3i", "3i+2"),
    (r"\{1,2\}", r"\{2,1\}"), ("1,2", "2 and 1"), ("1,2", r"\{1, 2\}"), ("1 and 2 and 3", "1,2,3"), ("1,2", r"\boxed{2} and \boxed{1}"),
    ("(0.5, 2)", r"\left(\frac12, 2\right)"), ("[0,1)", r"\left[0, 1\right)"), (r"\pm 2", "-2, 2"), (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    ("x > 5", r"(5, \infty)"), (r"[-2,7]", r"-2 \le x \le 7"), (r"\{x \mid x > 5\}", r"(5,\infty)"), ("x < 1", "-x > -1"), (r"x \geq 5", "5 <= x"),
    (r"(-\infty,3]\cup[5,\infty)", r"x \leq 3 \text{ or } x \geq 5"), (r"x \neq 3", "x != 3"), (r"x \in \{1,2\}", "1, 2"),
    ("3x+5y=7", "6x+10y-14=0"), ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"), ("x=1,y=2", "y=2,x=1"), ("AB=4,CD=5", "4, 5"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1 & 2 \\3 & 4\end{array}\right]"), ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
    (r"\text{(C)}", "C"), (r"\text{Evelyn}", "Evelyn"), ("even", r"\text{Even}"), (r"\frac{1}{2004!}", r"\frac{1}{2004!}"), ("204_5", "204_{5}"),
    ("12:00", "12:00"), ("7:32", "S_1:S_2 = 7:32"), ("####  72", "72"), ("4 + 4 = <<4+4=8>>8\n#### 1,008", "1008"), (r"so \boxed{3}.", "3"), (72, "72"), (0.5, r"\frac12"),
]  # fmt: skip

WRONG = [
    # another number, however near
    ("42", "43"), ("-5", "5"), ("1/3", "0.333333"), ("2", "2.0000000001"), ("0", r"10^{-200}"), ("1", "0.999999999999"),
    (r"\sqrt{2}", "1.41421356237"), (r"\sqrt{2}", r"\sqrt{2}+10^{-60}"), ("x", "x+10^{-50}"), (r"\pi", "22/7"), ("e", "2.718281828"),
    # the question restated, work left undone
    ("68", "23+45"), ("68", "23+45+0x"), ("4", "2+2"), ("120", "5!"), ("3", r"\sqrt{9}"), ("6", r"\gcd(12,18)"), ("2", r"\log_2 4"), ("1", "|1-2|"),
    ("1", r"\sin^2 x+\cos^2 x"), (r"\frac{\pi^2}{6}", r"\sum_{n=1}^\infty \frac{1}{n^2}"), (r"\sqrt{2}", r"\lim_{x\to 2}\sqrt{x}"),
    (r"\ln 2", r"\int_1^2 \frac{1}{x} dx"), (r"\sqrt2 \cdot 64", r"\sqrt2 \cdot 2^{2^{2}} \cdot 4"),
    # several answers at once
    ("42", "41 or 42"), ("42", "41, 42"), ("42", r"\boxed{41}, \boxed{42}"), ("42", r"\boxed{41} hm \boxed{42}"), ("42", r"\boxed{42} hm \boxed{41}"),
    ("42", "$41$ or $42$"), ("42", r"42 \pm 1"), (r"\pm 2", "2"), ("6", r"6 \text{ or } 7"), ("yes", "yes and no"), ("42", "x = 41 = 42"), ("42", "x = 42 = 41"),
    # not a statement of the value
    ("42", "5=42"), ("42", "9 = 42"), ("42", r"x \neq 42"), ("42", "x > 42"), ("42", r"41 \neq 42"), ("2x+z=1", "1"), ("a^2+b=0", "0"), ("2x+3", "2x+3=0"),
    # digits joined, split or picked out
    ("12", "1 2"), ("5", "2 3"), ("32349", "32, 349"), ("32,349", "32, 349"), ("1000000", "1,000,00"), ("52", "5\u00b2"), ("42", "4 2"), ("42", "4\x002"), ("5", "5x"),
    ("5", "5 xy"), ("5", r"5\text{ million}"), ("18", "18 half"), ("2", r"2\text{ thirds}"), ("5", r"5 \pmod 7"), ("42", "the 42nd of 43"),
    # another shape
    ("(1,2)", r"\{1,2\}"), (r"\{1,2\}", "(1,2)"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"), ("(1,2)", "(2,1)"), ("(1,2)", "(1,2,3)"), ("42", "[42]"), (r"\emptyset", "0"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2&3&4\end{pmatrix}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    # another direction, name, unit, letter
    ("x > 5", "x < 5"), ("x > 5", r"x \geq 5"), ("x < 1", "x > -1"), ("x = 5", "y = 5"), ("15 cm", "15 m"), ("18 dollars", "18 cents"), ("42", "42%"), ("0.42", "42"),
    ("C", "c"), ("f(x)", "f'(x)"), ("f(x)", "f(y)"), ("x", r"\sqrt{x^2}"), (r"\ln x", r"\log x"), ("1/2x", "x/2"), (r"\frac12", r"\sin 30^\circ"), ("204_5", "204"),
    ("12:00", "1:00"), ("odd", "even"), (r"\text{no solution}", r"\text{one solution}"), (r"\frac{1}{0}", r"\frac{2}{0}"), (r"\infty", r"-\infty"), ("3", "three"),
]  # fmt: skip


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
