r"""From a normalized LaTeX expression to sympy, by our own small grammar. Runs only in killable workers: it imports sympy.

A strict grammar instead of a lenient parser, because every leniency is a false positive: two numbers side by side are an error
(neither a sum nor a product), case matters, a prime belongs to its name, degrees are not dropped, `1/2x` is refused as ambiguous,
and a run of four letters is a word. Nothing here evaluates text; numbers are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

MAX_POWER_BITS = 50_000
MAX_FACTORIAL = 1000

_TOKENS = re.compile(
    r"\s*(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|\s*(?P<command>\\[A-Za-z]+)|\s*(?P<letter>[A-Za-z])|\s*(?P<sign>[-+/^_(){}\[\]|!'%])"
)
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


class NotUnderstood(Exception):
    """The text is outside the grammar."""


class TooLarge(Exception):
    """The value would be too large to hold."""


def expression(text: str) -> Expr:
    """The sympy expression that a text writes. Raises NotUnderstood, or TooLarge before anything large is computed."""
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens. One method for each level of the grammar."""

    def __init__(self, text: str) -> None:
        if re.search(r"(?<![A-Za-z\\])[A-Za-z]{4,}(?![A-Za-z])", re.sub(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?|_\{\w+\}", " ", text)):
            raise NotUnderstood("a word")
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKENS.match(text, position)
            if match is None:
                raise NotUnderstood(text[position : position + 10])
            kind = match.lastgroup
            assert kind is not None
            self._tokens.append((kind, match[kind]))
            position = match.end()
        self._at = 0

    def whole(self) -> Expr:
        value = self._sum()
        if self._at < len(self._tokens):
            raise NotUnderstood(self._next()[1])
        return value

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        if token[0] == "end":
            raise NotUnderstood("it ends too early")
        self._at += 1
        return token

    def _take(self, sign: str) -> bool:
        if self._peek()[1] != sign:
            return False
        self._at += 1
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise NotUnderstood(f"{sign} is missing")

    def _sum(self) -> Expr:
        value = self._signed_term()
        while self._peek()[1] in ("+", "-"):
            value = value + self._signed_term()
        return value

    def _signed_term(self) -> Expr:
        factor = Integer(1)
        if self._peek()[1] in ("+", "-"):
            factor = Integer(-1) if self._next()[1] == "-" else factor
        return factor * self._term()

    def _term(self) -> Expr:
        value = self._factor()
        while True:
            if self._take(r"\cdot"):
                value = value * self._signed_factor()
            elif self._take("/"):
                value = value / self._nonzero(self._signed_factor())
                if self._starts_factor():
                    raise NotUnderstood("what belongs to a denominator after / is unclear")
            elif self._starts_factor():
                if self._peek()[0] == "number":
                    raise NotUnderstood("a number follows without a sign")
                value = value * self._factor()
            else:
                return value

    def _signed_factor(self) -> Expr:
        return -self._factor() if self._take("-") else self._factor()

    def _starts_factor(self) -> bool:
        kind, text = self._peek()
        return kind in ("number", "letter") or text in ("(", "{", "[") or (kind == "command" and text != r"\cdot")

    def _factor(self) -> Expr:
        value = self._base()
        while True:
            if self._take("^"):
                value = self._power(value, self._group_or_base())
                if self._peek()[1] == "^":
                    raise NotUnderstood("two exponents side by side")
            elif self._take("!"):
                value = self._factorial(value)
            elif self._take("%"):
                value = value / 100
            else:
                return value

    def _base(self) -> Expr:
        kind, text = self._next()
        if kind == "number":
            return Rational(text.replace(",", ""))
        if kind == "letter":
            return self._named(text)
        if text in ("(", "[", "{"):
            value = self._sum()
            self._expect(_CLOSING[text])
            return value
        if text == "|":
            value = self._sum()
            self._expect("|")
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
            if self._take("["):
                index = self._sum()
                self._expect("]")
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
        raise NotUnderstood(text)

    def _function(self, text: str) -> Expr:
        r"""`\sin x`, `\sin^2 x`, `\sin^{-1} x`, `\log_2 8`. Without brackets, the argument is all that juxtaposition multiplies."""
        function, power, base = _FUNCTIONS[text], None, None
        while self._peek()[1] in ("^", "_"):
            if self._next()[1] == "^":
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
        if self._peek()[1] in ("(", "{", "[", "|"):
            value = self._base()
            if self._peek()[1] == "^":
                raise NotUnderstood("whether the power belongs to the function or to its argument is unclear")
            return value
        value = self._factor()
        while self._starts_factor() and self._peek()[0] != "number" and self._peek()[1] not in (*_FUNCTIONS, "(", "["):
            value = value * self._factor()
        return value

    def _named(self, text: str) -> Expr:
        """A letter with its index and primes; e and i are constants. Before a bracket f, g, h and capitals are functions."""
        name = text
        if self._take("_"):
            name += "_" + self._raw_group()
        while self._take("'"):
            name += "'"
        if self._peek()[1] == "^" and self._peek(1)[1] == "{" and self._peek(2)[1] == "'":
            raise NotUnderstood("a prime in an exponent")
        if name == "e":
            return sympy.E
        if name == "i":
            return sympy.I
        if self._peek()[1] == "(" and (text in "fgh" or text.isupper()):
            self._next()
            value = self._sum()
            self._expect(")")
            return sympy.Function(name)(value)
        return Symbol(name, real=True)

    def _accented(self, text: str) -> Expr:
        r"""`\vec{v}` and `\text{max}` are names of their own."""
        if self._peek()[1] != "{":
            raise NotUnderstood(text)
        return Symbol(f"{text} {self._raw_group()}", real=True)

    def _group(self) -> Expr:
        self._expect("{")
        value = self._sum()
        self._expect("}")
        return value

    def _group_or_base(self) -> Expr:
        if self._peek()[1] == "{":
            return self._group()
        return self._signed_factor() if self._peek()[1] == "-" else self._base()

    def _raw_group(self) -> str:
        """The text of a group of letters and digits, unparsed."""
        kind, text = self._next()
        if text != "{":
            if kind not in ("letter", "number"):
                raise NotUnderstood(text)
            return text
        parts: list[str] = []
        while not self._take("}"):
            kind, text = self._next()
            if kind == "sign" and text in "{(":
                raise NotUnderstood("a nested name")
            parts.append(text)
        return "".join(parts)

    def _power(self, base: Expr, exponent: Expr) -> Expr:
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
