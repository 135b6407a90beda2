"""One spelling for many, and exact numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.math_number import Number, exact_number
from verifiers.math_spelling import normalized
from verifiers.math_text import literal_key

NUMBERS = [
    ("-5", Fraction(-5)),
    ("+5", Fraction(5)),
    ("- 5", Fraction(-5)),
    ("\u22125", Fraction(-5)),
    ("007", Fraction(7)),
    (".5", Fraction(1, 2)),
    ("5.", Fraction(5)),
    ("1,234,567.5", Fraction(2469135, 2)),
    ("1{,}000", Fraction(1000)),
    (r"1\,234", Fraction(1234)),
    (r"11,\! 111,\! 100", Fraction(11111100)),
    ("1 000", Fraction(1000)),
    (r"\dfrac{3}{4}", Fraction(3, 4)),
    (r"\frac34", Fraction(3, 4)),
    (r"-\tfrac{3}{4}", Fraction(-3, 4)),
    (r"\frac{-3}{4}", Fraction(-3, 4)),
    ("3/4", Fraction(3, 4)),
    ("84/2", Fraction(42)),
    ("1 1/2", Fraction(3, 2)),
    (r"1\frac{1}{2}", Fraction(3, 2)),
    ("\u00bd", Fraction(1, 2)),
    ("1\u00bd", Fraction(3, 2)),
    (r"0.\overline{3}", Fraction(1, 3)),
    (r"0.1\overline{6}", Fraction(1, 6)),
    (r"2.5 \times 10^{-3}", Fraction(1, 400)),
    ("1.2e3", Fraction(1200)),
    ("2^{10}", Fraction(1024)),
    ("\u0664\u0662", Fraction(42)),
    ("\uff14\uff12", Fraction(42)),
    ("4\u200b2", Fraction(42)),
    ("$42$", Fraction(42)),
    (r"\mathbf{42}", Fraction(42)),
    ("5 million", Fraction(5_000_000)),
]
NOT_NUMBERS = [
    "",
    "-",
    ".",
    "--5",
    "2 3",
    "1 2 3",
    "1,00",
    "1,0000",
    "32, 349",
    "5x",
    "5 xy",
    "5m",
    "1/0",
    r"\frac{1}{0}",
    r"2\frac{3}{2}",
    "3!",
    "1+1",
    r"2\cdot 3",
    "5 squared",
    "5 or 6",
    r"5\text{ or }6",
    "5 halves",
    "0^{0}",
    "9^{9^{9}}",
    "9^{9999}",
    "1:2",
    "204_5",
    "x",
    "\\infty",
    "4\x002",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_a_number_in_any_spelling_is_exact(text: str, value: Fraction):
    number = exact_number(normalized(text))
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_is_not_plainly_one_number_is_none(text: str):
    assert exact_number(normalized(text)) is None


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("18 dollars", "dollar"),
        (r"\$18", "dollar"),
        (r"15\mbox{ cm}^2", "cm^2"),
        ("15 square centimeters", "cm^2"),
        ("15 cm", "cm"),
        (r"125\textnormal{ miles}", "mi"),
        (r"90^\circ", "°"),
        ("90 degrees", "°"),
        (r"18\text{ eggs}", "egg"),
    ],
)
def test_a_unit_is_named_once(text: str, unit: str):
    number = exact_number(normalized(text))
    assert number is not None
    assert number.unit == unit


@pytest.mark.parametrize("text", ["28%", r"28\%", "28 percent", "28 pct", r"28\text{ percent}"])
def test_a_percentage_keeps_its_number_and_says_so(text: str):
    assert exact_number(normalized(text)) == Number(Fraction(28), is_percent=True)


@given(st.fractions())
def test_every_fraction_is_read_back(value: Fraction):
    for text in (f"{value}", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"):
        number = exact_number(normalized(text))
        assert number is not None
        assert number.value == value


@given(st.integers(), st.integers(1, 10**6))
def test_thousands_separators_change_nothing(whole: int, decimals: int):
    number = exact_number(normalized(f"{whole:,}.{decimals}"))
    assert number is not None
    assert number.value == Fraction(f"{whole}.{decimals}")


PIECES = [
    r"\frac",
    r"\sqrt",
    "{",
    "}",
    "(",
    ")",
    "1",
    "23",
    "x",
    "^",
    "_",
    r"\text{ cm}",
    r"\left(",
    r"\right)",
    ",",
    " ",
    r"\,",
    "=",
    r"\pm",
    "$",
    "°",
    "!",
    r"\\",
    r"\cdot",
    "½",
    "²",
    r"\begin{pmatrix}",
    "&",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=30))
def test_normalizing_never_raises_and_never_joins_digits_of_two_numbers(text: str):
    assert isinstance(normalized(text), str)
    assert literal_key(normalized(f"1 {text} 2")) != "12"


def test_two_numbers_do_not_become_one_by_losing_their_space():
    assert literal_key("1 2") != literal_key("12")
    assert literal_key("32, 349") != literal_key("32,349")
    assert literal_key("(1, x)") == literal_key("(1,x)")
