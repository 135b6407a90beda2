"""The verifier `countdown`: is the answer an expression over the given numbers whose value is the target?

A parser of a few lines reads sums, products and parentheses and computes with exact fractions. Nothing is evaluated, and nothing is
computed before it is known that the expression holds the given numbers and no others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifiers.errors import InvalidReference
from verifiers.options import explain
from verifiers.registry import verifier
from verifiers.stated_answer import Inside, in_its_place, stated_answer
from verifiers.types import Score, Task, correct, timeout, wrong

MAX_CHARACTERS = 1000
MAX_DEPTH = 40
MAX_SHOWN = 200

# times, dot operator, middle dot, asterisk operator; division sign, division slash; minus, en dash
_SIGNS = str.maketrans("\u00d7\u22c5\u00b7\u2217\u00f7\u2215\u2212\u2013", "****//--")
_LATEX = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": ""}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))", re.ASCII)

Number = Annotated[int, Field(ge=0, le=10**12)]


class Puzzle(BaseModel):
    """The reference of a task. What else stands in it is not read."""

    model_config = ConfigDict(strict=True, title="the reference")

    numbers: list[Number] = Field(min_length=1, max_length=20)
    target: int = Field(ge=-(10**15), le=10**15)
    solution: str | None = None


class NoExpression(Exception):
    """What is wrong with a text that should be an expression."""


class TooLarge(Exception):
    """An expression that is longer or deeper than any sensible one."""


@verifier("countdown")
class Countdown:
    """Whether the answer is an arithmetic expression that makes the target of the given numbers.

    The reference is `{"numbers": [3, 8, 7], "target": 17}`, with a `solution` if one is known. An expression has whole numbers,
    + - * / and parentheses, and may end in `= target`. A minus sign may stand where a sum begins, so that `-1 + 3` is one and
    `3 * -1` is not.
    """

    def __init__(
        self,
        *,
        inside: Inside = "answer_tags",
        use: Annotated[
            Literal["all", "some"], Field(description="all: each number exactly once; some: each at most once.")
        ] = "all",
    ) -> None:
        self._inside: Inside = inside
        self._uses_all = use == "all"

    def prepare(self, reference: Any) -> Puzzle:
        """Refuses what is no puzzle, and a solution that is none."""
        puzzle = read(reference)
        if puzzle.solution is not None:
            score = self._judged(puzzle, puzzle.solution)
            if score.value != 1:
                raise InvalidReference(f"its solution {puzzle.solution[:MAX_SHOWN]!r} {score.reason}. Mend it, or leave it out.")
        return puzzle

    def example(self, reference: Any) -> str | None:
        """The solution where an answer is looked for; None when none is known."""
        solution = read(reference).solution
        return None if solution is None else in_its_place(solution, self._inside)

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        found = stated_answer(text, self._inside)
        return found if isinstance(found, Score) else self._judged(read(task.reference), found.answer)

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        return self.score_now(task, text)

    async def close(self) -> None:
        """It holds nothing."""

    def _judged(self, puzzle: Puzzle, answer: str) -> Score:
        shown = answer[:MAX_SHOWN]
        try:
            tokens = tokens_of(_left_side(answer, puzzle.target))
            misuse = self._misuse(puzzle.numbers, tokens)
            if misuse:
                return wrong(misuse, shown)
            value = value_of(tokens)
        except TooLarge as error:
            return timeout(f"the expression is too large: {error}", shown)
        except NoExpression as error:
            return wrong(f"is no expression: {error}", shown)
        if value != puzzle.target:
            return wrong(f"makes {value}, not {puzzle.target}", shown)
        return correct(f"makes {puzzle.target}", shown)

    def _misuse(self, numbers: Sequence[int], tokens: Sequence[str]) -> str | None:
        """What is wrong with the numbers that an expression uses. They are compared as written, so that 007 is no 7."""
        given, used = Counter(map(str, numbers)), Counter(token for token in tokens if token.isdigit())
        for number in used - given:
            return f"uses {number[:MAX_SHOWN]} more often than it is given" if number in given else f"uses {number[:MAX_SHOWN]}"
        left = given - used
        return f"does not use {', '.join(left.elements())}" if left and self._uses_all else None


def read(reference: Any) -> Puzzle:
    """The puzzle of a reference. Raises InvalidReference."""
    if not isinstance(reference, dict):
        raise InvalidReference(
            f'expected a reference such as {{"numbers": [3, 8, 7], "target": 17}}, found {str(reference)[:MAX_SHOWN]!r}.'
        )
    try:
        return Puzzle.model_validate(reference)
    except ValidationError as error:
        raise InvalidReference(explain(error, Puzzle)) from None


def tokens_of(expression: str) -> list[str]:
    """Numbers, signs and parentheses. Raises TooLarge, or NoExpression at the first character that is none of them."""
    if len(expression) > MAX_CHARACTERS:
        raise TooLarge(f"{len(expression)} characters")
    text = _COMMAND.sub(lambda found: _LATEX.get(found[0], found[0]), expression.translate(_SIGNS)).strip()
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NoExpression(f"it holds {text[position:].strip()[:10]!r}")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


def value_of(tokens: Sequence[str]) -> Fraction:
    """The exact value. Raises NoExpression where the grammar, or a division by zero, says so; TooLarge when it nests too deep.

    sum = ["-"] product {("+" | "-") product};  product = factor {("*" | "/") factor};  factor = number | "(" sum ")"
    """
    parser = _Parser(tokens)
    value = parser.sum(0)
    if parser.next is not None:
        raise NoExpression(f"{parser.next[:MAX_SHOWN]!r} stands where a sign or the end was expected")
    return value


class _Parser:
    """Recursive descent over tokens; depth counts parentheses."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens, self._position = tokens, 0

    @property
    def next(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def sum(self, depth: int) -> Fraction:
        is_negative = self._takes("-")
        value = self._product(depth)
        value = -value if is_negative else value
        while self.next in ("+", "-"):
            value = value + self._product(depth) if self._takes("+") else self._minus(value, depth)
        return value

    def _minus(self, value: Fraction, depth: int) -> Fraction:
        self._takes("-")
        return value - self._product(depth)

    def _product(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while self.next in ("*", "/"):
            if self._takes("*"):
                value *= self._factor(depth)
            else:
                self._takes("/")
                divisor = self._factor(depth)
                if divisor == 0:
                    raise NoExpression("it divides by zero")
                value /= divisor
        return value

    def _factor(self, depth: int) -> Fraction:
        token = self.next
        if token is None or (token != "(" and not token.isdigit()):
            raise NoExpression(f"{'it ends' if token is None else repr(token) + ' stands'} where a number was expected")
        self._position += 1
        if token.isdigit():
            return Fraction(int(token))
        if depth == MAX_DEPTH:
            raise TooLarge(f"more than {MAX_DEPTH} parentheses inside one another")
        value = self.sum(depth + 1)
        if not self._takes(")"):
            raise NoExpression("a parenthesis is not closed")
        return value

    def _takes(self, token: str) -> bool:
        """Whether this token comes next; then it is passed."""
        found = self.next == token
        self._position += found
        return found


def _left_side(answer: str, target: int) -> str:
    """The expression without `= target`. Any other use of = makes it none."""
    left, equals, right = answer.partition("=")
    if equals and right.translate(_SIGNS).strip() != str(target):
        raise NoExpression(f"what follows = is not {target}")
    return left
