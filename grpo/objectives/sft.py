"""Supervised fine-tuning: raise the likelihood of demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Batch, Example
from grpo.objectives.base import Objective, scored_examples
from grpo.objectives.sources import GroupSource
from grpo.objectives.surrogate import Loss
from rollout.types import Group


class Sft(Objective):
    """Mean negative log-likelihood per token of every completion whose reward is 1.

    With recorded demonstrations this is supervised fine-tuning; with a live source it is rejection-sampling fine-tuning
    (arXiv:2308.01825, section 3.3); of a recorded pair it takes the chosen completion.
    """

    learns_from: ClassVar[tuple[GroupSource, ...]] = ("samples", "pairs", "labels", "demonstrations")

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
        rows = [row for place, group in enumerate(groups) for row in scored_examples(group, place)]
        return [dataclasses.replace(row, advantage=1.0) for row in rows if row.reward == 1.0]

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        return Loss(-(batch.weights * logprobs.masked_fill(~batch.mask, 0.0)).sum(), {})
