"""Every objective once, groups for them, and a table of log-probabilities that stands for the model."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from grpo.batch import Batch, Example, make_batch, token_weights
from grpo.objectives import (
    Cispo,
    Dapo,
    Dpo,
    DrGrpo,
    Grpo,
    Gspo,
    Ipo,
    Kto,
    Objective,
    Orpo,
    ReinforcePlusPlus,
    Rloo,
    Sft,
    Simpo,
    Spin,
)
from grpo.objectives.kto import labelled
from grpo.objectives.preference import Preference
from rollout.types import Completion, Group
from verifiers.types import Task, Verdict

BUDGET = 8
UNBOUNDED: dict[str, Any] = {"sequence_bounds": (0.0, math.inf)}  # no completion is left out, however far off policy

FROM_SAMPLES = [Grpo(), Dapo(), DrGrpo(), Gspo(), Cispo(), Rloo(), ReinforcePlusPlus()]
WITH_KL = [Grpo(kl_coef=0.04), Gspo(kl_coef=0.04), Cispo(kl_coef=0.04), Rloo(kl_coef=0.04, kl_in="loss")]
FROM_PAIRS = [Dpo(), Ipo(), Orpo(), Simpo(), Spin()]
DEFAULTS = [*FROM_SAMPLES, *FROM_PAIRS, Kto(), Sft()]
ALL = [*DEFAULTS, *WITH_KL]


def group(*rewards: float | None, correct: tuple[bool, ...] | None = None, task_id: str = "t", tokens: int = 5) -> Group:
    """A group with these rewards, None being unscored; completion i has i + 1 tokens."""
    correct = correct or tuple(reward == 1 for reward in rewards)
    completions = tuple(
        Completion(i, (1, 2), (tokens,) * (i + 1), "x", "stop", behavior_logprobs=(-float(i + 1),) * (i + 1))
        for i in range(len(rewards))
    )
    verdicts = tuple(
        Verdict(reward, is_correct, (), cause="the sandbox is down" if reward is None else None)
        for reward, is_correct in zip(rewards, correct, strict=True)
    )
    return Group(Task(task_id, "p", "r", "math"), completions, verdicts)


def advantages_of(objective: Objective, *groups: Group) -> list[Any]:
    return [example.advantage for example in objective.credit(groups)]


class Step:
    """Log-probabilities of one optimizer step, as a policy and its reference would give them, and the examples they belong to.

    The policy is a little off the behavior policy and off the reference.
    """

    reference_point = 0.3

    def __init__(self, seed: int, num_units: int, objective: Objective, *, drift: float = 0.3) -> None:
        chance = random.Random(seed)
        self.objective = objective
        num_rows = num_units * objective.rows_per_unit
        self.lengths = [chance.randint(1, BUDGET) for _ in range(num_rows)]
        self.logprobs = [[-chance.uniform(0.05, 3) for _ in range(n)] for n in self.lengths]
        self.behavior = self._near(self.logprobs, drift, chance)
        self.ref = self._near(self.logprobs, 0.3, chance)
        self.examples = [self._example(i, chance) for i in range(num_rows)]

    @staticmethod
    def _near(table: list[list[float]], drift: float, chance: random.Random) -> list[list[float]]:
        # Rounded to float32, which is what a batch holds.
        return [[torch.tensor(x + drift * chance.gauss(0, 1)).item() for x in row] for row in table]

    def _example(self, i: int, chance: random.Random) -> Example:
        objective = self.objective
        tokens = tuple(chance.randrange(2, 9) for _ in range(self.lengths[i]))
        ref = tuple(self.ref[i]) if objective.needs_reference else None
        if isinstance(objective, Preference):
            return Example((1,), tokens, None, 1.0 - 2 * (i % 2), ref_logprobs=ref)
        if isinstance(objective, Kto):
            return labelled(Example((1,), tokens, None, 0.0, reward=float(chance.random() < 0.5), ref_logprobs=ref))
        if isinstance(objective, Sft):
            return Example((1,), tokens, None, 1.0)
        advantage = 0.0 if i % 3 == 0 else torch.tensor(chance.gauss(0, 1)).item()
        return Example((1,), tokens, tuple(self.behavior[i]), advantage, ref_logprobs=ref)

    def batch(self, rows: list[int]) -> Batch:
        weights = token_weights(torch.tensor(self.lengths), self.objective.average, max_tokens=BUDGET).tolist()
        return make_batch([self.examples[i] for i in rows], [weights[i] for i in rows], reference_point=self.reference_point)

    def table(self) -> Tensor:
        """The policy's log-probabilities, with NaN where no token is. [N, BUDGET]"""
        table = torch.full((len(self.lengths), BUDGET), math.nan, dtype=torch.float64)
        for i, row in enumerate(self.logprobs):
            table[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        return table

    def loss_and_gradient(self, parts: list[list[int]] | None = None) -> tuple[float, Tensor]:
        logprobs = self.table().requires_grad_()
        total = 0.0
        for rows in parts or [list(range(len(self.lengths)))]:
            batch = self.batch(rows)
            loss = self.objective.loss(logprobs[rows, : batch.mask.shape[1]], batch).value
            loss.backward()
            total += loss.item()
        assert logprobs.grad is not None
        return total, logprobs.grad


def close(one: Tensor, other: Tensor, rel: float) -> bool:
    return bool((one - other).norm() <= rel * other.norm())
