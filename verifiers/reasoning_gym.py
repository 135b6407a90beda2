"""The verifier `reasoning_gym`: does the answer get full marks from the scorer of its dataset?

The scorers run in killable worker processes that refuse to do anything with an answer but read it. Which of them are trusted, and
which datasets are judged by a comparison of our own instead, is decided by the admission test (`reasoning_gym_admission.py`).
Nothing of the library is imported here.
"""

from __future__ import annotations

import json
import threading
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifiers.deadline import InWorkers, Overrun
from verifiers.errors import InvalidReference, VerifierError
from verifiers.extract import Extraction
from verifiers.options import did_you_mean, explain
from verifiers.reasoning_gym_admission import Admission, admission, make_pool, table
from verifiers.reasoning_gym_comparison import is_right
from verifiers.registry import verifier
from verifiers.stated_answer import Inside, in_its_place, stated_answer
from verifiers.types import Score, Task, correct, partial, timeout, wrong

MAX_CHARACTERS = 20_000
MAX_SHOWN = 200
# A dataset with options of one's own is tried on this many of its tasks when the first of them is prepared.
NUM_TRIED = 8


class Entry(BaseModel):
    """The reference of a task: what reasoning-gym's scorer is given beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True, title="the reference")

    dataset: str
    answer: str
    metadata: dict[str, Any]
    options: dict[str, Any] = {}

    @property
    def scorer_options(self) -> dict[str, Any]:
        """The options without those that no scorer reads."""
        return {name: value for name, value in self.options.items() if name not in ("seed", "size")}


@verifier("reasoning_gym")
class ReasoningGym(InWorkers):
    """Whether the answer is right by the scorer of its reasoning-gym dataset; `grpo tasks` lists the datasets that are trusted.

    Where the scorer is not to be trusted but one answer is right, that is compared with instead. The reference is the field `entry`
    of a row of the source `reasoning_gym:NAME`. Two answers of different value are wrong ("hedged"). Scores below full marks are
    wrong, unless `partial` says otherwise.
    """

    def __init__(
        self,
        *,
        inside: Inside = "answer_tags",
        partial: Annotated[
            bool,
            Field(
                description="Whether a score below full marks counts as it is, instead of as wrong. Some scorers give such scores "
                "to garbage: grpo tasks NAME says how much."
            ),
        ] = False,
        workers: int = 2,
    ) -> None:
        self._inside: Inside = inside
        self._partial = partial
        super().__init__(make_pool(workers))
        self._refusals: dict[str, str | None] = {}
        self._trying = threading.Lock()

    def prepare(self, reference: Any) -> Entry:
        """Refuses what is no entry of a trusted dataset, what its own scorer does not accept, and options it is not safe with."""
        entry = read(reference)
        known = _admitted(entry.dataset)
        if known.judge == "nobody":
            raise InvalidReference(
                f"reasoning-gym's dataset {entry.dataset} is not trusted: {known.reason}. `grpo tasks` lists those that are"
                + ("; the verifier countdown judges this one (docs/verifiers.md)." if entry.dataset == "countdown" else ".")
            )
        if not entry.answer.strip():
            raise InvalidReference("its answer is empty. Drop the task.")
        if known.judge == "scorer":
            self._prepare_scorer(entry)
        return entry

    def _prepare_scorer(self, entry: Entry) -> None:
        try:
            json.dumps([entry.metadata, entry.options])
        except (TypeError, ValueError, RecursionError) as error:
            hint = "Take it from the source reasoning_gym:NAME."
            raise InvalidReference(f"its metadata and options are not plain JSON: {error}. {hint}") from None
        refusal = self._refusal_of_options(entry)
        if refusal is not None:
            raise InvalidReference(
                f"{entry.dataset} is not trusted with the options {entry.scorer_options}: {refusal}. Change them."
            )
        try:
            (reply,) = self._pool.ask_and_wait(_question(entry, [entry.answer.strip()]))
        except Overrun as error:
            raise InvalidReference(f"scoring its own answer was stopped: {error}. Drop the task.") from None
        if reply.get("score") != 1:
            raise InvalidReference(f"its own answer {entry.answer[:MAX_SHOWN]!r} does not get full marks ({reply}). Drop the task.")

    def example(self, reference: Any) -> str:
        """The reference's answer where an answer is looked for."""
        return in_its_place(read(reference).answer, self._inside)

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score | None:
        """The score where no scorer has to be asked, None where one has."""
        found = stated_answer(text, self._inside)
        if isinstance(found, Score):
            return found
        shown = found.answer[:MAX_SHOWN]
        if len(found.answer) > MAX_CHARACTERS:
            return timeout(f"the answer is too large to score: {len(found.answer)} characters", shown)
        entry = read(task.reference)
        if _admitted(entry.dataset).judge != "comparison":
            return None
        if is_right(entry.dataset, entry.model_dump(), found.answer):
            return correct("says what the reference says", shown)
        return wrong(f"does not say {entry.answer[:MAX_SHOWN]}", shown)

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        score = self.score_now(task, text)
        if score is not None:
            return score
        found = stated_answer(text, self._inside)
        assert isinstance(found, Extraction), "what has no answer is scored at once"
        return await self._scored(read(task.reference), found)

    async def _scored(self, entry: Entry, found: Extraction) -> Score:
        shown = found.answer[:MAX_SHOWN]
        try:
            # Beside the reference, so that a scorer that is broken is not taken for an answer that is wrong.
            reference, reply = await self._pool.ask(_question(entry, [entry.answer.strip(), found.answer]))
        except Overrun as error:
            return timeout(f"scoring was stopped: {error}", shown)
        if reference.get("score") != 1:
            raise VerifierError(f"the scorer of {entry.dataset} does not give its own reference full marks: {reference}")
        if "score" not in reply:
            return wrong(f"the scorer cannot read it: {reply.get('raised') or reply.get('refused')}", shown)
        score = reply["score"]
        if score is None or not 0 <= score <= 1:
            return wrong(f"the scorer gives {score}, which is no score", shown)
        if score == 1:
            return correct("full marks", shown)
        if self._partial and score > 0:
            return partial(score, f"the scorer gives {score:g}", shown)
        return wrong(f"the scorer gives {score:g}", shown)

    def _refusal_of_options(self, entry: Entry) -> str | None:
        """Why a dataset cannot be trusted with these options; None when it can. The table speaks for its default options."""
        options = entry.scorer_options
        if not options:
            return None
        key = json.dumps([entry.dataset, options], sort_keys=True)
        with self._trying:
            if key not in self._refusals:
                seed = entry.options.get("seed", 0)
                tried = admission(self._pool, entry.dataset, options, seeds=(seed,), num_tasks=NUM_TRIED)
                self._refusals[key] = None if tried.judge == "scorer" else tried.reason
            return self._refusals[key]


def read(reference: Any) -> Entry:
    """The reference's parts. Raises InvalidReference."""
    hint = 'Take tasks from the source reasoning_gym:NAME with reference = "entry".'
    if not isinstance(reference, dict):
        raise InvalidReference(f"expected an entry of a reasoning-gym dataset, found {str(reference)[:MAX_SHOWN]!r}. {hint}")
    try:
        return Entry.model_validate(reference)
    except ValidationError as error:
        raise InvalidReference(f"{explain(error, Entry)} {hint}") from None


def _admitted(name: str) -> Admission:
    try:
        known = table()
    except VerifierError as error:
        raise InvalidReference(str(error)) from None
    if name not in known:
        hint = did_you_mean(name, known)
        raise InvalidReference(f"reasoning-gym has no dataset {name[:MAX_SHOWN]!r}. {hint or '`grpo tasks --all` lists them.'}")
    return known[name]


def _question(entry: Entry, answers: list[str]) -> dict[str, Any]:
    stated = {"answer": entry.answer, "metadata": entry.metadata}
    return {"ask": "scores", "dataset": entry.dataset, "options": entry.scorer_options, "entry": stated, "answers": answers}
