"""Learner and engines that have the same memory in turns: the loop says `update` and `load`, and engines fall asleep and wake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo.batch import Example
    from grpo.learner import Update
    from rollout.fleet import Fleet


class LearnerInTurns:
    """A learner before whose updates the engines give their memory up. For lock step only: nobody samples while it updates.

    The fleet wakes them: with its next load, or for the next group.
    """

    def __init__(self, learner: Any, fleet: Fleet) -> None:
        self._learner = learner
        self._fleet = fleet

    async def update(self, examples: Sequence[Example]) -> Update:
        await self._fleet.sleep()
        return await self._learner.update(examples)

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return getattr(self._learner, method)
