"""The admission test of reasoning-gym's datasets, and the table of what it found.

A dataset is safe when its scorer gives full marks to the references and to nothing else that was tried: not to their neighbours,
not to garbage, not to programs; when it raises nothing, ends in time, does nothing with an answer but read it, and says the same
in another process, which also makes the same tasks. The table is made by `grpo tasks --admit` for one version of reasoning-gym and
is refused for another.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from verifiers.deadline import Overrun, WorkerPool
from verifiers.errors import VerifierError
from verifiers.reasoning_gym_neighbours import Neighbour, garbage, means_the_same, neighbours, programs
from verifiers.reasoning_gym_several import is_also_right

CHILD = Path(__file__).with_name("reasoning_gym_child.py")
TABLE = Path(__file__).with_name("reasoning_gym_admitted.json")
DISTRIBUTION = "reasoning-gym"
SCORE_DEADLINE_S = 5.0
MEMORY_MB = 3072
SEEDS = (11, 12, 13)
TASKS_PER_SEED = 8
MAX_SHOWN = 60
TOUCHED = Path(tempfile.gettempdir()) / "a_scorer_ran_this"


class Admission(NamedTuple):
    """Whether a dataset's scorer can be trusted, why not, and the most that it gives to garbage."""

    is_safe: bool
    reason: str
    garbage: float = 0.0


class NotAdmitted(Exception):
    """What the test found against a dataset."""


def make_pool(workers: int) -> WorkerPool:
    """Worker processes with reasoning-gym loaded, which start when they are first needed."""
    return WorkerPool(CHILD, setup=True, size=workers, deadline_s=SCORE_DEADLINE_S, memory_mb=MEMORY_MB)


def installed_version() -> str:
    return importlib.metadata.version(DISTRIBUTION)


@cache
def table() -> Mapping[str, Admission]:
    """What the test found for each dataset. Raises VerifierError when another version of reasoning-gym is installed."""
    stored = json.loads(TABLE.read_text())
    tried, installed = stored["reasoning_gym"], installed_version()
    if installed != tried:
        raise VerifierError(
            f"reasoning-gym {installed} is installed, but its datasets were tried with {tried}, and scorers change. Install "
            f"reasoning-gym=={tried}, or try them again: grpo tasks --admit."
        )
    return {name: Admission(**found) for name, found in stored["datasets"].items()}


def write_table(found: Mapping[str, Admission]) -> None:
    stored = {
        "made by": "grpo tasks --admit",
        "reasoning_gym": installed_version(),
        "seeds": SEEDS,
        "tasks_per_seed": TASKS_PER_SEED,
        "datasets": {name: found[name]._asdict() for name in sorted(found)},
    }
    TABLE.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


def names(pool: WorkerPool) -> list[str]:
    """Every dataset of the installed reasoning-gym."""
    return pool.ask_and_wait({"ask": "names"})


def admission(
    pool: WorkerPool,
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    num_tasks: int = TASKS_PER_SEED,
    second: WorkerPool | None = None,
) -> Admission:
    """The test of one dataset with these options; `second` is another pool, whose processes have to say the same. Waits."""
    most = 0.0
    try:
        for seed in seeds:
            entries = _entries(pool, name, {**(options or {}), "seed": seed, "size": num_tasks}, second)
            for index, entry in enumerate(entries):
                judge = _Judge(pool, name, dict(options or {}), entry, second)
                judge.reference_is_right()
                if index == 0:
                    most = max(most, judge.nonsense_is_wrong())
                others = [other["answer"] for other in entries if other is not entry]
                judge.neighbours_are_wrong(neighbours(entry["answer"].strip(), others, seed=index))
    except NotAdmitted as finding:
        return Admission(False, str(finding))
    return Admission(True, "", round(most, 3))


