"""What a verifier is: the methods that the service calls, those it may have besides, and a rule as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from verifiers.types import Score, Task

RuleFunction = Callable[..., Score]


class Verifier(Protocol):
    """A verifier that needs a process, a sandbox or a network.

    Its constructor's keyword-only parameters are its options. Two names are not options, the service fills them in: `workers: int`,
    how many processes the verifier may keep, and `sandbox: Sandbox`, which it shares with others and does not close.
    """

    def prepare(self, reference: Any) -> object:
        """Parse a task's reference, when tasks are loaded. Raises InvalidReference. What it returns is not used."""

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        """Judge one completion. `num_tokens` is its length, None when unknown. Raising is an infrastructure fault."""
        ...

    async def close(self) -> None:
        """Give back processes and connections."""


@runtime_checkable
class StatesReference(Protocol):
    """What a verifier that judges answers may also do, so that references can be checked before training."""

    def example(self, reference: Any) -> str | None:
        """A completion that states the reference, and should get full marks; None when the reference holds none.

        Called with references that `prepare` accepts.
        """
        ...


class ScoresNow(Protocol):
    """What a verifier may also do when most of its scores need neither waiting nor more than microseconds."""

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score | None:
        """As `score`, without waiting; None where `score` must be asked."""
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """What a verifier may also say when it works on few scores at a time: the others wait in the service, where no clock runs."""

    max_at_once: int


@runtime_checkable
class Probed(Protocol):
    """What a verifier that depends on others may also do before a run starts."""

    async def probe(self) -> None:
        """Find out whether what it depends on is there. Raises SystemFault with what to do."""
        ...


class Rule:
    """A registered function and its options, as a Verifier. It runs where the service runs, so it should take microseconds."""

    def __init__(self, function: RuleFunction, options: Mapping[str, Any], *, wants_num_tokens: bool) -> None:
        self._function = function
        self._options = dict(options)
        self._wants_num_tokens = wants_num_tokens

    def prepare(self, reference: Any) -> None:
        """A rule takes any reference."""

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        extra = {"num_tokens": num_tokens} if self._wants_num_tokens else {}
        score = self._function(task, text, **self._options, **extra)
        if score is None:  # which would mean: ask again
            raise TypeError("a rule returned NoneType instead of a Score")
        return score

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        return self.score_now(task, text, num_tokens=num_tokens)

    async def close(self) -> None:
        """A rule holds nothing."""
