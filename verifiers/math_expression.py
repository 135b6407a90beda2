r"""From a normalized LaTeX expression to sympy, by our own small grammar. Runs only in killable workers: it imports sympy.

A strict grammar instead of a lenient parser, because every leniency is a false positive: two numbers side by side are an error
(neither a sum nor a product), case matters, a prime belongs to its name, degrees are not dropped, `1/2x` is refused as ambiguous,
and a run of four letters is a word. Nothing here evaluates text; numbers are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from sympy import Expr, Integer, MatrixBase, Rational, Symbol

from verifiers.math_tokens import NotUnderstood, Tokens, TooLarge

MAX_POWER_BITS = 50_000
MAX_FACTORIAL = 1000
MAX_MATRIX_POWER = 8

_ACCENTS = frozenset({r"\overline", r"\vec", r"\hat", r"\bar", r"\overrightarrow", r"\text", r"\mathbb", r"\angle", r"\triangle"})
_GREEK_NAMES = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega
    Gamma Delta Theta Lambda Sigma Phi Psi Omega ell
"""
_GREEK = frozenset("\\" + name for name in _GREEK_NAMES.split())
# The base of a bare \log is unknown (10 or e): laws of logarithms hold for any.
_LOG_BASE = Symbol("base of log", positive=True)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        rf"\{name}": getattr(sympy, name)
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "exp")
    },
    r"\arcsin": sympy.asin,
    r"\arccos": sympy.acos,
    r"\arctan": sympy.atan,
    r"\ln": sympy.log,
    r"\lg": lambda x: sympy.log(x) / sympy.log(10),
    r"\log": lambda x: sympy.log(x) / sympy.log(_LOG_BASE),
}
_INVERSES = {r"\sin": sympy.asin, r"\cos": sympy.acos, r"\tan": sympy.atan}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
_ROUNDED = {r"\lfloor": (sympy.floor, r"\rfloor"), r"\lceil": (sympy.ceiling, r"\rceil")}
# Their bounds stay text and nothing is summed: two are equal when they have the same bounds and equal terms.
_BIG_OPERATORS = frozenset({r"\sum", r"\prod", r"\lim"})
_NO_FACTORS = frozenset({r"\cdot", r"\cr", r"\end", r"\rfloor", r"\rceil"})


def expression(text: str) -> Expr:
    """The sympy expression that a text writes. Raises NotUnderstood, or TooLarge before anything large is computed."""
    return _Parser(text).whole()


