"""What an objective is: frozen hyperparameters and two pure steps, from groups to examples and from log-probabilities to a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from grpo.batch import Average, Batch, Example
from grpo.objectives.surrogate import Loss, clipped_surrogate
from rollout.types import Group


class Objective(BaseModel, ABC):
    """From groups to a loss. The class that holds the hyperparameters is their config: one paper, one file.

    `average` says how tokens are weighed (grpo.batch.token_weights). `compares` is whether it learns from differences within a
    group, which takes a group_size of 2 or more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def average(self) -> Average: ...

    @property
    def compares(self) -> bool:
        return True

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def needs_zero_advantages(self) -> bool:
        """Whether a row with advantage 0 has a gradient, so that it must be sent through the model."""
        return self.needs_reference

    def keep(self, group: Group) -> bool:
        """Whether a group is worth a place in the step. A refused one is replaced by another."""
        return True

    @abstractmethod
    def credit(self, groups: Sequence[Group]) -> list[Example]:
        """One example for each scored completion."""

    @abstractmethod
    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        """The loss of some rows of a step; over all rows of the step the losses add up. logprobs: [B, T]"""


class ClippedObjective(Objective):
    """What the relatives of GRPO share: advantages within a group, and the clipped surrogate."""

    clip_low: float = Field(
        default=0.2, gt=0, le=1, description="Ratios below 1 - clip_low stop counting when they lower a bad token."
    )
    clip_high: float = Field(
        default=0.2, gt=0, description="Ratios above 1 + clip_high stop counting when they raise a good token."
    )
    kl_coef: float = Field(default=0.0, ge=0, description="Weight of the KL to the reference policy; 0 loads no reference.")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of the scored completions of one group. [G] -> [G]"""

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        return [example for group in groups for example in credit_group(group, self.advantages)]

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        assert batch.behavior_logprobs is not None, "a clipped objective learns from sampled completions"
        return clipped_surrogate(
            logprobs,
            batch.behavior_logprobs,
            batch.ref_logprobs,
            batch.advantages,
            batch.weights,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl_coef=self.kl_coef,
        )


def credit_group(group: Group, advantages: Callable[[Tensor], Tensor]) -> list[Example]:
    """The scored completions of a group with their advantages. An unscored one is in neither the mean nor the result."""
    scored = [i for i, verdict in enumerate(group.verdicts) if verdict.reward is not None]
    if not scored:
        return []
    values = advantages(torch.tensor(group.scored_rewards, dtype=torch.float64)).tolist()
    return [
        Example(
            prompt_ids=group.completions[i].prompt_ids,
            token_ids=group.completions[i].token_ids,
            behavior_logprobs=group.completions[i].behavior_logprobs,
            advantage=value,
        )
        for i, value in zip(scored, values, strict=True)
    ]
