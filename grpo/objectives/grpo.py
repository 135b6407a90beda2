"""GRPO: group relative policy optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average
from grpo.objectives.advantages import group_normalized
from grpo.objectives.policy_gradient import ClippedObjective


class Grpo(ClippedObjective):
    """Advantages normalized within the group, clipped surrogate, mean over completions of the mean over tokens.

    Source: DeepSeekMath, arXiv:2402.03300, equation 3 and section 4.1.2. The paper trains with kl_coef 0.04 (section 4.2) and does
    not give its clip range; we take PPO's 0.2 (arXiv:1707.06347, table 1) and no KL term, since a checked reward needs no leash.
    """

    name: Literal["grpo"] = Field(default="grpo", description="GRPO, arXiv:2402.03300.")

    @property
    def average(self) -> Average:
        return "sequence"

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalized(rewards)
