"""CISPO: clipped importance-sampling-weight policy optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Batch
from grpo.objectives.advantages import group_normalized
from grpo.objectives.policy_gradient import PolicyGradient, surrogate_inputs
from grpo.objectives.surrogate import Loss, weighted_likelihood


class Cispo(PolicyGradient):
    """REINFORCE with group-normalized advantages, where the importance weight is clipped and not the update: every token counts.

    Source: MiniMax-M1, arXiv:2506.13585, equations 4 and 5, averaged over all tokens. As in the paper there is no lower clip.
    Equation 4 averages over the tokens of one group; we over those of the step, as for DAPO. The paper does not give its upper
    clip; a largest weight of 5 is the value that TRL documents for ScaleRL (arXiv:2510.13786).
    """

    name: Literal["cispo"] = Field(default="cispo", description="CISPO, arXiv:2506.13585.")
    clip_high: float = Field(default=4.0, gt=0, description="Importance weights above 1 + clip_high count as that.")

    @property
    def average(self) -> Average:
        return "token"

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalized(rewards)

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        return weighted_likelihood(
            *surrogate_inputs(logprobs, batch), kl_coef=self.kl_in_loss(), bounds=self.bounds(1 + self.clip_high)
        )
