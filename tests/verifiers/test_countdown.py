"""An expression is right when it makes the target of the given numbers: exactly, and by arithmetic alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rollout import countdown_tasks
from rollout.countdown_tasks import countdown
from rollout.errors import TaskError
from rollout.tasks import TasksConfig, load_tasks
from verifiers.countdown import MAX_DEPTH, Countdown
from verifiers.countdown_hacks import NUMBERS, TARGET, countdown_hacks
from verifiers.errors import InvalidReference
from verifiers.types import Outcome, Score, Task

ALL, SOME = Countdown(), Countdown(use="some")


def judged(numbers: list[int], target: int, answer: str, verifier: Countdown = ALL) -> Score:
    reference = {"numbers": numbers, "target": target}
    return verifier.score_now(Task("t", "", reference, "countdown"), f"<think>hm</think><answer>{answer}</answer>")


@pytest.mark.parametrize(
    "answer",
    [
        "3*8 - 7",
        "(3)*(8)-7",
        "8 * 3 - 7 = 17",
        "-7+3*8",
        "3 \u00d7 8 \u2212 7",
        "3\u22c58 \u2013 7",
        r"3 \times 8 - 7",
        r"\left(3 \cdot 8\right) - 7",
        "((8*3)-(7))",
        " 3\n*\t8 - 7 ",
        "3*8+(-7)",
    ],
)
def test_any_way_of_writing_it_is_right(answer: str):
    assert judged([3, 8, 7], 17, answer).reason == "makes 17"


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        ("3*8", "wrong", "does not use 7"),
        ("3*8-7*1", "wrong", "uses 1"),
        ("3*8-7-7+7", "wrong", "uses 7 more often than it is given"),
        ("3+8+7", "wrong", "makes 18, not 17"),
        ("3/8/7", "wrong", "makes 3/56, not 17"),
        ("38-7", "wrong", "uses 38"),
        ("3 8 - 7", "wrong", "is no expression: '8' stands where a sign or the end was expected"),
        ("(3*8-7", "wrong", "is no expression: a parenthesis is not closed"),
        ("3*8-7)", "wrong", "is no expression: ')' stands where a sign or the end was expected"),
        ("3**8-7", "wrong", "is no expression: '*' stands where a number was expected"),
        ("3*8*-7", "wrong", "is no expression: '-' stands where a number was expected"),
        ("3*8-7+", "wrong", "is no expression: it ends where a number was expected"),
        ("3*8-7 = 18", "wrong", "is no expression: what follows = is not 17"),
        ("3.0*8-7", "wrong", "is no expression: it holds '.0*8-7'"),
        ("3*8-7 metres", "wrong", "is no expression: it holds 'metres'"),
        ("", "wrong", "does not use 3, 8, 7"),
        ("1" * 1001, "timeout", "the expression is too large: 1001 characters"),
    ],
)
def test_what_is_wrong_is_told(answer: str, outcome: str, reason: str):
    score = judged([3, 8, 7], 17, answer)
    assert (score.outcome, score.reason) == (outcome, reason)


def test_a_division_by_zero_is_no_exception():
    assert judged([1, 2, 2], 1, "1/(2-2)").reason == "is no expression: it divides by zero"


def test_fractions_on_the_way_are_exact():
    assert judged([8, 8, 3, 3], 24, "8/(3-8/3)").outcome is Outcome.CORRECT
    assert judged([1, 3, 3], 1, "1/3*3").outcome is Outcome.CORRECT
    assert judged([10**12, 10**12, 1], 1, "10/1").outcome is Outcome.WRONG


def test_parentheses_nest_up_to_a_bound():
    around = "(" * MAX_DEPTH, ")" * MAX_DEPTH
    assert judged([5], 5, "5".join(around)).outcome is Outcome.CORRECT
    assert (
        judged([5], 5, f"({'5'.join(around)})").reason == "the expression is too large: more than 40 parentheses inside one another"
    )


@pytest.mark.parametrize("answer", list(countdown_hacks()))
@pytest.mark.parametrize("verifier", [ALL, SOME])
def test_no_hack_is_right(answer: str, verifier: Countdown):
    score = judged(list(NUMBERS), TARGET, answer, verifier)
    leaves_one_out = verifier is SOME and answer == "2*3*4"
    assert score.value == (1.0 if leaves_one_out else 0.0), (answer[:80], score.reason)


def test_some_of_the_numbers_are_enough_where_the_config_says_so():
    assert judged([1, 2, 3, 4], 24, "2*3*4", SOME).outcome is Outcome.CORRECT
    assert judged([1, 2, 3, 4], 24, "2*2*3*2", SOME).reason == "uses 2 more often than it is given"


Tree = Any  # a number, or (tree, sign, tree)
TREES = st.recursive(st.integers(0, 30), lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner), max_leaves=8)


def numbers_of(tree: Tree) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        yield from itertools.chain(numbers_of(tree[0]), numbers_of(tree[2]))


def written(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({written(tree[0])} {tree[1]} {written(tree[2])})"


def value(tree: Tree) -> Fraction | None:
    """What a plain walk makes of it; None when it divides by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree[0]), value(tree[2])
    if left is None or right is None or (tree[1] == "/" and right == 0):
        return None
    return {"+": left + right, "-": left - right, "*": left * right}[tree[1]] if tree[1] != "/" else left / right


