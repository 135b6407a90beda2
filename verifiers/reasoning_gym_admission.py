"""The admission test of reasoning-gym's datasets, and the table of what it found.

A scorer is trusted when it gives full marks to the references and to nothing else that was tried: not to their neighbours,
not to garbage, not to programs; when it raises nothing, ends in time, does nothing with an answer but read it, and says the same
in another process, which also makes the same tasks. Where a scorer fails, our own comparison may judge in its place. The table is
made by `grpo tasks --admit` for one version of reasoning-gym and is refused for another.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from verifiers.deadline import Overrun, WorkerPool
from verifiers.errors import VerifierError
from verifiers.reasoning_gym_comparison import DISTRUSTED, OURS, is_also_right, is_right
from verifiers.reasoning_gym_neighbours import Neighbour, garbage, means_the_same, neighbours, programs

CHILD = Path(__file__).with_name("reasoning_gym_child.py")
TABLE = Path(__file__).with_name("reasoning_gym_admitted.json")
Judge = Literal["scorer", "comparison", "nobody"]
DISTRIBUTION = "reasoning-gym"
SCORE_DEADLINE_S = 5.0
MEMORY_MB = 3072
SEEDS = (11, 12, 13)
TASKS_PER_SEED = 8
TEXTS_AT_ONCE = 20  # which together have to be scored before the deadline
MAX_SHOWN = 60
TOUCHED = Path("/tmp/a_scorer_ran_this")  # the same everywhere: it stands in the reasons of the table


class Admission(NamedTuple):
    """What the test found: who judges a dataset, what speaks against its scorer, and the most that this gives to garbage."""

    judge: Judge
    reason: str = ""
    garbage: float = 0.0

    @property
    def is_safe(self) -> bool:
        return self.judge != "nobody"


class NotAdmitted(Exception):
    """What the test found against a dataset's scorer."""


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
    given = dict(options or {})
    try:
        made = [_entries(pool, name, {**given, "seed": seed, "size": num_tasks}, second) for seed in seeds]
    except NotAdmitted as finding:
        return Admission("nobody", str(finding))
    try:
        if name in DISTRUSTED:
            raise NotAdmitted(DISTRUSTED[name])
        most = max(_tried(_Scorer(pool, name, given, second), entries) for entries in made)
    except NotAdmitted as finding:
        reason = str(finding)
    else:
        return Admission("scorer", garbage=round(most, 3))
    if name not in OURS:
        return Admission("nobody", reason)
    try:
        for entries in made:
            _tried(_Comparison(name), entries)
    except NotAdmitted as finding:
        return Admission("nobody", f"{reason}; and our own comparison: {finding}")
    return Admission("comparison", reason)


def _entries(pool: WorkerPool, name: str, options: dict[str, Any], second: WorkerPool | None) -> list[dict[str, Any]]:
    """As many tasks as the options' size says. Raises NotAdmitted when they are of no use."""
    entries = []
    for index in range(options["size"]):
        question = {"ask": "entry", "index": index, "dataset": name, "options": options}
        made = _asked(pool, question, "making a task")
        if made["fault"] is not None:
            raise NotAdmitted(f"it cannot be made with the options {options}: {made['fault']}")
        if second is not None and _asked(second, question, "making a task") != made:
            raise NotAdmitted("another process makes other tasks from the same seed")
        if not isinstance(made["entry"]["answer"], str):
            raise NotAdmitted("it states no reference answer, so its scorer cannot be tried")
        if not made["entry"]["answer"].strip():
            raise NotAdmitted("some of its reference answers are empty")
        entries.append(made["entry"])
    return entries


class _Comparison:
    """Our own comparison as a judge that can be tried."""

    def __init__(self, name: str) -> None:
        self.name = name

    def scores(self, entry: dict[str, Any], texts: Sequence[str], what: str) -> list[float]:
        return [float(is_right(self.name, entry, text)) for text in texts]


class _Scorer:
    """A dataset's scorer as a judge that can be tried."""

    def __init__(self, pool: WorkerPool, name: str, options: dict[str, Any], second: WorkerPool | None) -> None:
        self.name = name
        self._pool, self._options, self._second = pool, options, second

    def scores(self, entry: dict[str, Any], texts: Sequence[str], what: str) -> list[float]:
        """A number for each text. Raises NotAdmitted when there is none, or a second process says otherwise."""
        scored = self._replies(self._pool, entry, texts, what)
        for text, reply in zip(texts, scored, strict=True):
            if reply.get("refused") in ("compile", "exec"):
                raise NotAdmitted("its scorer evaluates texts as Python")
            if "refused" in reply:
                raise NotAdmitted(f"its scorer does more than read {_shown(text)}: {reply['refused']}")
            if "raised" in reply:
                raise NotAdmitted(f"{_shown(text)} makes its scorer raise {reply['raised'][:100]}")
            if reply["score"] is None:
                raise NotAdmitted(f"{_shown(text)} gets no finite number")
        if self._second is not None and self._replies(self._second, entry, texts, what) != scored:
            raise NotAdmitted(f"another process scores {what} otherwise")
        return [reply["score"] for reply in scored]

    def _replies(self, pool: WorkerPool, entry: dict[str, Any], texts: Sequence[str], what: str) -> list[dict[str, Any]]:
        question = {"ask": "scores", "dataset": self.name, "options": self._options, "entry": entry}
        parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        return [reply for part in parts for reply in _asked(pool, question | {"answers": part}, f"scoring {what}")]


def _tried(judge: _Scorer | _Comparison, entries: Sequence[dict[str, Any]]) -> float:
    """The most that garbage gets from a judge that gives full marks to what is right and to nothing else. Raises NotAdmitted."""
    most = 0.0
    for index, entry in enumerate(entries):
        _reference_is_right(judge, entry)
        if index == 0:
            most = _nonsense_is_wrong(judge, entry)
        others = [other["answer"] for other in entries if other is not entry]
        _neighbours_are_wrong(judge, entry, list(neighbours(entry["answer"].strip(), others, seed=index)))
    return most


def _reference_is_right(judge: _Scorer | _Comparison, entry: dict[str, Any]) -> None:
    answer = entry["answer"].strip()
    (score,) = judge.scores(entry, [answer], "the reference")
    if score != 1:
        raise NotAdmitted(f"its own reference {_shown(answer)} gets {score:g}")


def _nonsense_is_wrong(judge: _Scorer | _Comparison, entry: dict[str, Any]) -> float:
    """The most that garbage gets."""
    texts = [text for text in (*programs(str(TOUCHED)), *garbage()) if not means_the_same(text, entry["answer"])]
    TOUCHED.unlink(missing_ok=True)
    scores = judge.scores(entry, texts, "garbage")
    if TOUCHED.exists():
        raise NotAdmitted("its scorer runs the answer as a program")
    for text, score in zip(texts, scores, strict=True):
        if not 0 <= score < 1:
            raise NotAdmitted(f"{_shown(text)} gets {score:g}")
    return max(scores)


def _neighbours_are_wrong(judge: _Scorer | _Comparison, entry: dict[str, Any], near: Sequence[Neighbour]) -> None:
    for neighbour, score in zip(near, judge.scores(entry, [each.text for each in near], "a neighbour"), strict=True):
        if not 0 <= score < 1 and not (score == 1 and is_also_right(judge.name, entry, neighbour.text)):
            what = f"{_shown(neighbour.text)} ({neighbour.kind}) gets {score:.17g}"
            raise NotAdmitted(f"{what}, where {_shown(entry['answer'].strip())} is asked for")


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
