"""DPO: direct preference optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo.batch import Batch
from grpo.objectives.preference import ReferencePreference


class Dpo(ReferencePreference):
    """-log sigmoid(beta h), h being the log-ratio to the reference of the chosen completion less that of the rejected.

    Source: DPO, arXiv:2305.18290, equation 7, beta 0.1 from its appendix B; log-probabilities are summed over tokens. From sampled
    groups, ranked by verifiers, it is online DPO (OAIF, arXiv:2402.04792, with verifiers in place of its language model).
    """

    name: Literal["dpo"] = Field(default="dpo", description="DPO, arXiv:2305.18290.")
    beta: float = Field(default=0.1, gt=0, description="How hard the policy is held to the reference; larger is harder.")

    def scores(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return self.beta * super().scores(logprobs, batch)

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(chosen - rejected)