@given(TREES, st.integers(-50, 50))
@settings(max_examples=300, deadline=None)
def test_every_expression_is_right_for_its_value_and_wrong_for_any_other(tree: Tree, off: int):
    made = value(tree)
    assume(made is not None and made.denominator == 1 and abs(made) < 10**15 - 50)
    assert made is not None
    numbers, target = sorted(numbers_of(tree)), int(made)
    assert judged(numbers, target, written(tree)).outcome is Outcome.CORRECT
    assert judged(numbers, target + off, written(tree)).outcome is (Outcome.WRONG if off else Outcome.CORRECT)
    assert judged([*numbers, 1], target, written(tree)).reason == "does not use 1"


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 20)), min_size=1, max_size=8), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_without_parentheses_products_come_first_and_from_the_left(steps: list[tuple[str, int]], first: int):
    total, product = Fraction(0), Fraction(first)
    for sign, number in steps:  # a sum of products, as one does it by hand
        if sign in "+-":
            total, product = total + product, Fraction(number if sign == "+" else -number)
        else:
            product = product * number if sign == "*" else product / number
    total += product
    answer = f"{first}{''.join(f' {sign} {number}' for sign, number in steps)}"
    score = judged([first, *(number for _, number in steps)], 10**15, answer)
    assert score.reason == f"makes {total}, not {10**15}"


@given(st.text(alphabet="0123456789+-*/() =.\\\u00d7\u2212e_,", max_size=40) | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_verdict(text: str):
    assert judged([1, 2], 3, text).outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("24", 'expected a reference such as {"numbers": \\[3, 8, 7\\], "target": 17}, found \'24\''),
        ({"numbers": [1, 2]}, "target is missing"),
        ({"numbers": [], "target": 1}, "numbers"),
        ({"numbers": [1.5], "target": 1}, "a whole number"),
        ({"numbers": [-1], "target": 1}, "0 or more"),
        ({"numbers": [1, 2], "target": 3, "solution": "1*2"}, "its solution '1\\*2' makes 2, not 3. Mend it, or leave it out."),
    ],
)
def test_a_reference_of_no_use_is_refused(reference: Any, message: str):
    with pytest.raises(InvalidReference, match=message):
        ALL.prepare(reference)


def test_what_reasoning_gym_says_beside_the_numbers_is_not_read():
    ALL.prepare({"numbers": [6, 61], "target": 67, "expression": "6 + 61", "difficulty": {"numbers": [4, 6]}})


def test_generated_puzzles_have_solutions_and_come_again_with_their_seed():
    rows = list(countdown(size=300, seed=5))
    assert rows == list(countdown(size=400, seed=5))[:300]
    assert rows[:50] != list(countdown(size=50, seed=6))
    for row in rows:
        ALL.prepare(row["reference"])
        stated = ALL.example(row["reference"])
        assert stated is not None
        assert ALL.score_now(Task("t", "", row["reference"], "countdown"), stated).outcome is Outcome.CORRECT
        assert all(str(number) in row["question"] for number in (*row["numbers"], row["target"]))
    assert Counter(len(row["numbers"]) for row in rows).keys() == {3, 4}
    assert {sign for row in rows for sign in "+-*/" if sign in row["reference"]["solution"]} == set("+-*/")


def test_impossible_sizes_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TaskError, match="min_numbers is 5, max_numbers 4"):
        list(countdown(min_numbers=5))
    monkeypatch.setattr(countdown_tasks, "MAX_TRIES", 20)
    with pytest.raises(TaskError, match="no puzzle of 20 numbers up to 1000000 with a target up to 1 was found in 20 tries"):
        next(countdown(min_numbers=20, max_numbers=20, largest=10**6, max_target=1))


def test_a_run_finds_them_by_their_source():
    tasks = load_tasks(
        TasksConfig(
            source="python:rollout.countdown_tasks.countdown?size=20", reference="reference", rewards="countdown", held_out=4
        )
    )
    assert len(tasks.train) == 16
    assert set(tasks.train[0].reference) == {"numbers", "target", "solution"}
