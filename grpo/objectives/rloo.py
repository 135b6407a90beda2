"""RLOO: REINFORCE leave-one-out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Batch
from grpo.objectives.advantages import leave_one_out
from grpo.objectives.policy_gradient import PolicyGradient, surrogate_inputs
from grpo.objectives.surrogate import Loss, weighted_likelihood


class Rloo(PolicyGradient):
    """REINFORCE on whole completions, each compared with the mean reward of the others of its group.

    The log-probability of a completion is the sum over its tokens, so a long completion moves more; a KL belongs to the reward.
    Source: Back to Basics, arXiv:2402.14740, sections 3.2 and 3.3. The paper is strictly on policy. Off policy we weigh each token
    by its truncated ratio, which is 1 on policy; TRL clips a ratio of whole completions instead, whose gradient on policy is the
    same.
    """

    name: Literal["rloo"] = Field(default="rloo", description="RLOO, arXiv:2402.14740.")
    kl_in: Literal["loss", "reward"] = Field(
        default="reward", description="reward: k1 of the sampled tokens is charged, as in the paper; loss: k3 in the loss."
    )
    max_ratio: float = Field(default=3.0, ge=1, description="Importance weights above this count as this.")

    @property
    def average(self) -> Average:
        return "sum"

    def advantages(self, rewards: Tensor) -> Tensor:
        return leave_one_out(rewards)

    def centered(self, values: Tensor) -> Tensor:
        return leave_one_out(values)

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        return weighted_likelihood(
            *surrogate_inputs(logprobs, batch), kl_coef=self.kl_in_loss(), bounds=self.bounds(self.max_ratio)
        )
