"""Countdown puzzles without end, each with a solution: the source `python:rollout.countdown_tasks.countdown`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from rollout.errors import TaskError

QUESTION = (
    "Use each of the numbers {numbers} exactly once, with +, -, *, / and parentheses, to make {target}. "
    "State the expression between <answer> and </answer>."
)
MAX_TRIES = 10_000


class Part(NamedTuple):
    """An expression and its value; `sign` is the last to be applied, empty for a number."""

    text: str
    value: Fraction
    sign: str = ""


def countdown(
    *,
    min_numbers: int = 3,
    max_numbers: int = 4,
    largest: int = 50,
    max_target: int = 100,
    size: int = 8000,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rows with `question`, `numbers`, `target` and a `reference` that the verifier `countdown` takes, solution included.

    Numbers are from 1 to `largest`, targets whole and from 1 to `max_target`. The same options give the same rows, one by one: more
    rows begin with those that fewer have.
    """
    if not (2 <= min_numbers <= max_numbers <= 20 and largest >= 1 and max_target >= 1):
        raise TaskError(
            f"countdown: min_numbers is {min_numbers}, max_numbers {max_numbers}, largest {largest}, max_target {max_target}. "
            "Take 2 to 20 numbers, the fewest first, and let the largest number and target be 1 or more."
        )
    for index in range(size):
        chance = random.Random(f"{seed}:{index}")
        numbers, solution = _puzzle(chance, chance.randint(min_numbers, max_numbers), largest, max_target)
        target = int(solution.value)
        yield {
            "question": QUESTION.format(numbers=", ".join(map(str, numbers)), target=target),
            "numbers": numbers,
            "target": target,
            "reference": {"numbers": numbers, "target": target, "solution": solution.text},
        }


def _puzzle(chance: random.Random, num_numbers: int, largest: int, max_target: int) -> tuple[list[int], Part]:
    """Numbers in any order, and an expression of them whose value may be a target."""
    for _ in range(MAX_TRIES):
        numbers = [chance.randint(1, largest) for _ in range(num_numbers)]
        parts = [Part(str(number), Fraction(number)) for number in numbers]
        while len(parts) > 1:
            left, right = (parts.pop(chance.randrange(len(parts))) for _ in range(2))
            parts.append(_joined(left, right, chance.choice("+-*/")))
        if parts[0].value.denominator == 1 and 1 <= parts[0].value <= max_target:
            return numbers, parts[0]
    raise TaskError(
        f"countdown: no puzzle of {num_numbers} numbers up to {largest} with a target up to {max_target} was found in {MAX_TRIES:,}"
        " tries. Raise max_target, or lower the others."
    )


def _joined(left: Part, right: Part, sign: str) -> Part:
    """The two parts as one; a division by zero becomes a product, so that the result is always defined."""
    if sign == "/" and right.value == 0:
        sign = "*"
    value = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}.get(sign)
    if value is None:
        value = left.value / right.value
    tight = sign in "*/"
    first = f"({left.text})" if tight and left.sign in ("+", "-") else left.text
    second = f"({right.text})" if right.sign and (tight or (sign == "-" and right.sign in ("+", "-"))) else right.text
    return Part(f"{first} {sign} {second}", value, sign)
