"""When an answer equals what was expected."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.agent.calls import decode, encode
from verifiers.code_compare import equal, output_difference, shown

NAN = math.nan
BIG = 10**5000

EQUAL = [
    (5, 5),
    (5, 5.0),
    (0.0, -0.0),
    (BIG, BIG),
    (2j, 2j),
    (3.0, 3 + 0j),
    (NAN, float("nan")),
    ([NAN, {"a": NAN}], [float("nan"), {"a": float("nan")}]),
    (True, True),
    (None, None),
    ("a\ud800", "a\ud800"),
    (b"a", b"a"),
    ([], []),
    ({1, 2.0}, frozenset({1.0, 2})),
    ({(1, True), frozenset({NAN})}, {(1.0, True), frozenset({float("nan")})}),
    ({1: "a", (2, "b"): [1]}, {(2, "b"): [1], 1.0: "a"}),
    ({True: 1}, {True: 1}),
]

DIFFERENT = [
    (5, 6),
    (5, "5"),
    (1, True),
    (True, 1),
    (0, False),
    (1.0, True),
    (0, None),
    ("", None),
    ([], None),
    (0.1 + 0.2, 0.3),
    (2**53 + 1, float(2**53)),
    (BIG, BIG + 1),
    (1.0, BIG),
    (NAN, 1.0),
    (1.0, NAN),
    (math.inf, -math.inf),
    ([1, 2], (1, 2)),
    ((1, 2), [1, 2]),
    ([1, 2], [2, 1]),
    ([1], [1, 1]),
    ([1, 1], [1]),
    ([[1], [2]], [[1], [3]]),
    ([True], [1]),
    ("a", b"a"),
    ({1}, {True}),
    ({1, 2}, {1, 3}),
    ({1}, [1]),
    (set(), {}),
    ({1: 1}, {True: 1}),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": 1, "b": 2}, {"a": 1}),
    ({"a": 1}, {"b": 1}),
    ({"a": [1]}, {"a": [2]}),
    ({("bool", True)}, {True}),
    ({("nan",)}, {NAN}),
]


@pytest.mark.parametrize(("expected", "answer"), EQUAL, ids=lambda value: type(value).__name__)
def test_equal_values_are_equal(expected: Any, answer: Any):
    assert equal(expected, answer)
    assert equal(expected, decode(encode(answer)))


@pytest.mark.parametrize(("expected", "answer"), DIFFERENT, ids=lambda value: type(value).__name__)
def test_different_values_are_different(expected: Any, answer: Any):
    assert not equal(expected, answer)
    assert not equal(answer, expected)


@pytest.mark.parametrize(
    ("expected", "answer", "is_equal"),
    [
        (100.0, 100.00001, True),  # 1e-7 of it
        (100.0, 100.001, False),
        (0.0, 1e-7, True),
        (0.0, 1e-5, False),
        (1, 1.0000001, True),
        (10**9, 10**9 + 1, False),  # integers are exact
        ([1.0, {"a": (2.0,)}], [1.0000001, {"a": (2.0000001,)}], True),
        (1.0, NAN, False),
        (math.inf, 1e300, False),
        (1.0, math.inf, False),
        (1.0, BIG, False),
        (1.0, True, False),
        (1.0, "1.0000001", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_tolerance_holds_for_floats_alone(expected: Any, answer: Any, is_equal: bool):
    assert equal(expected, answer, tolerance=1e-6) is is_equal


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@pytest.mark.slow
@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_value_equals_itself_after_a_journey(value: Any):
    assert equal(value, decode(encode(value)))


@pytest.mark.parametrize(
    ("expected", "output", "difference"),
    [
        ("5", "5\n", None),
        ("1 2\n3", " 1\t2 3 \r\n", None),
        ("", "", None),
        ("", "0", "1 tokens instead of 0"),
        ("5", "", "0 tokens instead of 1"),
        ("1 2", "1 3", "token 2 is '3', expected '2'"),
        ("1 2", "1 2 2", "3 tokens instead of 2"),
        ("5", "5.0", "token 1 is '5.0', expected '5'"),
        ("yes", "YES", "token 1 is 'YES', expected 'yes'"),
        ("12", "1 2", "token 1 is '1', expected '12'"),
    ],
)
def test_output_is_compared_token_by_token(expected: str, output: str, difference: str | None):
    assert output_difference(expected, output) == difference


@pytest.mark.parametrize(
    ("expected", "output", "is_equal"),
    [
        ("3.1415926", "3.14159", True),
        ("3.1415926", "3.1415", False),
        ("1e3", "1000.0001", True),
        ("5", "5.0", True),
        ("nan", "NaN", False),
        ("inf", "Infinity", False),
        ("1e9999", "1e9998", False),
        ("1_000", "1000", False),
        ("0x10", "16", False),
        ("word", "ward", False),
    ],
)
def test_with_a_tolerance_decimal_tokens_may_differ_by_it(expected: str, output: str, is_equal: bool):
    assert (output_difference(expected, output, tolerance=1e-5) is None) is is_equal


def test_what_is_shown_is_short():
    assert shown("x" * 1000) == "'" + "x" * 116 + "..."
    assert shown(BIG) == "a very large int"
    assert shown([BIG]) == "a very large list"