def _entries(pool: WorkerPool, name: str, options: dict[str, Any], second: WorkerPool | None) -> list[dict[str, Any]]:
    question = {"ask": "entries", "dataset": name, "options": options}
    made = _asked(pool, question, "making its tasks")
    if made["fault"] is not None:
        raise NotAdmitted(f"it cannot be made with the options {options}: {made['fault']}")
    if second is not None and _asked(second, question, "making its tasks") != made:
        raise NotAdmitted("another process makes other tasks from the same seed")
    for entry in made["entries"]:
        if not isinstance(entry["answer"], str):
            raise NotAdmitted("it states no reference answer, so its scorer cannot be tried")
        if not entry["answer"].strip():
            raise NotAdmitted("some of its reference answers are empty")
    return made["entries"]


class _Judge:
    """The scorer of one entry, with the complaints about it."""

    def __init__(
        self, pool: WorkerPool, name: str, options: dict[str, Any], entry: dict[str, Any], second: WorkerPool | None
    ) -> None:
        self._pool, self._name, self._options, self._entry, self._second = pool, name, options, entry, second
        self._answer = entry["answer"].strip()

    def reference_is_right(self) -> None:
        (score,) = self._scores([self._answer], "the reference")
        if score != 1:
            raise NotAdmitted(f"its own reference {_shown(self._answer)} gets {score:g}")

    def nonsense_is_wrong(self) -> float:
        """The most that garbage gets."""
        texts = [text for text in (*programs(str(TOUCHED)), *garbage()) if not means_the_same(text, self._answer)]
        TOUCHED.unlink(missing_ok=True)
        scores = self._scores(texts, "garbage")
        if TOUCHED.exists():
            raise NotAdmitted("its scorer runs the answer as a program")
        for text, score in zip(texts, scores, strict=True):
            if not 0 <= score < 1:
                raise NotAdmitted(f"{_shown(text)} gets {score:g}")
        return max(scores)

    def neighbours_are_wrong(self, near: Iterator[Neighbour]) -> None:
        tried = list(near)
        for neighbour, score in zip(tried, self._scores([each.text for each in tried], "a neighbour"), strict=True):
            if not 0 <= score < 1 and not (score == 1 and is_also_right(self._name, self._entry, neighbour.text)):
                what = f"{_shown(neighbour.text)} ({neighbour.kind}) gets {score:.17g}"
                raise NotAdmitted(f"{what}, where {_shown(self._answer)} is asked for")

    def _scores(self, texts: Sequence[str], what: str) -> list[float]:
        """A number for each text. Raises NotAdmitted when there is none, or a second process says otherwise."""
        scored = self._replies(self._pool, texts, what)
        for text, reply in zip(texts, scored, strict=True):
            if reply.get("refused") in ("compile", "exec"):
                raise NotAdmitted("its scorer evaluates texts as Python")
            if "refused" in reply:
                raise NotAdmitted(f"its scorer does more than read {_shown(text)}: {reply['refused']}")
            if "raised" in reply:
                raise NotAdmitted(f"{_shown(text)} makes its scorer raise {reply['raised'][:100]}")
            if reply["score"] is None:
                raise NotAdmitted(f"{_shown(text)} gets no finite number")
        if self._second is not None and self._replies(self._second, texts, what) != scored:
            raise NotAdmitted(f"another process scores {what} otherwise")
        return [reply["score"] for reply in scored]

    def _replies(self, pool: WorkerPool, texts: Sequence[str], what: str) -> list[dict[str, Any]]:
        question = {"ask": "scores", "dataset": self._name, "options": self._options, "entry": self._entry, "answers": texts}
        return _asked(pool, question, f"scoring {what}")


def _asked(pool: WorkerPool, question: dict[str, Any], what: str) -> Any:
    try:
        return pool.ask_and_wait(question)
    except Overrun as error:
        raise NotAdmitted(f"{what} was stopped: {error}") from None


def admit_all(only: Sequence[str] = ()) -> Iterator[tuple[str, Admission]]:
    """The test of every dataset, or of those named, one after the other; two processes have to agree."""
    pool, second = make_pool(1), make_pool(1)
    try:
        for name in only or names(pool):
            yield name, admission(pool, name, second=second)
    finally:
        asyncio.run(pool.close())
        asyncio.run(second.close())


def _shown(text: str) -> str:
    short = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"
    return repr(short)
