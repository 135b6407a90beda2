"""REINFORCE++: a baseline and a scale from the whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from grpo.batch import Average, Example
from grpo.objectives.advantages import batch_normalized, group_centered
from grpo.objectives.base import scored_examples
from grpo.objectives.policy_gradient import ClippedObjective, by_group, token_kl
from rollout.types import Group


class ReinforcePlusPlus(ClippedObjective):
    """Advantages normalized over all tokens of the step instead of within a group, clipped surrogate, a KL in the reward.

    Source: REINFORCE++, arXiv:2501.03262: equations 8 and 9 (a token's return is the reward less kl_coef times the k1 of this and
    all later tokens), equation 10 (normalization over the batch), `group_baseline` its variant with baseline (group mean taken off
    first; the paper then puts the KL into the loss, set kl_in = "loss"). Averaged over all tokens, as the normalization is. Where
    every reward of a step is the same nothing is learnt.
    """

    name: Literal["reinforce_plus_plus"] = Field(default="reinforce_plus_plus", description="REINFORCE++, arXiv:2501.03262.")
    kl_in: Literal["loss", "reward"] = Field(
        default="reward", description="reward: k1 of this and all later tokens is charged, as in the paper; loss: k3 in the loss."
    )
    group_baseline: bool = Field(
        default=False, description="Take the group's mean off first: the paper's variant for several completions per prompt."
    )

    @property
    def average(self) -> Average:
        return "token"

    @property
    def compares(self) -> bool:
        return self.group_baseline

    def advantages(self, rewards: Tensor) -> Tensor:
        """Before the normalization, which takes the whole step. [G] -> [G]"""
        return group_centered(rewards) if self.group_baseline else rewards

    def credit(self, groups: Sequence[Group]) -> list[Example]:
        rows = [row for place, group in enumerate(groups) for row in scored_examples(group, place)]
        returns = self._returns(rows)
        values = batch_normalized(torch.tensor(returns, dtype=torch.float64), _lengths(rows)).tolist()
        return [dataclasses.replace(row, advantage=value) for row, value in zip(rows, values, strict=True)]

    def charge(self, examples: Sequence[Example]) -> list[Example]:
        if not (self.kl_coef > 0 and self.kl_in == "reward"):
            return list(examples)
        returns = [
            [reward - self.kl_coef * later for later in reversed(list(accumulate(reversed(token_kl(row)))))]
            for row, reward in zip(examples, self._returns(examples), strict=True)
        ]
        values = torch.tensor([value for row in returns for value in row], dtype=torch.float64)
        flat = iter(batch_normalized(values, torch.ones_like(values)).tolist())
        return [dataclasses.replace(row, advantage=tuple(next(flat) for _ in row.token_ids)) for row in examples]

    def _returns(self, examples: Sequence[Example]) -> list[float]:
        """The reward of each example, less its group's baseline."""
        rewards = [torch.tensor([row.reward for row in rows], dtype=torch.float64) for rows in by_group(examples)]
        return [value for group in rewards for value in self.advantages(group).tolist()]


def _lengths(rows: Sequence[Example]) -> Tensor:
    return torch.tensor([len(row.token_ids) for row in rows], dtype=torch.float64)
