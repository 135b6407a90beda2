"""How strictly answers are compared, and what that means for two exact numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from verifiers.math_number import Number, unit_of
from verifiers.math_structure import Leaf

Percent = Literal["value", "number", "either"]
Units = Literal["optional", "required", "ignored"]

_TRAILING_UNIT = re.compile(r"(?P<body>.*[^\s\\])\s*(?P<unit>\\text\s*\{[^{}0-9]*\}\s*(?:\^\s*\{[23]\})?|°)$")
# The degrees of \sin 15° belong to its argument.
_OF_AN_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DECIMAL = re.compile(r"[-+]?\s*(?P<whole>[\d,]*)\.(?P<decimals>\d+)")


@dataclass(frozen=True, slots=True)
class Policy:
    """How strictly answers are compared; the options of the verifier `math`."""

    percent: Percent = "value"
    units: Units = "optional"
    tolerance: float = 0.0
    rounded: int = 0
    evaluated: bool = True
    ordered: bool = False
    vectors: bool = False


def numbers_equal(reference: Leaf, answer: Leaf, policy: Policy) -> bool:
    """Whether two leaves that are exact numbers agree in value, unit and percent under a policy."""
    wanted, given = reference.number, answer.number
    assert wanted is not None
    assert given is not None
    if not units_agree(wanted.unit, given.unit, policy.units):
        return False
    margin = rounding_margin(reference, answer, policy)
    return any(
        abs(w - g) <= max(margin, Fraction(policy.tolerance) * abs(w)) for w, g in _percent_readings(wanted, given, policy.percent)
    )


def rounding_margin(reference: Leaf, answer: Leaf, policy: Policy) -> Fraction:
    """How far apart the two may be where one is a decimal of enough digits that rounds the other; 0 where none is."""
    if not policy.rounded:
        return Fraction(0)
    return max(_half_a_last_place(leaf.text, policy.rounded) for leaf in (reference, answer))


def _half_a_last_place(text: str, min_digits: int) -> Fraction:
    decimal = _DECIMAL.fullmatch(text)
    if decimal is None or len((decimal["whole"].replace(",", "") + decimal["decimals"]).lstrip("0")) < min_digits:
        return Fraction(0)
    return Fraction(1, 2 * 10 ** len(decimal["decimals"]))


def _percent_readings(reference: Number, answer: Number, percent: Percent) -> list[tuple[Fraction, Fraction]]:
    as_values = tuple(n.value / 100 if n.is_percent else n.value for n in (reference, answer))
    as_numbers = (reference.value, answer.value)
    return {"value": [as_values], "number": [as_numbers], "either": [as_values, as_numbers]}[percent]


def units_agree(reference: str, answer: str, units: Units) -> bool:
    """Whether the units of a reference and an answer may stand side by side; "" is no unit."""
    if units == "ignored" or reference == answer:
        return True
    return not reference or (units == "optional" and not answer)


def without_unit(leaf: Leaf) -> tuple[str, str]:
    """An expression and the name of the unit after it, "" when there is none."""
    match = _TRAILING_UNIT.match(leaf.text) if not _OF_AN_ANGLE.search(leaf.text) else None
    unit = unit_of(match["unit"], False) if match else None
    if match is None or unit is None or unit[1] != 1:
        return leaf.text, ""
    return match["body"], unit[0]
