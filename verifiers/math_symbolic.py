"""The program of the killable workers: are two expressions, or two relations, equal? Runs nowhere else: sympy may never end.

Numbers at random points refute; only sympy's exact simplification accepts. What cannot be proved equal is not equal.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import sympy
from sympy import Expr, Float, MatrixBase, Rational

from verifiers.math_expression import NotUnderstood, TooLarge, expression

NUM_POINTS = 4
DIGITS = 40
# Fixed, unrelated rational points, some negative: zero or one would hide differences.
POINTS = [Rational(p, q) for p, q in ((17, 13), (-29, 19), (41, 23), (-7, 31), (53, 29), (61, 17), (-43, 37), (11, 47))]

# A power such as 2^{99} has more digits than Python shows by default; nothing here shows any.
sys.set_int_max_str_digits(0)


class Near(NamedTuple):
    """How far apart two constants may be: relative to the reference, or in all."""

    tolerance: float
    margin: Any


EXACTLY = Near(0.0, Rational(0))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Replies to `{"questions": [[kind, reference, answer, margin], ...], "tolerance": t}`: a verdict and a note for each.

    `too_large` instead says that a value was too large to compute; nothing is known of the other questions then.
    """
    verdicts = []
    for kind, reference, given, margin in question["questions"]:
        try:
            verdicts.append(_verdict(kind, reference, given, Near(question["tolerance"], Rational(margin))))
        except TooLarge as error:
            return {"too_large": str(error)}
    return {"verdicts": verdicts}


def _verdict(kind: str, reference: list[str], given: list[str], near: Near) -> tuple[bool, str]:
    try:
        if kind == "relation":
            return relations_equal(reference, given), "compared as relations"
        return expressions_equal(expression(reference[0]), expression(given[0]), near), "compared symbolically"
    except NotUnderstood as error:
        return False, f"not understood: {error}"[:200]
    except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError, LookupError, AssertionError) as error:
        # sympy raises these on forms it cannot handle. Not proved equal.
        return False, f"not decided: {type(error).__name__}"


def expressions_equal(reference: Expr, given: Expr, near: Near = EXACTLY) -> bool:
    """Whether two expressions are proved equal for all real values of their letters. Constants need only be near."""
    if isinstance(reference, MatrixBase) or isinstance(given, MatrixBase):
        return _matrices_equal(reference, given, near)
    if reference == given:
        return reference is not sympy.nan and reference is not sympy.zoo
    if reference.has(sympy.oo, sympy.zoo, sympy.nan) or given.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    if near != EXACTLY and not (reference.free_symbols or given.free_symbols):
        wanted, found = sympy.N(reference, DIGITS), sympy.N(given, DIGITS)
        return bool(abs(wanted - found) <= sympy.Max(near.margin, near.tolerance * abs(wanted)))
    if is_refuted(reference, given):
        return False
    difference: Any = reference - given
    if is_zero(difference):
        return True
    # x^{2/3} and the cube root of x^2 agree where both are real; points where both are and they differ have been tried.
    positive = {letter: sympy.Symbol(f"positive {letter.name}", positive=True) for letter in difference.free_symbols}
    return bool(positive) and is_zero(sympy.expand_log(difference.xreplace(positive)))


def _matrices_equal(reference: Any, given: Any, near: Near) -> bool:
    """Whether two matrices agree entry by entry. A matrix equals nothing else."""
    if not isinstance(reference, MatrixBase) or not isinstance(given, MatrixBase) or reference.shape != given.shape:
        return False
    return all(expressions_equal(wanted, found, near) for wanted, found in zip(reference.flat(), given.flat(), strict=True))


def is_refuted(reference: Expr, given: Expr) -> bool:
    """Whether the two differ at some point, or as constants. Unless one writes i, only points count where both are real."""
    is_complex = reference.has(sympy.I) or given.has(sympy.I)
    letters: list[Any] = sorted(reference.free_symbols | given.free_symbols, key=str)
    for shift in range(NUM_POINTS if letters else 1):
        point = {letter: _point(letter, i + shift) for i, letter in enumerate(letters)}
        wanted, found = _number(reference.xreplace(point)), _number(given.xreplace(point))
        if wanted is None or found is None or (letters and not is_complex and not (wanted.is_real and found.is_real)):
            continue
        if abs(wanted - found) > Float(10) ** (8 - DIGITS) * (1 + abs(wanted)):
            return True
    return False


def _point(letter: Any, index: int) -> Any:
    value = POINTS[index % len(POINTS)]
    return abs(value) if letter.is_positive else value


def _number(value: Any) -> Any:
    """The value in digits, None when it has none."""
    number = sympy.N(value, DIGITS, chop=False)
    return number if number.is_number and number.is_finite and not number.has(sympy.Function) else None


def is_zero(difference: Expr) -> bool:
    """Whether sympy proves that an expression is 0, by ever dearer means."""
    if difference == 0 or sympy.expand(difference) == 0:
        return True
    if difference.free_symbols and sympy.cancel(sympy.together(difference)) == 0:
        return True
    if sympy.simplify(difference) == 0 or sympy.radsimp(sympy.sqrtdenest(sympy.expand(difference))) == 0:
        return True
    return difference.equals(0) is True


def relations_equal(reference: list[str], given: list[str]) -> bool:
    """Whether two relations say the same: the differences of their sides are in a constant ratio, positive where order counts."""
    (wanted, wanted_sign), (found, found_sign) = _standard(reference), _standard(given)
    if wanted_sign != found_sign or wanted == 0 or found == 0:
        return False
    ratio = sympy.cancel(sympy.together(wanted / found))
    if ratio.free_symbols:
        ratio = sympy.simplify(ratio)
    if ratio.free_symbols or not ratio.is_real or not ratio.is_finite or ratio.is_zero is not False:
        return False
    return wanted_sign in ("=", r"\neq") or bool(ratio > 0)


def _standard(relation: list[str]) -> tuple[Expr, str]:
    """Left minus right, and a sign among = \\neq < \\leq."""
    left, sign, right = relation
    difference = expression(left) - expression(right)
    if sign in (">", r"\geq"):
        return -difference, "<" if sign == ">" else r"\leq"
    return difference, sign
