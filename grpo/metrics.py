"""The functions that compute metrics from groups and token scores. What each name means stands in metric_table.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo.batch import Batch, Example
from rollout.types import Group
from verifiers.types import Outcome

if TYPE_CHECKING:
    from grpo.objectives.surrogate import Loss
    from grpo.ranks import Ranks
    from grpo.token_scores import TokenScores


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the groups of a step look like: rewards, outcomes, lengths. Demonstrations that stand beside samples are left out."""
    groups = [sampled_part(group) for group in groups]
    completions = [completion for group in groups for completion in group.completions]
    rewards = torch.tensor([reward for group in groups for reward in group.scored_rewards], dtype=torch.float64)
    lengths = [completion.num_completion_tokens for completion in completions]
    metrics = {
        "group/flat_fraction": sum(group.is_flat for group in groups) / len(groups),
        "completion/length_mean": sum(lengths) / len(lengths),
        "completion/length_max": max(lengths),
        "completion/truncated_fraction": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "completion/tokens": sum(lengths),
    }
    if len(rewards):
        metrics["reward/mean"] = rewards.mean().item()
        metrics["reward/std"] = rewards.std(correction=0).item()
        metrics["group/accuracy"] = sum(group.num_correct for group in groups) / len(rewards)
    return metrics | _verifier_metrics(groups)


def sampled_part(group: Group) -> Group:
    """The group with its sampled completions alone; as it is when all or none of them were sampled."""
    is_sampled = [completion.has_logprobs for completion in group.completions]
    if all(is_sampled) or not any(is_sampled):
        return group
    return Group(group.task, tuple(compress(group.completions, is_sampled)), tuple(compress(group.verdicts, is_sampled)))


def _verifier_metrics(groups: Sequence[Group]) -> dict[str, float]:
    scores = [score for group in groups for verdict in group.verdicts for score in verdict.scores]
    metrics: dict[str, float] = {}
    for verifier in sorted({score.verifier for score in scores}):
        own = [score for score in scores if score.verifier == verifier]
        values = [score.value for score in own if score.value is not None]
        if values:
            metrics[f"reward/{verifier}"] = sum(values) / len(values)
        for outcome in Outcome:
            if count := sum(score.outcome is outcome for score in own):
                metrics[f"outcome/{verifier}_{outcome.value}"] = count / len(own)
    return metrics


def mismatch_metrics(differences: Tensor) -> dict[str, float]:
    """differences [M]: learner minus engine log-probability of each sampled token, under what should be the same weights."""
    if not len(differences):
        return {}
    ordered = differences.sort().values
    low, high = ordered[int(0.01 * (len(ordered) - 1))], ordered[int(0.99 * (len(ordered) - 1))]
    logs = differences.double()
    return {
        "mismatch/abs_mean": differences.abs().mean().item(),
        "mismatch/abs_max": differences.abs().max().item(),
        "mismatch/ratio_p01": low.exp().item(),
        "mismatch/ratio_p99": high.exp().item(),
        # (sum of w)^2 / (sum of w^2) / M, in logarithms
        "mismatch/ess_fraction": (2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)).exp().item() / len(logs),
    }


@dataclass(frozen=True, slots=True)
class OwnTotals:
    """What one rank has added in a mini-batch."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    differences: list[Tensor] = field(default_factory=list)

    def values(self) -> tuple[dict[str, float], dict[str, tuple[float, float]], Tensor]:
        """The same as plain numbers."""
        sums = {name: value.item() for name, value in self.sums.items()}
        means = {name: (total, count) for name, value in self.means.items() for total, count in [value.tolist()]}
        return sums, means, torch.cat(self.differences).cpu() if self.differences else torch.zeros(0)


class UpdateTotals:
    """What the micro-batches of a training step add up to, over all ranks. Sums stay on the device until a mini-batch ends."""

    def __init__(self) -> None:
        self.optimizer_steps = 0
        self.grad_norm = 0.0
        self.learning_rate = 0.0
        self._num_rows = 0
        self._num_skipped = 0
        self._num_tokens = 0
        self._num_nonfinite = 0
        self._sums: dict[str, float] = {}
        self._means: dict[str, tuple[float, float]] = {}
        self._undo: tuple[int, dict[str, float], dict[str, tuple[float, float]]] = (0, {}, {})
        self._own = OwnTotals()
        self._differences: list[Tensor] = []
        self._mismatch: dict[str, float] = {}

    def count(self, examples: Sequence[Example], computed: Sequence[Example]) -> None:
        """Begin a mini-batch: note its rows, and those of them that go through the model."""
        self._undo = (self._num_tokens, dict(self._sums), dict(self._means))
        self._own = OwnTotals()
        self._num_rows += len(examples)
        self._num_skipped += len(examples) - len(computed)
        self._num_tokens += sum(len(example.token_ids) for example in computed)

    def add(self, batch: Batch, scores: TokenScores, loss: Loss) -> None:
        sums = {**loss.sums, "policy/entropy": scores.entropy.sum(), "loss/value": loss.value}
        own = self._own
        for name, value in sums.items():
            own.sums[name] = own.sums.get(name, 0.0) + value.detach().double()
        for name, sum_and_count in loss.means.items():
            own.means[name] = own.means.get(name, 0.0) + sum_and_count.detach().double()
        # Once a weight has moved, learner and engine are meant to differ.
        if batch.behavior_logprobs is not None and not self.optimizer_steps:
            own.differences.append((scores.logprobs.detach() - batch.behavior_logprobs)[batch.mask])

    def close_mini_batch(self, ranks: Ranks) -> None:
        """Its micro-batches are done: what each rank has added becomes part of the totals, which are the same on all of them."""
        for sums, means, differences in ranks.gather(self._own.values()):
            for name, value in sums.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            for name, (total, count) in means.items():
                before = self._means.get(name, (0.0, 0.0))
                self._means[name] = (before[0] + total, before[1] + count)
            self._differences.append(differences)

    def is_finite(self) -> bool:
        """Whether the losses added so far are finite numbers."""
        return math.isfinite(self._sums.get("loss/value", 0.0))

    def drop_mini_batch(self) -> None:
        """The mini-batch that was begun last is not learnt from: count that, and forget its sums."""
        self._num_nonfinite += 1
        self._num_tokens, self._sums, self._means = self._undo

    def measure_mismatch(self) -> dict[str, float]:
        """Between engine and learner, on what has been added so far."""
        if self._differences:
            self._mismatch = mismatch_metrics(torch.cat(self._differences))
        return self._mismatch

    def metrics(self) -> dict[str, float]:
        sums = dict(self._sums)
        return {
            "loss/value": sums.pop("loss/value", 0.0) / max(1, self.optimizer_steps),
            "policy/grad_norm": self.grad_norm,
            "policy/learning_rate": self.learning_rate,
            "learner/rows": self._num_rows,
            "learner/skipped_fraction": self._num_skipped / max(1, self._num_rows),
            "learner/optimizer_steps": self.optimizer_steps,
            "learner/nonfinite_steps": self._num_nonfinite,
            **{name: value / self._num_tokens for name, value in sums.items()},
            **{name: total / count for name, (total, count) in self._means.items() if count},
            **self._mismatch,
        }
