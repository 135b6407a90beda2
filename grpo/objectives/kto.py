"""KTO: Kahneman-Tversky optimization."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Batch, Example
from grpo.objectives.base import Objective, scored_examples
from grpo.objectives.preference import log_ratios, sum_and_count
from grpo.objectives.sources import GroupSource
from grpo.objectives.surrogate import Loss
from rollout.errors import TaskError
from rollout.types import Group


class Kto(Objective):
    """Completions that are desirable (reward 1) or not (reward 0), each valued against a reference point; no pairs are needed.

    loss = weight (1 - sigmoid(beta (r - z))) for a desirable one and weight (1 - sigmoid(beta (z - r))) for the others, r being
    log(pi / ref) of the completion. z, the reference point, is the KL of policy and reference, estimated without gradient as
    max(0, mean of log(pi(y'|x) / ref(y'|x))) over mismatched rows: the prompt of one row with the completion of another.
    Source: KTO, arXiv:2402.01306, section 4.1. The paper mismatches the rows within one micro-batch; we within a whole optimizer
    step, and in an order that the rows themselves decide, so that neither micro-batches nor the order of rows change the loss.
    """

    learns_from: ClassVar[tuple[GroupSource, ...]] = ("samples", "pairs", "labels")

    name: Literal["kto"] = Field(default="kto", description="KTO, arXiv:2402.01306.")
    beta: float = Field(default=0.1, gt=0, description="How soon value saturates on either side of the reference point.")
    desirable_weight: float = Field(default=1.0, gt=0, description="Weight of desirable completions; the paper's lambda_D.")
    undesirable_weight: float = Field(
        default=1.0,
        gt=0,
        description="Weight of undesirable ones; the paper keeps the ratio of weight times count between 1 and 1.5.",
    )

    @property
    def average(self) -> Average:
        return "sum"

    @property
    def compares(self) -> bool:
        return False

    @property
    def needs_reference(self) -> bool:
        return True

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        return [labelled(row) for place, group in enumerate(groups) for row in scored_examples(group, place)]

    def probes(self, examples: Sequence[Example]) -> list[Example]:
        return mismatched(examples)

    def reference_point(self, log_ratios: Tensor) -> float:
        return max(0.0, log_ratios.mean().item()) if len(log_ratios) else 0.0

    def loss(self, logprobs: Tensor, batch: Batch) -> Loss:
        reward = log_ratios(logprobs, batch)
        sign = batch.advantages  # 1 for desirable, -1 for undesirable
        weight = torch.where(sign > 0, self.desirable_weight, self.undesirable_weight)
        losses = weight * (1 - torch.sigmoid(self.beta * sign * (reward - batch.reference_point)))
        implicit = self.beta * reward.detach()
        means = {
            "preference/chosen": sum_and_count(implicit[sign > 0]),
            "preference/rejected": sum_and_count(implicit[sign < 0]),
            "preference/reference_point": sum_and_count(torch.full_like(implicit, batch.reference_point)),
        }
        return Loss((batch.weights.amax(1) * losses).sum(), {}, means)


def labelled(row: Example) -> Example:
    """The example with advantage 1 when it is desirable and -1 when it is not. Raises TaskError for any other reward."""
    if row.reward not in (0.0, 1.0):
        raise TaskError(
            f"task {row.task_id}: the reward is {row.reward:g}, and kto learns from completions that are desirable (1) or not (0). "
            "Use a reward mix of one verifier that says right or wrong, or make the others gates."
        )
    if not row.token_ids:
        raise TaskError(f"task {row.task_id}: its completion has no tokens. Drop the row.")
    return dataclasses.replace(row, advantage=1.0 if row.reward else -1.0)


def mismatched(examples: Sequence[Example]) -> list[Example]:
    """The prompt of each row with the completion of another: of the next one that has another prompt, in an order of their own.

    Where all rows share one prompt any other row's completion serves; a row alone gives nothing.
    """
    rows = sorted(examples, key=_digest)
    probes = []
    for i, row in enumerate(rows):
        others = [*rows[i + 1 :], *rows[:i]]
        other = next((each for each in others if each.prompt_ids != row.prompt_ids), others[0] if others else None)
        if other is not None:
            probes.append(Example(row.prompt_ids, other.token_ids, None, 0.0, task_id=row.task_id))
    return probes


def _digest(row: Example) -> bytes:
    return hashlib.blake2b(repr((row.prompt_ids, row.token_ids)).encode(), digest_size=16).digest()
