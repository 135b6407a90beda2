"""Exact numbers as people write them: integers, decimals, fractions, mixed numbers, with a unit or a percent sign.

The text is normalized (see `math_text`). What is not plainly one number is None: digits are never picked out of anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_POWER_BITS = 4096

_DIGITS = r"(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?:[ ]\d{3})+)|\d+)"
_PLAIN = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?")
_MAX_PLAIN = 40
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_SIGNED = rf"[-+]?\s*{_DECIMAL}"
_FORMS = re.compile(
    rf"""
    (?P<recurring>\d*\.\d*)\\overline\s*\{{(?P<period>\d+)\}}
    | (?:(?P<whole>\d+)\s*)?\\frac\s*\{{\s*(?P<top>{_SIGNED})\s*\}}\s*\{{\s*(?P<bottom>{_SIGNED})\s*\}}
    | (?P<whole2>\d+)[ ](?P<top2>\d+)\s*/\s*(?P<bottom2>\d+)
    | (?P<top3>{_DECIMAL})\s*/\s*(?P<bottom3>{_DECIMAL})
    | (?P<mantissa>{_DECIMAL})\s*\\cdot\s*10\s*\^\s*\{{\s*(?P<ten>[-+]?\s*\d{{1,4}})\s*\}}
    | (?P<mantissa2>{_DECIMAL})[eE](?P<ten2>[-+]?\d{{1,3}})(?![A-Za-z\d])
    | (?P<base>\d+)\s*\^\s*\{{\s*(?P<power>[-+]?\s*\d{{1,4}})\s*\}}
    | (?P<decimal>{_DECIMAL})
    """,
    re.VERBOSE,
)
_PREFIX = re.compile(r"(?P<sign>[-+]?)\s*(?P<currency>(?:\\\$|US\\\$)?)\s*(?P<sign2>[-+]?)\s*")
_UNIT = re.compile(
    r"(?P<percent>%)|(?P<degree>°\s*[CF]?)|(?P<currency>\\\$)|(?P<text>(?:\s*\\text\s*\{[^{}0-9]*\}\s*(?:\^\s*\{[23]\})?)+)"
    r"|(?P<words>\s*[A-Za-z][A-Za-z /.]*(?:\^\s*\{[23]\})?)"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# Words that change what the number means. Other words after a number are taken for its unit.
_VALUE_WORDS = """
    squared cubed factorial half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths tenth tenths
    hundredth hundredths thousandth thousandths point points plus minus times mod modulo base or and to not never no over by from
    than if approximately about thousand million billion trillion hundred dozen root roots pi
"""
_SHORT_UNIT_WORDS = """
    mm cm dm km m g kg mg lb lbs oz ft in yd mi ml mL cl dl l L s h hr hrs min ms J kJ N Pa kPa W kW V A K C F Hz mph kph rad deg
    am pm a.m. p.m. cm/s m/s km/h sq cu
"""
_NOT_UNITS, _SHORT_UNITS = frozenset(_VALUE_WORDS.split()), frozenset(_SHORT_UNIT_WORDS.split())
_SAME_UNITS = {
    "$": "dollar", "usd": "dollar", "cents": "cent", "pct": "%", "percent": "%", "percentage": "%", "deg": "°", "degree": "°",
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "kilometer": "km", "kilometre": "km", "millimeter": "mm",
    "gram": "g", "kilogram": "kg", "milligram": "mg", "liter": "l", "litre": "l", "milliliter": "ml", "inch": "in", "inche": "in",
    "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "pound": "lb", "lb": "lb", "ounce": "oz", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "mph": "mi/h", "kph": "km/h", "sq": "square", "sq.": "square", "cu": "cubic",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number. `unit` is "" when none was written; a percentage keeps its number and has `is_percent`."""

    value: Fraction
    is_percent: bool = False
    unit: str = ""


def plain_number(text: str) -> Fraction | int | None:
    """The value of an answer that is nothing but digits, as most are: what `exact_number` would say of it once normalized."""
    text = text.strip()
    if len(text) > _MAX_PLAIN or not text.isascii() or not _PLAIN.fullmatch(text):
        return None
    plain = text.replace(",", "")
    return Fraction(plain) if "." in plain else int(plain)


