"""What a task's reference states, read once for each reference."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from verifiers.errors import InvalidReference
from verifiers.extract import MAX_BARE, boxed_answer, last_answer, only_formula
from verifiers.math_number import exact_number
from verifiers.math_spelling import normalized
from verifiers.math_structure import Leaf, Node, structure
from verifiers.math_text import excess_of_text, is_balanced, literal_key


class Reference(NamedTuple):
    """An answer, normalized and taken apart. `number` is its value when it is a number with neither unit nor percent sign."""

    text: str
    key: str
    node: Node
    number: Fraction | None


def read(reference: Any, *, lenient: bool) -> Reference:
    """Raises InvalidReference for what is no answer: nothing, no text or number, unbalanced, or more than is ever compared."""
    if type(reference) is str:
        return _read(reference, lenient)
    if isinstance(reference, bool) or not isinstance(reference, (str, int, float)):
        raise InvalidReference(f"the reference is {reference!r:.60}, but math needs an answer: text or a number.")
    return _read(str(reference), lenient)


def stated(reference: str, *, lenient: bool) -> str:
    """The answer that a reference states: after `####`, in its box, or the whole of it; leniently, the last that prose states."""
    if "####" in reference:
        return reference.rpartition("####")[2]
    found = boxed_answer(reference)
    if found is None and lenient and len(reference) > MAX_BARE:
        found = last_answer(reference)
    return found.answer if found else reference


@lru_cache(maxsize=65536)
def _read(reference: str, lenient: bool) -> Reference:
    answer = stated(reference, lenient=lenient)
    shown = f"the reference {answer.strip()[:60]!r}"
    too_large = excess_of_text(answer)
    if too_large:
        raise InvalidReference(f"{shown} is too large to be compared: {too_large}. Drop the task.")
    text = normalized(only_formula(answer))
    if not any(character.isalnum() for character in text) and text not in (r"\{\}", "\\{ \\}"):
        raise InvalidReference(f"{shown} states no answer. Give an expression, a text with \\boxed{{…}}, or '#### 72'.")
    if not is_balanced(text) and exact_number(text) is None:
        raise InvalidReference(f"{shown} has brackets that do not match. Mend them.")
    node = structure(text)
    number = node.number if isinstance(node, Leaf) else None
    is_plain = number is not None and not number.is_percent and not number.unit
    return Reference(text, literal_key(text), node, number.value if number is not None and is_plain else None)
