"""GSPO: group sequence policy optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Batch
from grpo.objectives.advantages import group_normalized
from grpo.objectives.policy_gradient import ClippedObjective, surrogate_inputs
from grpo.objectives.surrogate import Loss, clipped_sequence_surrogate


class Gspo(ClippedObjective):
    """GRPO with one ratio for a completion, the geometric mean of its tokens' ratios, and a clip on that.

    Source: GSPO, arXiv:2507.18071, equations 5 to 7; clip ranges 3e-4 and 4e-4 from its section 5.1. They are that narrow because
    the mean of many log-ratios moves far less than one of them; the paper finds many more tokens clipped than under GRPO. The
    paper has no KL term; ours is token-wise as everywhere.
    """

    name: Literal["gspo"] = Field(default="gspo", description="GSPO, arXiv:2507.18071.")
    clip_low: float = Field(
        default=3e-4, gt=0, le=1, description="Sequence ratios below 1 - clip_low stop counting when they lower a bad completion."
    )
    clip_high: float = Field(
        default=4e-4, gt=0, description="Sequence ratios above 1 + clip_high stop counting when they raise a good completion."
    )

    @property
    def average(self) -> Average:
        return "sequence"

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalized(rewards)

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        return clipped_sequence_surrogate(*surrogate_inputs(logprobs, batch), **self.surrogate_options())
