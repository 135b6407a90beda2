"""ORPO: odds ratio preference optimization."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo.batch import Batch
from grpo.objectives.preference import Preference, means, pair_weights, parted
from grpo.objectives.surrogate import Loss


class Orpo(Preference):
    """Negative log-likelihood of the chosen completion, plus odds_weight times -log sigmoid of the log odds ratio; no reference.

    odds = P / (1 - P) with P the geometric mean of a completion's token probabilities.
    Source: ORPO, arXiv:2403.07691, equations 3 to 7, lambda 0.1 as in its Mistral runs. log P is the mean over the tokens of the
    completion, in both terms. TRL takes the likelihood term over the prompt as well and over all tokens of the batch at once; the
    paper's is the completion's.
    """

    name: Literal["orpo"] = Field(default="orpo", description="ORPO, arXiv:2403.07691.")
    odds_weight: float = Field(default=0.1, gt=0, description="Weight of the odds ratio beside the likelihood; the paper's lambda.")

    def scores(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return log_odds(means(logprobs, batch))

    def pair_loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -self.odds_weight * logsigmoid(chosen - rejected)

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        chosen, _ = parted(means(logprobs, batch))
        preferred = super().loss(logprobs, batch)
        return preferred._replace(value=preferred.value - (pair_weights(batch) * chosen).sum())


def log_odds(log_p: Tensor) -> Tensor:
    """log(P / (1 - P)) from log P < 0, without cancellation. A probability that rounds to 1 counts as one just below."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return log_p - torch.log(-torch.expm1(log_p))