def exact_number(text: str) -> Number | None:
    """The number that the whole of a normalized text states, or None."""
    prefix = _PREFIX.match(text)
    assert prefix is not None
    body = text[prefix.end() :]
    form = _FORMS.match(body)
    if form is None or (prefix["sign"] and prefix["sign2"]):
        return None
    value = _value(form)
    unit = unit_of(body[form.end() :].rstrip(), bool(prefix["currency"]))
    if value is None or unit is None:
        return None
    name, scale = unit
    value = -value if "-" in (prefix["sign"], prefix["sign2"]) else value
    return Number(value * scale, name == "%", "" if name == "%" else name)


def decimal_comma(text: str) -> Fraction | None:
    """The reading of `3,14` as 3.14, where it is no thousands separator. The caller knows whether a decimal is expected."""
    match = re.fullmatch(r"([-+]?\d+),(\d{1,2}|\d{4,}|(?<=^0,)\d+|(?<=^-0,)\d+)", text.replace(r"\$", "").strip())
    return Fraction(f"{match[1]}.{match[2]}") if match else None


def _value(form: re.Match[str]) -> Fraction | None:
    if form["period"] is not None:
        return _recurring(form["recurring"], form["period"])
    if form["decimal"] is not None:
        return _decimal(form["decimal"])
    if form["base"] is not None:
        return _power(int(form["base"]), int(form["power"].replace(" ", "")))
    mantissa, ten = form["mantissa"] or form["mantissa2"], form["ten"] or form["ten2"]
    if mantissa is not None:
        return _decimal(mantissa) * Fraction(10) ** int(ten.replace(" ", ""))
    top = form["top"] or form["top2"] or form["top3"]
    bottom = form["bottom"] or form["bottom2"] or form["bottom3"]
    whole = form["whole"] or form["whole2"]
    numerator, denominator = _decimal(top), _decimal(bottom)
    if denominator == 0:
        return None
    if whole is None:
        return numerator / denominator
    # 2\frac{3}{2} and 2\frac{-1}{2} could be products: only a proper fraction makes a mixed number.
    is_proper = 0 < numerator < denominator and numerator.denominator == denominator.denominator == 1
    return int(whole) + numerator / denominator if is_proper else None


def _decimal(text: str) -> Fraction:
    plain = text.replace(",", "").replace(" ", "")
    return Fraction(plain.removesuffix(".") if len(plain) > 1 else plain)


def _recurring(start: str, period: str) -> Fraction:
    digits = start.partition(".")[2]
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
    return Fraction(start.rstrip(".") or "0" if not digits else start) + tail


def _power(base: int, exponent: int) -> Fraction | None:
    if base.bit_length() * abs(exponent) > MAX_POWER_BITS or (base == 0 and exponent <= 0):
        return None
    return Fraction(base) ** exponent


def unit_of(rest: str, has_currency: bool) -> tuple[str, int] | None:
    """The name of the unit and the factor of a word such as million; None when the rest is no unit."""
    name = "dollar" if has_currency else ""
    if not rest:
        return name, 1
    match = _UNIT.fullmatch(rest)
    if match is None or (has_currency and (match["percent"] or match["degree"])):
        return None
    if match["percent"] or match["degree"] or match["currency"]:
        return ("dollar" if match["currency"] else rest.replace(" ", "")), 1
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", rest).replace("(", " ").replace(")", " ").split()
    scale = 1
    if words and words[0].lower() in _SCALES:
        scale = _SCALES[words.pop(0).lower()]
    if match["words"] and any(len(word) < 3 and word not in _SHORT_UNITS for word in words if word.isalpha()):
        return None
    if match["words"] and not rest.startswith(" ") and words and words[0] not in _SHORT_UNITS - {"m", "g", "s", "h", "l", "L"}:
        return None
    if any(word.lower().strip(".,") in _NOT_UNITS for word in words):
        return None
    return _unit(" ".join(map(_unit_name, words))) or name, scale


def _unit(names: str) -> str:
    """`square cm` and `cm ^{2}` are one unit; `units` says of a number only that it has one."""
    power = " ^2" if "square" in names else " ^3" if "cubic" in names else ""
    names = names.replace(" per ", "/").replace("square ", "").replace("cubic ", "") + power
    names = re.sub(r"\s*\^\s*\{?([23])\}?", r"^\1", names)
    return "" if names in ("unit", "unit^2", "unit^3") else names


def _unit_name(word: str) -> str:
    if "/" in word:
        return "/".join(map(_unit_name, word.split("/")))
    if word in _SHORT_UNITS or not word.isalpha():
        return _SAME_UNITS.get(word, word)
    lower = word.lower()
    singular = lower[:-1] if lower.endswith("s") and len(lower) > 3 else lower
    return _SAME_UNITS.get(lower, _SAME_UNITS.get(singular, singular))
