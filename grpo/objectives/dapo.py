"""DAPO: decoupled clip and dynamic sampling policy optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.batch import Average
from grpo.objectives.advantages import group_normalized
from grpo.objectives.policy_gradient import ClippedObjective
from rollout.types import Group


class Dapo(ClippedObjective):
    """GRPO with a wider upper clip, one average over all tokens of the step, no KL (section 2.3), and only groups that are neither
    all right nor all wrong.

    Source: DAPO, arXiv:2503.14476: clip-higher (section 3.1), dynamic sampling (3.2, the constraint of equation 11), token-level
    loss (3.3, equation 12), soft overlong punishment (3.4, equation 13; the `length` verifier in the reward mix). Equation 12
    averages over the tokens of one group; the authors' code over those of the batch, which we follow: otherwise a token's weight
    depends on which group it is in.
    """

    name: Literal["dapo"] = Field(default="dapo", description="DAPO, arXiv:2503.14476.")
    clip_high: float = Field(default=0.28, gt=0, description="Ratios above 1 + clip_high stop counting; 0.28 is section 4.1's.")

    @property
    def average(self) -> Average:
        return "token"

    def keep(self, group: Group) -> bool:
        """0 < number of correct completions < G, counted on correctness and not on the shaped reward."""
        scored = len(group.scored_rewards)
        return 0 < group.num_correct < scored

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalized(rewards)
