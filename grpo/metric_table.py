"""Every metric by name, with its meaning: what the report and the watch say of a curve. Nothing is computed here."""

from __future__ import annotations

import re

# Name -> meaning. `{verifier}` stands for a component of the reward mix, `{outcome}` for one of verifiers.types.Outcome.
METRICS: dict[str, str] = {
    "reward/mean": "mean reward of the scored completions",
    "reward/std": "population standard deviation of the rewards of the scored completions",
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
    "collector/abandoned_groups": "groups begun beyond what the step needed, and given up when it was full (over_sample)",
    "collector/in_flight_groups": "groups under way for later steps",
    "collector/lag_mean": "mean number of updates between sampling and learning, from the oldest token of each group",
    "collector/lag_max": "the largest lag of a group of the step",
    "collector/crossed_fraction": "share of completions that went on with new weights after an update",
    "collector/spans_mean": "mean number of policy versions that sampled a completion",
    "verify/unscored_fraction": "share of completions without a reward, through our fault",
    "verify/{verifier}_{outcome}": "completions with this outcome since the last step, without evaluations; also checks asked of "
    "processes, killed, and known before, and a judge's calls, retries, tokens, unreadable answers and orders that disagreed",
    "verify/{verifier}_mean_s": "mean seconds of one check, each distinct text of a group checked once",
    "verify/{verifier}_p50_s": "median seconds of one check",
    "verify/{verifier}_p99_s": "99th percentile of the seconds of one check",
    "verify/lost_services": "verifier services replaced since the start",
    "sandbox/{event}": "programs that ended in this way since the last step; also programs lost and slots replaced",
    "sandbox/{stage}_p50_s": "median seconds of a program in the queue for a slot, and of its run",
    "sandbox/{stage}_p99_s": "99th percentile of the same seconds",
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
    "mismatch/abs_max": "the largest |learner - engine| log-probability of a sampled token",
    "mismatch/ratio_p01": "1st percentile of the probability ratio learner / engine",
    "mismatch/ratio_p99": "99th percentile of the probability ratio learner / engine",
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
    "eval/num_tasks": "held-out tasks that both accuracies were measured on",
    "eval/length_mean": "mean length in tokens of the sampled held-out completions",
}


def meaning_of(metric: str) -> str:
    """What a metric means, its verifier or outcome filled in; empty for a name that the table does not know."""
    if metric in METRICS:
        return METRICS[metric]
    return next((meaning for pattern, meaning in _PATTERNS if pattern.fullmatch(metric)), "")


def _literal(name: str) -> str:
    return re.sub(r"\{\w+\}", "", name)


# The most literal first: verify/{verifier}_p50_s before verify/{verifier}_{outcome}.
_PATTERNS = [
    (re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(name))), METRICS[name])
    for name in sorted(METRICS, key=lambda name: -len(_literal(name)))
    if "{" in name
]
