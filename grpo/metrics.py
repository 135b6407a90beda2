"""Every metric by name with its meaning, and the functions that compute them from groups and token scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo.batch import Batch, Example
from rollout.types import Group
from verifiers.types import Outcome

if TYPE_CHECKING:
    from grpo.objectives.surrogate import Loss
    from grpo.token_scores import TokenScores

# Name -> meaning. `{verifier}` stands for a component of the reward mix, `{outcome}` for one of verifiers.types.Outcome.
METRICS: dict[str, str] = {
    "reward/mean": "mean reward of the scored completions",
    "reward/std": "their population standard deviation",
    "reward/{verifier}": "mean value of one verifier over the scores that are not infra",
    "outcome/{verifier}_{outcome}": "share of completions with this outcome in this verifier",
    "group/accuracy": "share of the scored completions that are correct",
    "group/flat_fraction": "share of groups whose rewards are all equal, which teach nothing",
    "completion/length_mean": "mean completion length in tokens, stop token included",
    "completion/length_max": "longest completion in tokens",
    "completion/truncated_fraction": "share of completions that ran out of tokens",
    "completion/tokens": "completion tokens in the step's groups",
    "collector/sampled_groups": "groups sampled for this step, dropped ones included",
    "collector/stale_groups": "groups dropped because they were sampled more than max_lag updates ago",
    "collector/unscored_groups": "groups dropped because too few completions could be scored",
    "collector/refused_groups": "groups dropped by the objective, such as flat ones under dapo",
    "collector/in_flight_groups": "groups under way for later steps",
    "collector/lag_mean": "mean number of updates between sampling and learning",
    "verify/unscored_fraction": "share of completions without a reward, through our fault",
    "verify/{verifier}_{outcome}": "completions with this outcome since the last step, evaluation's too; also checks asked of "
    "processes, killed, and known before, and a judge's calls, retries, tokens, unreadable answers and orders that disagreed",
    "verify/{verifier}_mean_s": "mean seconds of one check, each distinct text of a group checked once",
    "verify/{verifier}_p50_s": "their median",
    "verify/{verifier}_p99_s": "their 99th percentile",
    "verify/lost_services": "verifier services replaced since the start",
    "sandbox/{event}": "programs that ended in this way since the last step; also programs lost and slots replaced",
    "sandbox/{stage}_p50_s": "median seconds of a program in the queue for a slot, and of its run",
    "sandbox/{stage}_p99_s": "their 99th percentile",
    "fleet/lost_workers": "rollout workers replaced since the start",
    "loss/value": "the loss, a mean over the optimizer steps",
    "policy/entropy": "mean entropy in nats of the distributions at the computed completion tokens",
    "policy/clipped_fraction": "share of the computed tokens whose gradient the clip removed",
    "policy/truncated_fraction": "share of the computed tokens whose importance weight was larger than it may be",
    "policy/masked_fraction": "share of the computed tokens in completions left out because their ratio left its bounds",
    "policy/kl": "mean estimate (k3, weighed by the ratio) of the KL to the reference policy, in nats per token",
    "preference/accuracy": "share of the pairs whose chosen completion has the higher implicit reward",
    "preference/margin": "mean implicit reward of the chosen completions less that of the rejected ones",
    "preference/chosen": "mean implicit reward of the chosen or desirable completions",
    "preference/rejected": "mean implicit reward of the rejected or undesirable completions",
    "preference/reference_point": "KL to the reference policy in nats per completion that kto measures its rewards from",
    "policy/grad_norm": "gradient norm before clipping, the largest of the step's optimizer steps",
    "policy/learning_rate": "learning rate of the training step, the last one when it has several optimizer steps",
    "learner/rows": "completions in the update",
    "learner/skipped_fraction": "share of them that carry no gradient and were not computed",
    "learner/optimizer_steps": "optimizer steps of this training step; fewer than mini_batches where no row carries a gradient",
    "learner/nonfinite_steps": "optimizer steps left out of it because loss or gradient was not a finite number",
    "mismatch/abs_mean": "mean |learner - engine| log-probability of the sampled tokens, before the update",
    "mismatch/abs_max": "its maximum",
    "mismatch/ratio_p01": "1st percentile of the probability ratio learner / engine",
    "mismatch/ratio_p99": "99th percentile of the same",
    "mismatch/probe_abs_mean": "mean |learner - engine| log-probability of fixed prompts after the last sync, where it is probed",
    "mismatch/ess_fraction": "effective sample size of these ratios as importance weights, as a share of the tokens",
    "time/rollout_s": "seconds the step waited for its groups",
    "time/update_s": "seconds of the update",
    "time/load_s": "seconds until every worker had loaded it",
    "time/evaluate_s": "seconds of evaluation",
    "time/step_s": "seconds of the whole step",
    "speed/tokens_per_s": "completion tokens learnt from per second of the step",
    "eval/sampled_accuracy": "held-out accuracy, one completion per task at the training temperature",
    "eval/greedy_accuracy": "held-out accuracy, greedy",
    "eval/length_mean": "mean length in tokens of the sampled held-out completions",
}


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the groups of a step look like: rewards, outcomes, lengths. Demonstrations that stand beside samples are left out."""
    groups = [sampled_part(group) for group in groups]
    completions = [completion for group in groups for completion in group.completions]
    rewards = torch.tensor([reward for group in groups for reward in group.scored_rewards], dtype=torch.float64)
    lengths = [len(completion.token_ids) for completion in completions]
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
    is_sampled = [completion.behavior_logprobs is not None for completion in group.completions]
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


