"""What the objectives share that learn from sampled completions and their rewards: credit within groups, the KL, the clip."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from grpo.batch import Batch, Example
from grpo.objectives.advantages import group_centered
from grpo.objectives.base import Objective, scored_examples
from grpo.objectives.surrogate import Bounds, Loss, clipped_surrogate
from rollout.types import Group


def _around_1(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not 0 <= low <= 1 <= high:
        raise ValueError(f"it is [{low:g}, {high:g}], but the ratio is 1 on policy. Give a number from 0 to 1, and one from 1 up.")
    return bounds


class PolicyGradient(Objective):
    """Advantages from the rewards of a group, a KL to the reference in the loss or in the reward, care with what is off policy."""

    kl_coef: float = Field(default=0.0, ge=0, description="Weight of the KL to the reference policy; 0 loads no reference.")
    kl_in: Literal["loss", "reward"] = Field(
        default="loss", description="loss: k3 with the gradient of the reverse KL; reward: k1 of the sampled tokens is charged."
    )
    sequence_bounds: Annotated[tuple[float, float], AfterValidator(_around_1)] = Field(
        default=(0.5, 2.0),
        description="A completion whose mean probability ratio per token (geometric) leaves these is left out; [0, inf]: none is.",
    )

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def needs_zero_advantages(self) -> bool:
        return self.kl_coef > 0 and self.kl_in == "loss"

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of the scored completions of one group. [G] -> [G]"""

    def centered(self, values: Tensor) -> Tensor:
        """Values of one group less the baseline that its rewards are compared with, not scaled. [G] -> [G]"""
        return group_centered(values)

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        examples = [scored_examples(group, place) for place, group in enumerate(groups)]
        return [example for rows in examples if rows for example in self._with_advantages(rows)]

    def _with_advantages(self, rows: Sequence[Example]) -> Iterator[Example]:
        values = self.advantages(torch.tensor([row.reward for row in rows], dtype=torch.float64)).tolist()
        return (row.changed(advantage=value) for row, value in zip(rows, values, strict=True))

    def charge(self, examples: Sequence[Example]) -> list[Example]:
        """With the KL in the reward, kl_coef times the centered k1 of each completion is taken off its advantage.

        k1 is log(behavior / ref) of the whole completion. It is centered as the rewards are, but never scaled: kl_coef then weighs
        the KL as it does in the loss, and a flat group learns from its KL without that being blown up to a deviation of 1.
        """
        if not (self.kl_coef > 0 and self.kl_in == "reward"):
            return list(examples)
        charged = []
        for rows in by_group(examples):
            costs = self.centered(torch.tensor([sum(token_kl(row)) for row in rows], dtype=torch.float64)).tolist()
            for row, cost in zip(rows, costs, strict=True):
                assert isinstance(row.advantage, float), "the KL is charged once"
                charged.append(dataclasses.replace(row, advantage=row.advantage - self.kl_coef * cost))
        return charged

    def kl_in_loss(self) -> float:
        """The weight of the KL term of the loss."""
        return self.kl_coef if self.kl_in == "loss" else 0.0

    def bounds(self, max_ratio: float) -> Bounds:
        return Bounds(max_ratio, *self.sequence_bounds)


class ClippedObjective(PolicyGradient):
    """Policy gradient through a clipped surrogate."""

    clip_low: float = Field(
        default=0.2, gt=0, le=1, description="Ratios below 1 - clip_low stop counting when they lower a bad token."
    )
    clip_high: float = Field(
        default=0.2, gt=0, description="Ratios above 1 + clip_high stop counting when they raise a good token."
    )
    max_ratio: float = Field(
        default=3.0, ge=1, description="Ratios above this count as this, since the clip leaves those of bad tokens unbounded."
    )

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        return clipped_surrogate(*surrogate_inputs(logprobs, batch), **self.surrogate_options())

    def surrogate_options(self) -> dict[str, Any]:
        return {
            "clip_low": self.clip_low,
            "clip_high": self.clip_high,
            "kl_coef": self.kl_in_loss(),
            "bounds": self.bounds(self.max_ratio),
        }


def surrogate_inputs(logprobs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """The tensors that every surrogate takes, in its order."""
    assert batch.behavior_logprobs is not None, "a policy gradient learns from sampled completions"
    return logprobs, batch.behavior_logprobs, batch.ref_logprobs, batch.advantages, batch.weights


def by_group(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Consecutive examples of the same group, as `credit` made them."""
    return (list(rows) for _, rows in groupby(examples, key=lambda row: row.group))


def token_kl(row: Example) -> list[float]:
    """k1 of each token: log(behavior / ref)."""
    assert row.behavior_logprobs is not None, "the KL is charged on sampled completions"
    assert row.ref_logprobs is not None, "the KL is charged after the reference has scored"
    return [behavior - ref for behavior, ref in zip(row.behavior_logprobs, row.ref_logprobs, strict=True)]
