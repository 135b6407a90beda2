"""The data that goes into a verifier and comes out of it. No logic, no heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One turn of a chat prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, a reference, and the name of the reward mix that judges it.

    `prompt` is the user's text, or a whole conversation that ends before the completion. `reference` is plain JSON data whose
    form the verifiers of the mix define: an answer for `math`, test cases for `unit_tests`.
    """

    id: str
    prompt: str | tuple[Message, ...]
    reference: Any
    rewards: str


class Outcome(StrEnum):
    """What happened to one completion in one verifier. Only INFRA is our fault; all the others are the model's."""

    CORRECT = "correct"
    WRONG = "wrong"
    PARTIAL = "partial"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    CRASH = "crash"
    INFRA = "infra"


@dataclass(frozen=True, slots=True)
class Score:
    """One verifier's opinion of one completion.

    `value` is in [0, 1]: 1 when correct, anything when partial, 0 for every other fault of the model, None when the outcome is
    infra. `reason` is for the person who reads rollouts. `extracted` is the part of the text that was judged, None when there was
    none. `verifier` (the component's name in the mix) and `seconds` are filled in by the service.
    """

    outcome: Outcome
    value: float | None
    reason: str
    extracted: str | None = None
    verifier: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.outcome is Outcome.INFRA:
            valid = self.value is None
        elif self.value is None or not math.isfinite(self.value):
            valid = False
        elif self.outcome is Outcome.CORRECT:
            valid = self.value == 1.0
        elif self.outcome is Outcome.PARTIAL:
            valid = 0.0 <= self.value <= 1.0
        else:
            valid = self.value == 0.0
        if not valid:
            raise ValueError(
                f"a score with outcome {self.outcome.value} cannot have the value {self.value}: correct is 1, partial is in "
                "[0, 1], infra has None, every other outcome is 0."
            )


def correct(reason: str, extracted: str | None = None) -> Score:
    """Full marks."""
    return Score(Outcome.CORRECT, 1.0, reason, extracted)


def wrong(reason: str, extracted: str | None = None) -> Score:
    """An answer was found, and it is wrong."""
    return Score(Outcome.WRONG, 0.0, reason, extracted)


def partial(value: float, reason: str, extracted: str | None = None) -> Score:
    """Some of what was asked for. `value` is in [0, 1]."""
    return Score(Outcome.PARTIAL, value, reason, extracted)


def unparseable(reason: str) -> Score:
    """No answer where one was asked for."""
    return Score(Outcome.UNPARSEABLE, 0.0, reason)


def timeout(reason: str, extracted: str | None = None) -> Score:
    """The model's answer or program takes longer, or is larger, than it may be."""
    return Score(Outcome.TIMEOUT, 0.0, reason, extracted)


def infra(reason: str) -> Score:
    """Our fault, not the model's: the completion will be unscored."""
    return Score(Outcome.INFRA, None, reason)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The Scores of one completion combined by a reward mix.

    `reward` is in [0, 1], or None when the completion is unscored; then `cause` says why. `is_correct` is what accuracy counts:
    the mix's main component (greatest weight, the first of equals) is correct and no gate failed.
    """

    reward: float | None
    is_correct: bool
    scores: tuple[Score, ...]
    cause: str | None = None

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.cause is None):
            raise ValueError("a verdict has either a reward or a cause for being unscored, not both and not neither.")
        if self.reward is not None and not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"a reward is a number in [0, 1], not {self.reward}.")
