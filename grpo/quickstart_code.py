"""The tasks of the code quickstart: one-line functions to be written from three examples, judged by hidden cases in the sandbox.

Their demonstrations are a hasty pupil's, who mostly looks at the first example alone and takes the function for an addition.
Supervised fine-tuning copies the pupil. To look at a second example, and to multiply or subtract where the differences say so, is
what GRPO adds, from the outcome of the hidden cases alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

DIGITS = range(1, 10)
HIDDEN_INPUTS = (-7, 0, 11, 25, 100)


class Function(NamedTuple):
    """`x+a`, `x*a` or `a-x`."""

    sign: str
    a: int

    @property
    def expression(self) -> str:
        return f"{self.a}-x" if self.sign == "-" else f"x{self.sign}{self.a}"

    def value(self, x: int) -> int:
        return {"+": x + self.a, "*": x * self.a, "-": self.a - x}[self.sign]


FUNCTIONS = [Function(sign, a) for sign in "+*-" for a in DIGITS if (sign, a) != ("*", 1)]


def one_liners(*, hasty: float, size: int = 8000, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with `examples`, a `reference` and a `demonstration`. Only one of the functions fits the examples.

    `hasty` is the share of demonstrations that look at the first example only.
    """
    chance = random.Random(seed)
    for _ in range(size):
        function, inputs = _question(chance)
        examples = [(x, function.value(x)) for x in inputs]
        yield {
            "examples": " ".join(f"f({x})={y}" for x, y in examples),
            "reference": {"entry_point": "f", "cases": [{"args": [x], "expected": function.value(x)} for x in HIDDEN_INPUTS]},
            "demonstration": _hasty(examples) if chance.random() < hasty else _careful(function, examples),
        }


def _question(chance: random.Random) -> tuple[Function, list[int]]:
    """A function, and three inputs; for the first two no other function has the same values."""
    while True:
        function, inputs = chance.choice(FUNCTIONS), chance.sample(DIGITS, 3)
        if sum(all(other.value(x) == function.value(x) for x in inputs[:2]) for other in FUNCTIONS) == 1:
            return function, inputs


def _hasty(examples: list[tuple[int, int]]) -> str:
    x, y = examples[0]
    return f"<think>{y}-{x}={y - x}</think>def f(x): return x{y - x:+}"


def _careful(function: Function, examples: list[tuple[int, int]]) -> str:
    """Two differences, and when they are not equal the quotient or the sum, whichever is the constant."""
    thought = " ".join(f"{y}-{x}={y - x}" for x, y in examples[:2])
    x, y = examples[0]
    if function.sign != "+":
        thought += f" {y}/{x}={function.a}" if function.sign == "*" else f" {y}+{x}={function.a}"
    return f"<think>{thought}</think>def f(x): return {function.expression}"
