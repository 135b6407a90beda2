"""Whether what a program answered is what was expected. Both sides are plain data; nothing of the program's can run here.

Values are compared as Python compares built-in values, with three differences. A bool is no number, though True == 1: a test
that expects True is not passed by 1. NaN equals NaN, since whoever expects it cannot mean anything else. And where the reference
declares a tolerance, a float may be that much off.

So 5 equals 5.0 (JSON has one kind of number, and not every writer of it keeps them apart), a set equals a frozenset, and [1, 2]
does not equal (1, 2): a function that was asked for a list and returned a tuple did not do as asked. What JSON cannot say, a tuple
for one, is written in the notation of sandbox/agent/calls.py, in references that declare `"typed": true`.
"""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4})?")
MAX_SHOWN = 120


def equal(expected: Any, answer: Any, *, tolerance: float = 0.0) -> bool:
    """Whether two values of plain data are equal. `tolerance` is allowed as |answer - expected| / max(1, |expected|)."""
    if _is_number(expected) and _is_number(answer):
        return _equal_numbers(expected, answer, tolerance)
    if isinstance(expected, set | frozenset) and isinstance(answer, set | frozenset):
        return len(expected) == len(answer) and frozenset(map(_key, expected)) == frozenset(map(_key, answer))
    if type(expected) is not type(answer):
        return False
    if isinstance(expected, list | tuple):
        return len(expected) == len(answer) and all(
            equal(one, other, tolerance=tolerance) for one, other in zip(expected, answer, strict=True)
        )
    if isinstance(expected, dict):
        given = {_key(key): value for key, value in answer.items()}
        return len(expected) == len(answer) and all(
            (place := _key(key)) in given and equal(value, given[place], tolerance=tolerance) for key, value in expected.items()
        )
    return expected == answer


def output_difference(expected: str, output: str, *, tolerance: float = 0.0) -> str | None:
    """How two texts differ token by token (runs of whitespace separate them), None when they do not.

    With a tolerance, tokens that are both decimal numbers may differ by it.
    """
    wanted, given = expected.split(), output.split()
    for number, (one, other) in enumerate(zip(wanted, given, strict=False), 1):
        if one != other and not (tolerance and _near(one, other, tolerance)):
            return f"token {number} is {shown(other)}, expected {shown(one)}"
    if len(wanted) != len(given):
        return f"{len(given)} tokens instead of {len(wanted)}"
    return None


def shown(value: Any) -> str:
    """A value for a person to read, cut short."""
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _is_number(value: Any) -> bool:
    return type(value) in (int, float, complex)


def _equal_numbers(expected: Any, answer: Any, tolerance: float) -> bool:
    if expected == answer or (expected != expected and answer != answer):
        return True
    if not tolerance or (type(expected) is int and type(answer) is int):
        return False
    try:
        error = abs(answer - expected) / max(1.0, abs(expected))
    except OverflowError:
        return False
    return error <= tolerance


def _near(one: str, other: str, tolerance: float) -> bool:
    if not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return False
    expected, answer = float(one), float(other)
    return math.isfinite(expected) and math.isfinite(answer) and _equal_numbers(expected, answer, tolerance)


def _key(value: Any) -> Any:
    """Something hashable that is equal for values that are equal here."""
    if type(value) is bool:
        return ("bool", value)
    if type(value) is float and math.isnan(value):
        return ("nan",)
    if type(value) is tuple:
        return ("tuple", *map(_key, value))
    if type(value) is frozenset:
        return frozenset(map(_key, value))
    return value
