"""The verifier `math`: is the boxed answer equal to the reference?

In this order: strip the reasoning, take the boxes of the final region, bound their size, normalize, compare literally, as exact
numbers, by structure, and what is left symbolically in a killable worker. Each step lives in a module of its own, `math_*.py`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from verifiers.deadline import Overrun, WorkerPool
from verifiers.errors import InvalidReference
from verifiers.extract import MAX_BARE, Extraction, boxed_answer, final_region, last_answer, lenient_answer, only_formula
from verifiers.math_compare import Comparison, Question
from verifiers.math_number import decimal_comma, exact_number
from verifiers.math_policy import Percent, Policy, Units
from verifiers.math_spelling import normalized
from verifiers.math_structure import Leaf, Many, Node, parsed
from verifiers.math_text import excess_of_text, excess_of_value, is_balanced, literal_key
from verifiers.registry import verifier
from verifiers.types import Score, Task, correct, timeout, unparseable, wrong

SYMBOLIC = Path(__file__).with_name("math_symbolic.py")
MAX_BOXES = 16
MAX_SHOWN = 200


class Parsed(NamedTuple):
    """A text, normalized and taken apart."""

    text: str
    node: Node


class Judged(NamedTuple):
    """Whether an answer equals the reference and why; None when that would take too long."""

    is_equal: bool | None
    reason: str


@verifier("math")
class MathAnswer:
    """Whether the last box after the reasoning equals the reference, exactly.

    The reference is an answer, a text with a `\\boxed{…}`, or a worked solution that ends in `#### 72`. Boxes of different value
    are wrong ("hedged"). A number is answered by a number, not by a sum that makes it. Precision goes before recall: what is not
    proved equal is wrong.
    """

    def __init__(
        self,
        *,
        lenient: Annotated[
            bool, Field(description="Without a box, take the last formula or number. For evaluation; never for training.")
        ] = False,
        percent: Annotated[Percent, Field(description="What 42 % equals: its value 0.42, the number 42, or either.")] = "value",
        units: Annotated[
            Units, Field(description="optional: absent or equal; required: equal where the reference has one; ignored.")
        ] = "optional",
        tolerance: Annotated[
            float,
            Field(ge=0, lt=1, allow_inf_nan=False, description="Allowed |answer - reference| / |reference|; 0 compares exactly."),
        ] = 0.0,
        evaluated: Annotated[
            bool, Field(description="Whether a number must be written as a number, so that 9+1 is not 10.")
        ] = True,
        rounded: Annotated[
            int,
            Field(ge=0, description="Significant digits from which a decimal stands for what it rounds, on either side; 0: never."),
        ] = 0,
        ordered: Annotated[
            bool, Field(description="Whether a list without braces must have the reference's order. A tuple must, a set need not.")
        ] = False,
        vectors: Annotated[bool, Field(description="Whether a column or row matrix equals a tuple.")] = False,
        workers: int = 2,
    ) -> None:
        self._lenient = lenient
        self._policy = Policy(percent, units, tolerance, rounded, evaluated, ordered, vectors)
        self._pool = WorkerPool(SYMBOLIC, size=workers)

    def prepare(self, reference: Any) -> object:
        """Refuses what is no answer: nothing, no text or number, unbalanced brackets, or more than is ever compared."""
        return _reference(reference, self._lenient)

    def example(self, reference: Any) -> str:
        """The reference's answer in a box."""
        return f"\\boxed{{{_stated(str(reference), self._lenient).strip()}}}"

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        reference = _reference(task.reference, self._lenient)
        region = final_region(text)
        found = lenient_answer(region) if self._lenient else boxed_answer(region)
        if found is None:
            return unparseable("no \\boxed{…} after the reasoning" if region.strip() else "nothing after the reasoning")
        shown = found.answer[:MAX_SHOWN]
        judged = await self._judged(reference, found.answer)
        if judged.is_equal is None:
            return timeout(judged.reason, shown)
        if not judged.is_equal:
            return wrong(judged.reason, shown)
        hedge = await self._hedge(reference, found)
        return wrong(hedge, shown) if hedge else correct(judged.reason, shown)

    async def close(self) -> None:
        await self._pool.close()

    async def _hedge(self, reference: Parsed, found: Extraction) -> str | None:
        """Why an answer that is right is hedged: another box does not equal it."""
        if len(found.others) > MAX_BOXES:
            return f"hedged: {len(found.others) + 1} different boxes"
        for other in found.others:
            if not (await self._judged(reference, other)).is_equal:
                return f"hedged: another box says {other[:MAX_SHOWN]}"
        return None

    async def _judged(self, reference: Parsed, answer: str) -> Judged:
        """Compare, ask what is open, compare again with the replies."""
        too_large = excess_of_text(answer)
        if too_large:
            return Judged(None, f"the answer is too large to compare: {too_large}")
        answer = only_formula(answer)
        given = Parsed(normalized(answer), parsed(answer))
        if literal_key(reference.text) == literal_key(given.text):
            return Judged(True, "the same text")
        too_large = excess_of_value(given.text)
        if too_large:
            return Judged(None, f"the answer is too large to compare: {too_large}")
        replies: dict[Question, bool] = {}
        notes: dict[str, None] = {}
        while True:
            comparison = Comparison(self._policy, replies)
            is_equal = comparison.equal(reference.node, given.node)
            if is_equal is False and _as_decimal_comma(reference, given):
                is_equal = True
            notes |= dict.fromkeys(comparison.notes)
            if is_equal is not None:
                break
            try:
                reply = await self._pool.ask({"questions": list(comparison.open), "tolerance": self._policy.tolerance})
            except Overrun as error:
                return Judged(None, f"the comparison was stopped: {error}")
            if "too_large" in reply:
                return Judged(None, f"the answer is too large to compare: {reply['too_large']}")
            for question, (verdict, note) in zip(comparison.open, reply["verdicts"], strict=True):
                replies[question] = verdict
                notes[note] = None
        how = "; ".join(notes) or "equal"
        return Judged(is_equal, f"equals the reference ({how})" if is_equal else f"is not {reference.text[:MAX_SHOWN]} ({how})")


