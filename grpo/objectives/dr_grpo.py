"""Dr. GRPO: GRPO without its two biases."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average
from grpo.objectives.advantages import group_centered
from grpo.objectives.policy_gradient import ClippedObjective


class DrGrpo(ClippedObjective):
    """Advantages centered but not scaled, and a sum over tokens divided by a constant, so that neither very easy or hard groups nor
    short right answers count for more.

    Source: Understanding R1-Zero-like training, arXiv:2503.20783, section 3.2; the constant is the completion budget, as in the
    paper's listing 1.
    """

    name: Literal["dr_grpo"] = Field(default="dr_grpo", description="Dr. GRPO, arXiv:2503.20783.")

    @property
    def average(self) -> Average:
        return "constant"

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_centered(rewards)
