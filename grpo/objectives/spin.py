"""SPIN: self-play fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo.batch import Batch, Example
from grpo.objectives.base import scored_examples
from grpo.objectives.preference import Pair, ReferencePreference, contrasted
from grpo.objectives.sources import GroupSource
from rollout.types import Group


class Spin(ReferencePreference):
    """The demonstration of each task is preferred to what the policy itself wrote, by the loss of DPO; no verdict is asked for.

    The reference is the policy that wrote it: both move with every sync, so publish_every is the length of an iteration. A sample
    that equals its demonstration leaves nothing to learn and gives no pair.
    Source: SPIN, arXiv:2401.01335, equation 4.7 with the logistic loss; its lambda is our beta, 0.1 in most of its runs.
    """

    learns_from: ClassVar[tuple[GroupSource, ...]] = ("samples beside a demonstration",)

    name: Literal["spin"] = Field(default="spin", description="SPIN, arXiv:2401.01335.")
    beta: float = Field(default=0.1, gt=0, description="How hard the policy is held to its last iterate; larger is harder.")

    @property
    def compares(self) -> bool:
        return False

    def units_per_group(self, group_size: int) -> int:
        return group_size

    @property
    def reference_is_last_iterate(self) -> bool:
        return True

    def keep(self, group: Group) -> bool:
        return any(pair.chosen.token_ids != pair.rejected.token_ids for pair in duels(group))

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        pairs = [pair for place, group in enumerate(groups) for pair in duels(group, place)]
        return [row for pair in pairs if pair.chosen.token_ids != pair.rejected.token_ids for row in contrasted(pair)]

    def scores(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return self.beta * super().scores(logprobs, batch)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(chosen - rejected)


def duels(group: Group, place: int = 0) -> list[Pair]:
    """The demonstration of a group against each of its samples, without the behavior log-probabilities that only samples have."""
    rows = scored_examples(group, place)
    demonstrations = [row for row in rows if row.behavior_logprobs is None]
    samples = [dataclasses.replace(row, behavior_logprobs=None) for row in rows if row.behavior_logprobs is not None]
    return [Pair(demonstration, sample) for demonstration in demonstrations for sample in samples]
