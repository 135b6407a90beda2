"""Supervised fine-tuning: raise the likelihood of demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Batch, Example
from grpo.objectives.base import Objective
from grpo.objectives.surrogate import Loss
from rollout.types import Group


class Sft(Objective):
    """Mean negative log-likelihood per token of every completion whose reward is 1.

    With recorded demonstrations this is supervised fine-tuning; with a live source it is rejection-sampling fine-tuning
    (arXiv:2308.01825, section 3.3).
    """

    name: Literal["sft"] = Field(default="sft", description="Negative log-likelihood of completions with reward 1.")

    @property
    def average(self) -> Average:
        return "token"

    @property
    def compares(self) -> bool:
        return False

    def keep(self, group: Group) -> bool:
        return 1.0 in group.scored_rewards

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        return [
            Example(completion.prompt_ids, completion.token_ids, completion.behavior_logprobs, advantage=1.0)
            for group in groups
            for completion, verdict in zip(group.completions, group.verdicts, strict=True)
            if verdict.reward == 1.0
        ]

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        return Loss(-(batch.weights * logprobs.masked_fill(~batch.mask, 0.0)).sum(), {})