class UpdateTotals:
    """What the micro-batches of a training step add up to. Sums stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.optimizer_steps = 0
        self.grad_norm = 0.0
        self.learning_rate = 0.0
        self._num_rows = 0
        self._num_skipped = 0
        self._num_tokens = 0
        self._num_nonfinite = 0
        self._sums: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        self._undo: tuple[int, dict[str, Tensor], dict[str, Tensor]] = (0, {}, {})
        self._differences: list[Tensor] = []
        self._mismatch: dict[str, float] = {}

    def count(self, examples: Sequence[Example], computed: Sequence[Example]) -> None:
        """Begin a mini-batch: note its rows, and those of them that go through the model."""
        self._undo = (self._num_tokens, dict(self._sums), dict(self._means))
        self._num_rows += len(examples)
        self._num_skipped += len(examples) - len(computed)
        self._num_tokens += sum(len(example.token_ids) for example in computed)

    def add(self, batch: Batch, scores: TokenScores, loss: Loss) -> None:
        sums = {**loss.sums, "policy/entropy": scores.entropy.sum(), "loss/value": loss.value}
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()
        for name, sum_and_count in loss.means.items():
            self._means[name] = self._means.get(name, 0.0) + sum_and_count.detach().double()
        # Once a weight has moved, learner and engine are meant to differ.
        if batch.behavior_logprobs is not None and not self.optimizer_steps:
            self._differences.append((scores.logprobs.detach() - batch.behavior_logprobs)[batch.mask])

    def is_finite(self) -> bool:
        """Whether the losses added so far are finite numbers."""
        return bool(torch.isfinite(self._sums.get("loss/value", torch.zeros(()))))

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
        sums = {name: value.item() for name, value in self._sums.items()}
        means = {name: value.tolist() for name, value in self._means.items()}
        return {
            "loss/value": sums.pop("loss/value", 0.0) / max(1, self.optimizer_steps),
            "policy/grad_norm": self.grad_norm,
            "policy/learning_rate": self.learning_rate,
            "learner/rows": self._num_rows,
            "learner/skipped_fraction": self._num_skipped / max(1, self._num_rows),
            "learner/optimizer_steps": self.optimizer_steps,
            "learner/nonfinite_steps": self._num_nonfinite,
            **{name: value / self._num_tokens for name, value in sums.items()},
            **{name: total / count for name, (total, count) in means.items() if count},
            **self._mismatch,
        }
