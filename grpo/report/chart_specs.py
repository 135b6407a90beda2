"""What a report draws, as data: the charts of each section, with the metrics that they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from verifiers.types import Outcome

OUTCOMES = "|".join(Outcome)


@dataclass(frozen=True)
class Chart:
    """One chart. `lines` names curves with their labels; `each` matches curves, and its last group is the label.

    Where `each` has two groups, there is a chart for each value of the first, which takes the place of `{}` in the title. `unit` is
    "share" for what is read as a percentage. `top` is the end of an axis that begins at 0; without it the values decide.
    """

    title: str
    lines: Mapping[str, str] = field(default_factory=dict)
    each: str = ""
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    kind: Literal["lines", "stack"] = "lines"
    about: str = ""
    top: float | None = None


@dataclass(frozen=True)
class Section:
    """Charts that answer one question."""

    title: str
    charts: tuple[Chart, ...]


OVER_PROMPTS = "band: 95 % interval over prompts"
SECTIONS = (
    Section(
        "Does it learn?",
        (
            Chart("Mean reward", {"reward/mean": "reward"}, better="higher", top=1.0, about=OVER_PROMPTS),
            Chart(
                "Held-out accuracy (pass@1)",
                {"eval/sampled_accuracy": "sampled", "eval/greedy_accuracy": "greedy"},
                unit="share",
                better="higher",
                top=1.0,
                about="band: 95 % interval over tasks",
            ),
            Chart("pass@k, training prompts", each=r"(pass@\d+)", unit="share", better="higher", top=1.0, about=OVER_PROMPTS),
            Chart("Reward of each verifier", each=r"reward/(?!mean$|std$)(.+)", better="higher", top=1.0),
            Chart("Preference accuracy", {"preference/accuracy": "pairs ranked right"}, unit="share", better="higher", top=1.0),
            Chart(
                "Implicit rewards",
                {"preference/margin": "margin", "preference/chosen": "chosen", "preference/rejected": "rejected"},
            ),
        ),
    ),
    Section(
        "What does it write?",
        (
            Chart(
                "Completion length",
                {
                    "completion/length_mean": "mean",
                    "completion/length_max": "longest",
                    "eval/length_mean": "held-out mean",
                },
                unit="tokens",
            ),
            Chart("Outcomes of {}", each=rf"outcome/(.+)_({OUTCOMES})", unit="share", kind="stack", top=1.0),
            Chart(
                "What teaches nothing",
                {
                    "group/flat_fraction": "flat groups",
                    "completion/truncated_fraction": "truncated completions",
                    "verify/unscored_fraction": "unscored completions",
                },
                unit="share",
                better="lower",
            ),
        ),
    ),
    Section(
        "Is the policy healthy?",
        (
            Chart("Entropy", {"policy/entropy": "entropy"}, unit="nats a token", about="low: sure of itself"),
            Chart("KL to the reference policy", {"policy/kl": "KL"}, unit="nats a token"),
            Chart(
                "Tokens the bounds touched",
                {
                    "policy/clipped_fraction": "clipped",
                    "policy/truncated_fraction": "truncated",
                    "policy/masked_fraction": "masked",
                },
                unit="share",
            ),
            Chart("Loss", {"loss/value": "loss"}),
            Chart("Gradient norm", {"policy/grad_norm": "before clipping"}),
            Chart("Learning rate", {"policy/learning_rate": "learning rate"}),
        ),
    ),
    Section(
        "Do engine and learner agree?",
        (
            Chart(
                "|learner - engine|",
                {"mismatch/abs_mean": "mean", "mismatch/abs_max": "max", "mismatch/probe_abs_mean": "probe after sync"},
                unit="nats",
                better="lower",
                about="difference of log-probabilities",
            ),
            Chart("Ratio learner / engine", {"mismatch/ratio_p01": "1st percentile", "mismatch/ratio_p99": "99th percentile"}),
            Chart("Effective sample size", {"mismatch/ess_fraction": "of the tokens"}, unit="share", better="higher", top=1.0),
        ),
    ),
    Section(
        "Where does the time go?",
        (
            Chart(
                "Seconds of a step",
                {
                    "time/rollout_s": "waiting for groups",
                    "time/update_s": "update",
                    "time/load_s": "load into workers",
                    "rest of step": "the rest",
                },
                unit="s",
                better="lower",
                kind="stack",
            ),
            Chart("Tokens learnt from", {"speed/tokens_per_s": "completion tokens"}, unit="tokens/s", better="higher"),
            Chart("Evaluation", {"time/evaluate_s": "seconds"}, unit="s", better="lower"),
            Chart(
                "One check by {}",
                each=r"verify/(.+)_(p50|p99)_s",
                unit="s",
                better="lower",
                about="median and 99th percentile",
            ),
            Chart(
                "Lag",
                {"collector/lag_mean": "mean", "collector/lag_max": "largest"},
                unit="updates",
                about="between sampling and learning",
            ),
            Chart(
                "Groups that were dropped",
                {
                    "collector/stale_groups": "stale",
                    "collector/unscored_groups": "unscored",
                    "collector/refused_groups": "refused by the objective",
                    "collector/abandoned_groups": "begun beyond need",
                },
                unit="groups",
                better="lower",
            ),
            Chart(
                "Parts that were replaced",
                {"fleet/lost_workers": "rollout workers", "verify/lost_services": "verifier services"},
                better="lower",
            ),
        ),
    ),
)
