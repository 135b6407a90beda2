"""The verifier `math`: is the boxed answer equal to the reference?

In this order: strip the reasoning, take the boxes of the final region, bound their size, normalize, compare literally, as exact
numbers, by structure, and what is left symbolically in a killable worker. Each step lives in a module of its own, `math_*.py`.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from verifiers.deadline import InWorkers, Overrun, WorkerPool
from verifiers.extract import Extraction, boxed_answer, final_region, lenient_answer, only_formula
from verifiers.math_compare import Comparison, Question
from verifiers.math_number import decimal_comma, plain_number
from verifiers.math_policy import Percent, Policy, Units
from verifiers.math_reference import Reference, read, stated
from verifiers.math_spelling import normalized
from verifiers.math_structure import Leaf, Many, Node, structure
from verifiers.math_text import excess_of_text, excess_of_value, literal_key
from verifiers.registry import verifier
from verifiers.types import Score, Task, correct, timeout, unparseable, wrong
from verifiers.verdict_cache import VerdictCache

SYMBOLIC = Path(__file__).with_name("math_symbolic.py")
MAX_BOXES = 16
MAX_SHOWN = 200


class Judged(NamedTuple):
    """Whether an answer equals the reference and why; None when that would take too long."""

    is_equal: bool | None
    reason: str


class Replies(NamedTuple):
    """What the symbolic back end says to questions: a verdict and a note for each, or why it stopped."""

    verdicts: list[tuple[bool, str]]
    stopped: str = ""


Asking = Generator[list[Question], Replies, Any]


@verifier("math")
class MathAnswer(InWorkers):
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
        rounded: Annotated[
            int,
            Field(ge=0, description="Significant digits from which a decimal stands for what it rounds, on either side; 0: never."),
        ] = 0,
        evaluated: Annotated[
            bool, Field(description="Whether a number must be written as a number, so that 9+1 is not 10.")
        ] = True,
        ordered: Annotated[
            bool, Field(description="Whether a list without braces must have the reference's order. A tuple must, a set need not.")
        ] = False,
        vectors: Annotated[bool, Field(description="Whether a column or row matrix equals a tuple.")] = False,
        workers: int = 2,
    ) -> None:
        self._lenient = lenient
        self._policy = Policy(percent, units, tolerance, rounded, evaluated, ordered, vectors)
        self._is_exact = tolerance == 0 and rounded == 0
        self._known = VerdictCache()
        super().__init__(WorkerPool(SYMBOLIC, size=workers))

    def prepare(self, reference: Any) -> object:
        """Refuses what is no answer: nothing, no text or number, unbalanced brackets, or more than is ever compared."""
        return read(reference, lenient=self._lenient)

    def example(self, reference: Any) -> str:
        """The reference's answer in a box."""
        return f"\\boxed{{{stated(str(reference), lenient=self._lenient).strip()}}}"

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score | None:
        """The score where it can be given at once, None where a worker must be asked."""
        reference = read(task.reference, lenient=self._lenient)
        found = self._found(text)
        if isinstance(found, Score):
            return found
        score = self._quick(reference, found) or self._known.get((task.reference, found))
        if score is None:
            scoring = self._scoring(reference, found)
            try:
                next(scoring)
            except StopIteration as end:
                score = self._keep(task, found, end.value)
            finally:
                scoring.close()
        return score

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        score = self.score_now(task, text)
        if score is not None:
            return score
        found = self._found(text)
        assert isinstance(found, Extraction), "what has no answer is scored at once"
        scoring = self._scoring(read(task.reference, lenient=self._lenient), found)
        try:
            questions = next(scoring)
            while True:
                questions = scoring.send(await self._ask(questions))
        except StopIteration as end:
            return self._keep(task, found, end.value)
        finally:
            scoring.close()

    def counters(self) -> dict[str, int]:
        """What the workers and the cache of verdicts have done since the last call."""
        return super().counters() | self._known.counters()

    def _found(self, text: str) -> Extraction | Score:
        region = final_region(text)
        found = lenient_answer(region) if self._lenient else boxed_answer(region)
        if found is None:
            return unparseable("no \\boxed{…} after the reasoning" if region.strip() else "nothing after the reasoning")
        return found

    def _quick(self, reference: Reference, found: Extraction) -> Score | None:
        """The score of one plain number against another, as the whole comparison would give it; None for anything else."""
        if reference.number is None or found.others or not self._is_exact:
            return None
        number = plain_number(found.answer)
        if number is None:
            return None
        if number != reference.number:
            return wrong(f"is not {reference.text} (another number)", found.answer)
        return correct("the same text" if found.answer == reference.text else "equals the reference (equal)", found.answer)

    def _keep(self, task: Task, found: Extraction, score: Score) -> Score:
        if not found.others:  # their number and length have no bound
            self._known.keep((task.reference, found), score)
        return score

    async def _ask(self, questions: list[Question]) -> Replies:
        try:
            reply = await self._pool.ask({"questions": questions, "tolerance": self._policy.tolerance})
        except Overrun as error:
            return Replies([], f"the comparison was stopped: {error}")
        if "too_large" in reply:
            return Replies([], f"the answer is too large to compare: {reply['too_large']}")
        return Replies(reply["verdicts"])

    def _scoring(self, reference: Reference, found: Extraction) -> Asking:
        """Yields questions, is sent replies, returns the Score."""
        shown = found.answer[:MAX_SHOWN]
        judged = yield from self._judging(reference, found.answer)
        if judged.is_equal is None:
            return timeout(judged.reason, shown)
        if not judged.is_equal:
            return wrong(judged.reason, shown)
        hedge = yield from self._hedge(reference, found)
        return wrong(hedge, shown) if hedge else correct(judged.reason, shown)

    def _hedge(self, reference: Reference, found: Extraction) -> Asking:
        """Why an answer that is right is hedged: another box does not equal it. None when it is not."""
        if len(found.others) > MAX_BOXES:
            return f"hedged: {len(found.others) + 1} different boxes"
        for other in found.others:
            judged = yield from self._judging(reference, other)
            if not judged.is_equal:
                return f"hedged: another box says {other[:MAX_SHOWN]}"
        return None

    def _judging(self, reference: Reference, answer: str) -> Asking:
        """Compare, ask what is open, compare again with the replies; returns Judged."""
        too_large = excess_of_text(answer)
        if too_large:
            return Judged(None, f"the answer is too large to compare: {too_large}")
        text = normalized(only_formula(answer))
        if reference.key == literal_key(text):
            return Judged(True, "the same text")
        too_large = excess_of_value(text)
        if too_large:
            return Judged(None, f"the answer is too large to compare: {too_large}")
        node = structure(text)
        replies: dict[Question, bool] = {}
        notes: dict[str, None] = {}
        while True:
            comparison = Comparison(self._policy, replies)
            is_equal = comparison.equal(reference.node, node)
            notes |= dict.fromkeys(comparison.notes)
            if is_equal is not None:
                break
            questions = list(comparison.open)
            told = yield questions
            if told.stopped:
                return Judged(None, told.stopped)
            for question, (verdict, note) in zip(questions, told.verdicts, strict=True):
                replies[question] = verdict
                notes[note] = None
        is_equal = is_equal or _as_decimal_comma(reference, text, node)
        how = "; ".join(notes) or "equal"
        return Judged(is_equal, f"equals the reference ({how})" if is_equal else f"is not {reference.text[:MAX_SHOWN]} ({how})")


def _as_decimal_comma(reference: Reference, text: str, node: Node) -> bool:
    """Whether one side is a decimal and the other the same with a decimal comma, where it could otherwise only be a list of two."""
    for one, other, other_text in ((reference.node, node, text), (node, reference.node, reference.text)):
        if isinstance(one, Leaf) and one.number is not None and isinstance(other, (Many, Leaf)):
            value = decimal_comma(other_text)
            if value is not None and value == one.number.value and value.denominator != 1:
                return True
    return False