class _Parser(Tokens):
    """Recursive descent over the tokens. One method for each level of the grammar."""

    def whole(self) -> Expr:
        value = self._sum()
        if not self.is_at_end:
            raise NotUnderstood(self.next()[1])
        return value

    def _sum(self) -> Expr:
        value = self._signed_term()
        while self.peek()[1] in ("+", "-"):
            value = value + self._signed_term()
        return value

    def _signed_term(self) -> Expr:
        factor = Integer(1)
        if self.peek()[1] in ("+", "-"):
            factor = Integer(-1) if self.next()[1] == "-" else factor
        return factor * self._term()

    def _term(self) -> Expr:
        value = self._factor()
        while True:
            if self.take(r"\cdot"):
                value = value * self._signed_factor()
            elif self.take("/"):
                value = value / self._nonzero(self._signed_factor())
                if self._starts_factor():
                    raise NotUnderstood("what belongs to a denominator after / is unclear")
            elif self._starts_factor():
                if self.peek()[0] == "number":
                    raise NotUnderstood("a number follows without a sign")
                value = value * self._factor()
            else:
                return value

    def _signed_factor(self) -> Expr:
        return -self._factor() if self.take("-") else self._factor()

    def _starts_factor(self) -> bool:
        kind, text = self.peek()
        return kind in ("number", "letter") or text in ("(", "{", "[") or (kind == "command" and text not in _NO_FACTORS)

    def _factor(self) -> Expr:
        value = self._base()
        while True:
            if self.take("^"):
                value = self._power(value, self._group_or_base())
                if self.peek()[1] == "^":
                    raise NotUnderstood("two exponents side by side")
            elif self.take("!"):
                value = self._factorial(value)
            elif self.take("%"):
                value = value / 100
            elif self.take("°"):
                value = value * sympy.pi / 180
            else:
                return value

    def _base(self) -> Expr:
        kind, text = self.next()
        if kind == "number":
            return Rational(text.replace(",", ""))
        if kind == "letter":
            return self._named(text)
        if text in ("(", "[", "{"):
            value = self._sum()
            self.expect(_CLOSING[text])
            return value
        if text == "|":
            value = self._sum()
            self.expect("|")
            return sympy.Abs(value)
        if kind == "command":
            return self._command(text)
        raise NotUnderstood(text)

    def _command(self, text: str) -> Expr:
        if text == r"\frac":
            numerator, denominator = self._group(), self._group()
            return numerator / self._nonzero(denominator)
        if text == r"\sqrt":
            index = Integer(2)
            if self.take("["):
                index = self._sum()
                self.expect("]")
            return self._power(self._group(), 1 / self._nonzero(index))
        if text == r"\binom":
            return sympy.binomial(self._small(self._group()), self._small(self._group()))
        if text in _FUNCTIONS:
            return self._function(text)
        if text == r"\pi":
            return sympy.pi
        if text == r"\infty":
            return sympy.oo
        if text in _GREEK:
            return self._named(text)
        if text in _ACCENTS:
            return self._accented(text)
        if text in _ROUNDED:
            function, closing = _ROUNDED[text]
            value = function(self._sum())
            self.expect(closing)
            return value
        if text == r"\abs":
            return sympy.Abs(self._group())
        if text in _BIG_OPERATORS:
            return self._big_operator(text)
        if text == r"\begin":
            return self._matrix()
        raise NotUnderstood(text)

    def _big_operator(self, text: str) -> Expr:
        r"""`\sum_{k=0}^{n} a_k` as an unknown function of its bounds and its term."""
        bounds = {"_": "", "^": ""}
        while self.peek()[1] in bounds:
            place = self.next()[1]
            bounds[place] = self.raw_group()
        return sympy.Function(text)(*map(Symbol, bounds.values()), self._term())

    def _matrix(self) -> Any:
        kind = self.raw_group()
        if not kind.endswith("matrix"):
            raise NotUnderstood(kind)
        rows = [[self._sum()]]
        while not self.take(r"\end"):
            if self.take("&"):
                rows[-1].append(self._sum())
            else:
                self.expect(r"\cr")
                if self.peek()[1] != r"\end":
                    rows.append([self._sum()])
        if self.raw_group() != kind:
            raise NotUnderstood("an environment ends as another")
        return sympy.ImmutableDenseMatrix(rows)

    def _function(self, text: str) -> Expr:
        r"""`\sin x`, `\sin^2 x`, `\sin^{-1} x`, `\log_2 8`. Without brackets, the argument is all that juxtaposition multiplies."""
        function, power, base = _FUNCTIONS[text], None, None
        while self.peek()[1] in ("^", "_"):
            if self.next()[1] == "^":
                power = self._group_or_base()
            else:
                base = self._group_or_base()
        if base is not None:
            if text != r"\log":
                raise NotUnderstood(f"{text} with an index")
            function = lambda x: sympy.log(x) / sympy.log(self._nonzero(base))  # noqa: E731
        if power == -1:
            if text not in _INVERSES:
                raise NotUnderstood(f"{text} to the power -1")
            function, power = _INVERSES[text], None
        value = function(self._argument())
        return value if power is None else self._power(value, power)

    def _argument(self) -> Expr:
        if self.peek()[1] in ("(", "{", "[", "|"):
            value = self._base()
            if self.peek()[1] == "^":
                raise NotUnderstood("whether the power belongs to the function or to its argument is unclear")
            return value
        value = self._factor()
        while self._starts_factor() and self.peek()[0] != "number" and self.peek()[1] not in (*_FUNCTIONS, "(", "["):
            value = value * self._factor()
        return value

    def _named(self, text: str) -> Expr:
        """A letter with its index and primes; e and i are constants. Before a bracket f, g, h and capitals are functions."""
        name = text
        if self.take("_"):
            name += "_" + self.raw_group()
        while self.take("'"):
            name += "'"
        if self.peek()[1] == "^" and self.peek(1)[1] == "{" and self.peek(2)[1] == "'":
            raise NotUnderstood("a prime in an exponent")
        if name == "e":
            return sympy.E
        if name == "i":
            return sympy.I
        if self.peek()[1] == "(" and (text in "fgh" or text.isupper()):
            self.next()
            value = self._sum()
            self.expect(")")
            return sympy.Function(name)(value)
        return Symbol(name, real=True)

    def _accented(self, text: str) -> Expr:
        r"""`\vec{v}` and `\text{max}` are names of their own."""
        if self.peek()[1] != "{":
            raise NotUnderstood(text)
        return Symbol(f"{text} {self.raw_group()}", real=True)

    def _group(self) -> Expr:
        self.expect("{")
        value = self._sum()
        self.expect("}")
        return value

    def _group_or_base(self) -> Expr:
        if self.peek()[1] == "{":
            return self._group()
        return self._signed_factor() if self.peek()[1] == "-" else self._base()

    def _power(self, base: Expr, exponent: Expr) -> Expr:
        if isinstance(base, MatrixBase) and not (exponent.is_Integer and 0 <= exponent <= MAX_MATRIX_POWER):  # type: ignore[operator]
            raise NotUnderstood("a power of a matrix")
        if base.is_Rational and exponent.is_Rational:
            bits = max(int(base.p).bit_length(), int(base.q).bit_length())  # type: ignore[attr-defined]
            if bits * abs(exponent) > MAX_POWER_BITS:
                raise TooLarge("a power of more than 15,000 digits")
            if base == 0 and exponent <= 0:  # type: ignore[operator]
                raise NotUnderstood("a power of zero")
        return base**exponent

    def _factorial(self, value: Expr) -> Expr:
        return sympy.factorial(self._small(value))

    def _small(self, value: Expr) -> Expr:
        if value.is_Rational and abs(value) > MAX_FACTORIAL:
            raise TooLarge(f"a factorial beyond {MAX_FACTORIAL}!")
        return value

    def _nonzero(self, value: Expr) -> Expr:
        if value == 0:
            raise NotUnderstood("a division by zero")
        return value