def _reference(reference: Any, lenient: bool) -> Parsed:
    if isinstance(reference, bool) or not isinstance(reference, (str, int, float)):
        raise InvalidReference(f"the reference is {reference!r:.60}, but math needs an answer: text or a number.")
    return _parsed_reference(str(reference), lenient)


@lru_cache(maxsize=65536)
def _parsed_reference(reference: str, lenient: bool) -> Parsed:
    """Parsed once for each reference. Raises InvalidReference."""
    answer = _stated(reference, lenient)
    shown = f"the reference {answer.strip()[:60]!r}"
    too_large = excess_of_text(answer)
    if too_large:
        raise InvalidReference(f"{shown} is too large to be compared: {too_large}. Drop the task.")
    answer = only_formula(answer)
    text = normalized(answer)
    if not any(character.isalnum() for character in text) and text not in (r"\{\}", "\\{ \\}"):
        raise InvalidReference(f"{shown} states no answer. Give an expression, a text with \\boxed{{…}}, or '#### 72'.")
    if not is_balanced(text) and exact_number(text) is None:
        raise InvalidReference(f"{shown} has brackets that do not match. Mend them.")
    return Parsed(text, parsed(answer))


def _stated(reference: str, lenient: bool) -> str:
    """The answer that a reference states: after `####`, in its box, or the whole of it; leniently, the last that prose states."""
    if "####" in reference:
        return reference.rpartition("####")[2]
    found = boxed_answer(reference)
    if found is None and lenient and len(reference) > MAX_BARE:
        found = last_answer(reference)
    return found.answer if found else reference


def _as_decimal_comma(reference: Parsed, given: Parsed) -> bool:
    """Whether one side is a decimal and the other the same with a decimal comma, where it could otherwise only be a list of two."""
    for one, other in ((reference, given), (given, reference)):
        if isinstance(one.node, Leaf) and one.node.number is not None and isinstance(other.node, (Many, Leaf)):
            value = decimal_comma(other.text)
            if value is not None and value == one.node.number.value and value.denominator != 1:
                return True
    return False
