"""The code quickstart's tasks can be answered, its pupil is hasty as often as it says, and hidden cases tell the two apart."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from grpo.quickstart_code import FUNCTIONS, HIDDEN_INPUTS, one_liners
from tests.fakes import FakeSandbox
from verifiers.types import Outcome, Task
from verifiers.unit_tests import UnitTests

ROWS = list(itertools.islice(one_liners(hasty=0.5), 600))


def is_right(row: dict[str, Any]) -> bool:
    """Whether the demonstration's function has the values of the hidden cases, worked out here by hand."""
    (left, sign, right) = re.fullmatch(r".*return (\w+)([-+*])(\w+)", row["demonstration"]).groups()  # type: ignore[union-attr]
    values = []
    for case in row["reference"]["cases"]:
        one, other = (case["args"][0] if side == "x" else int(side) for side in (left, right))
        values.append({"+": one + other, "-": one - other, "*": one * other}[sign] == case["expected"])
    return all(values)


def test_examples_and_hidden_cases_are_of_one_function_and_share_no_input():
    by_expression = {function.expression: function for function in FUNCTIONS}
    assert len(by_expression) == 26
    for row in ROWS:
        shown = [(int(x), int(y)) for x, y in re.findall(r"f\((\d)\)=(-?\d+)", row["examples"])]
        hidden = [(case["args"][0], case["expected"]) for case in row["reference"]["cases"]]
        assert len(shown) == 3
        assert [x for x, _ in hidden] == list(HIDDEN_INPUTS)
        assert not {x for x, _ in shown} & set(HIDDEN_INPUTS)
        fitting = [f for f in by_expression.values() if all(f.value(x) == y for x, y in shown)]
        assert len(fitting) == 1
        assert all(fitting[0].value(x) == y for x, y in hidden)


def test_the_hasty_pupil_fits_the_first_example_and_the_careful_one_all():
    hasty, careful = list(one_liners(hasty=1.0, size=600)), list(one_liners(hasty=0.0, size=600))
    assert all(is_right(row) for row in careful)
    assert 0.25 < sum(map(is_right, hasty)) / 600 < 0.45  # only what happens to be an addition
    for row in hasty:
        (x, y), *_ = re.findall(r"f\((\d)\)=(-?\d+)", row["examples"])
        added = re.search(r"return x([-+]\d+)$", row["demonstration"])
        assert added is not None
        assert int(x) + int(added[1]) == int(y)


def test_the_same_rows_come_again_and_hardly_any_prompt_twice():
    assert list(itertools.islice(one_liners(hasty=0.5), 600)) == ROWS
    assert list(one_liners(hasty=0.5, size=9, seed=1)) != ROWS[:9]
    assert len({row["examples"] for row in ROWS}) > 550


@pytest.mark.parametrize("row", ROWS[:12], ids=lambda row: row["examples"])
async def test_the_judge_agrees_on_every_demonstration(row: dict[str, Any]):
    verifier = UnitTests(sandbox=FakeSandbox())
    score = await verifier.score(Task("t", row["examples"], row["reference"], "code"), row["demonstration"])
    assert (score.outcome is Outcome.CORRECT) == is_right(row)
