"""IPO: identity preference optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from grpo.objectives.preference import ReferencePreference


class Ipo(ReferencePreference):
    """(h - 1 / (2 beta))^2, h being the log-ratio to the reference of the chosen completion less that of the rejected.

    Unlike DPO it has a finite target, so that pairs which are always decided one way do not pull the policy away without end.
    Source: IPO, arXiv:2310.12036, equation 17; its tau is our beta. We follow the paper, where log pi(y|x) is that of the whole
    completion, a sum over tokens. TRL takes the mean over tokens instead, and says that the authors do too: there the target does
    not depend on length, and beta means another thing.
    """

    name: Literal["ipo"] = Field(default="ipo", description="IPO, arXiv:2310.12036.")
    beta: float = Field(default=0.1, gt=0, description="The margin in log-ratio that is aimed at is 1 / (2 beta), in nats.")

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (chosen - rejected - 1 / (2 * self.beta)).square()
