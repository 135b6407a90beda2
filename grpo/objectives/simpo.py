"""SimPO: simple preference optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo.batch import Batch
from grpo.objectives.preference import Preference, means


class Simpo(Preference):
    """-log sigmoid(beta (log pi(chosen) / length - log pi(rejected) / length) - margin); no reference policy.

    The implicit reward is what generation maximizes, the mean log-probability, so that length is no way to raise it.
    Source: SimPO, arXiv:2405.14734, equation 6. The paper tunes beta from 2.0 to 10 and margin (its gamma) from 0.3 to 1.6 by
    model; we take 2.0, and half of that as the margin.
    """

    name: Literal["simpo"] = Field(default="simpo", description="SimPO, arXiv:2405.14734.")
    beta: float = Field(default=2.0, gt=0, description="Scale of the mean log-probabilities.")
    margin: float = Field(default=1.0, ge=0, description="By how much the chosen's scaled mean log-probability should win.")

    def scores(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return self.beta * means(logprobs, batch)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(chosen - rejected - self.margin)
