"""What the objectives share that learn from preferences: the pair of a group, log-probabilities of completions, pairwise losses.

Rows come in pairs, chosen before rejected. With weights of 1/N a pair weighs 1/P, what its two rows weigh together.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from grpo.batch import Average, Batch, Example
from grpo.objectives.base import Objective, scored_examples
from grpo.objectives.sources import GroupSource
from grpo.objectives.surrogate import Loss
from rollout.errors import TaskError
from rollout.types import Group


class Pair(NamedTuple):
    """Two completions of one prompt, or what was computed of them."""

    chosen: Example
    rejected: Example


class Preference(Objective):
    """Each group gives one pair: its best scored completion and its worst, the first of equals. A flat group gives none.

    `scores` is how much the policy likes each completion, its implicit reward; `pair_loss` is the loss of such scores.
    """

    learns_from: ClassVar[tuple[GroupSource, ...]] = ("samples", "pairs")
    rows_per_unit: ClassVar[int] = 2

    @property
    def average(self) -> Average:
        return "sum"

    def units_per_group(self, group_size: int) -> int:
        return 1

    def keep(self, group: Group) -> bool:
        """Whether there is a better completion and a worse one that differ in more than their rewards."""
        if group.is_flat:
            return False
        chosen, rejected = best_and_worst(group)
        return chosen.token_ids != rejected.token_ids

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        pairs = [best_and_worst(group, place) for place, group in enumerate(groups) if not group.is_flat]
        return [row for pair in pairs for row in contrasted(pair)]

    @abstractmethod
    def scores(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """[B, T] -> [B]"""

    @abstractmethod
    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """[P], [P] -> [P]"""

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        chosen, rejected = parted(self.scores(logprobs, batch))
        value = (pair_weights(batch) * self.pair_loss(chosen, rejected)).sum()
        return Loss(value, {}, preference_means(chosen, rejected))


class ReferencePreference(Preference):
    """A preference objective whose implicit reward is a log-ratio to the reference policy."""

    @property
    def needs_reference(self) -> bool:
        return True

    def scores(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return log_ratios(logprobs, batch)


def best_and_worst(group: Group, place: int = 0) -> Pair:
    """Of a group that is not flat."""
    rows = scored_examples(group, place)
    return Pair(max(rows, key=lambda row: row.reward), min(rows, key=lambda row: row.reward))


def contrasted(pair: Pair) -> Pair:
    """The pair with its advantages: 1 and -1. Raises TaskError when there is nothing to tell the two apart by."""
    chosen, rejected = pair
    if not chosen.token_ids or not rejected.token_ids:
        raise TaskError(
            f"task {chosen.task_id}: its {'chosen' if not chosen.token_ids else 'rejected'} completion has no tokens. Drop the row."
        )
    if chosen.token_ids == rejected.token_ids:
        raise TaskError(
            f"task {chosen.task_id}: its chosen completion and its rejected one are the same tokens, so that neither can be "
            "preferred. Drop the row, or find out why equal texts were judged differently."
        )
    return Pair(dataclasses.replace(chosen, advantage=1.0), dataclasses.replace(rejected, advantage=-1.0))


def sums(logprobs: Tensor, batch: Batch) -> Tensor:
    """log pi(y|x): the sum over a completion's tokens. [B, T] -> [B]"""
    return torch.where(batch.mask, logprobs, 0.0).sum(1)


def means(logprobs: Tensor, batch: Batch) -> Tensor:
    """log pi(y|x) / |y|: the mean over a completion's tokens. [B, T] -> [B]"""
    return sums(logprobs, batch) / batch.mask.sum(1)


def log_ratios(logprobs: Tensor, batch: Batch) -> Tensor:
    """log(pi(y|x) / ref(y|x)). [B, T] -> [B]"""
    assert batch.ref_logprobs is not None, "this objective needs the reference policy"
    # Token by token before the sum: two sums of hundreds of nats would leave little of a small difference.
    return sums(logprobs - batch.ref_logprobs, batch)


def parted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values of rows as those of chosen and rejected. [2P] -> [P], [P]"""
    return values[0::2], values[1::2]


def pair_weights(batch: Batch) -> Tensor:
    """What the two rows of each pair weigh together. [P]"""
    chosen, rejected = parted(batch.weights.amax(1))
    return chosen + rejected


def preference_means(chosen: Tensor, rejected: Tensor) -> Mapping[str, Tensor]:
    """How far the policy follows the preferences, for the log; each a sum and a count. [P], [P]"""
    chosen, rejected = chosen.detach(), rejected.detach()
    values = {
        "preference/accuracy": (chosen > rejected).to(chosen.dtype),
        "preference/margin": chosen - rejected,
        "preference/chosen": chosen,
        "preference/rejected": rejected,
    }
    return {name: sum_and_count(value) for name, value in values.items()}


def sum_and_count(values: Tensor) -> Tensor:
    """[K] -> [2]"""
    return torch.stack([values.sum(), values.new_tensor(float(len(values)))])
