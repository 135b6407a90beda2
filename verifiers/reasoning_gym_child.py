"""The program of the killable workers of `reasoning_gym`: makes its tasks and asks its scorers. Trusts no answer.

While a scorer reads an answer, an audit hook refuses whatever could act on it: compiling or running a text, opening a file,
importing, starting a process, speaking to a network. It is asked before the deed, so an answer that a scorer hands to `eval` is
never even compiled.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What a scorer may do while it reads an answer, of all that Python announces (PEP 578).
HARMLESS = frozenset({"array.__new__", "builtins.id", "object.__getattr__", "sys._getframe", "sys._getframemodulename"})


class Refused(Exception):
    """A scorer was about to act on an answer instead of reading it."""


class Guard:
    """Refuses every event that is not harmless while it is up. Python has no way to take it down again from inside an answer."""

    def __init__(self) -> None:
        self._is_up = False
        self._refused: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_up and event not in HARMLESS:
            self._refused.append(event)
            raise Refused(f"a scorer may not do this with an answer: {event}")

    @contextmanager
    def up(self) -> Iterator[list[str]]:
        """Refuse in the body. The list holds the events that were refused, also those whose exception the scorer swallowed."""
        self._refused = []
        self._is_up = True
        try:
            yield self._refused
        finally:
            self._is_up = False


_datasets: dict[str, Any] = {}  # whose scorers are asked
_newest: tuple[str, Any] | None = None  # that makes entries


def setup(_: Any) -> None:
    """Import the library, which takes a second or two."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would count against the memory limit
    import reasoning_gym  # noqa: F401

    global _guard
    _guard = Guard()


def answer(question: dict[str, Any]) -> Any:
    """What is asked for: the names of all datasets, an entry of one, or the scores of answers to an entry."""
    if question["ask"] == "names":
        from reasoning_gym.factory import DATASETS

        return sorted(DATASETS)
    if question["ask"] == "entry":
        return entry_at(question["index"], question["dataset"], question["options"])
    return scores(question["dataset"], question["options"], question["entry"], question["answers"])


def entry_at(index: int, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """An entry of a dataset, as JSON would carry it, or the fault for which there is none."""
    global _newest
    key = json.dumps([name, options], sort_keys=True)
    try:
        if _newest is None or _newest[0] != key:
            _newest = key, _made(name, options)
    except (TypeError, AssertionError, ValueError) as error:
        return {"fault": str(error) or type(error).__name__}
    return {"fault": None, "entry": json.loads(json.dumps(_newest[1][index]))}


def scores(name: str, options: dict[str, Any], entry: dict[str, Any], answers: list[str]) -> list[dict[str, Any]]:
    """What the scorer says to each answer: `{"score": 0.5}`, or `{"raised": ...}`, or `{"refused": ...}`."""
    dataset = _dataset(name, options)
    stated = entry["answer"]
    # Once with the reference, so that whatever the scorer loads when it is first used is loaded.
    _quietly(dataset, stated, _from_json(name, entry))
    return [_scored(dataset, text, _from_json(name, entry)) for text in answers]


def _scored(dataset: Any, text: str, entry: dict[str, Any]) -> dict[str, Any]:
    raised, score = None, None
    with _guard.up() as refused:
        try:
            score = dataset.score_answer(text, entry)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            raised = error
    if refused:
        return {"refused": refused[0]}
    if raised is not None:
        return {"raised": f"{type(raised).__name__}: {raised}"[:300]}
    return {"score": _number(score)}


def _number(score: Any) -> float | None:
    """The score as a finite number; None for anything else."""
    try:
        number = float(score)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _quietly(dataset: Any, text: str, entry: dict[str, Any]) -> None:
    try:
        dataset.score_answer(text, entry)
    except Exception:  # it will raise again, where that is reported
        return


def _dataset(name: str, options: dict[str, Any]) -> Any:
    """The dataset whose scorer is asked. Scorers read its options, but neither its seed nor its size."""
    key = json.dumps([name, options], sort_keys=True)
    if key not in _datasets:
        _datasets[key] = _made(name, {**options, "seed": 0, "size": 1})
    return _datasets[key]


def _made(name: str, options: dict[str, Any]) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, **options)


def _from_json(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A fresh copy of an entry, as its scorer wants it: some write into it, and those of ARC compare with tuples."""
    copy = json.loads(json.dumps(entry))
    if name in ("arc_agi", "rearc"):
        copy["metadata"]["output"] = tuple(map(tuple, copy["metadata"]["output"]))
    return copy
