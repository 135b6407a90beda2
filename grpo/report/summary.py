"""What a page says around its curves: the figures at its top, the facts of a run, its config, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.metric_table import METRICS
from grpo.report.charts import Curve, Curves
from grpo.report.recorded_run import RecordedRun
from grpo.report.rollout_selection import Chosen, GroupCount

AVERAGED = 10  # steps at either end that a figure at the top is the mean of
FACTS = {
    "objective": "objective.name",
    "model": "model.path",
    "tasks": "tasks.source",
    "prompts a step": "groups_per_step",
    "completions a prompt": "group_size",
    "longest completion": "sampling.max_tokens",
    "learning rate": "learner.learning_rate",
    "engine": "engine.kind",
    "seed": "seed",
}


def tiles(run: RecordedRun, curves: Curves) -> list[dict[str, str]]:
    """The figures that one looks for first."""
    found = []
    for name, label in (("reward/mean", "Mean reward"), ("loss/value", "Loss")):
        if name in curves and len(found) == 0 and not (name == "reward/mean" and len(set(curves[name].values)) == 1):
            values = curves[name].values
            num = max(1, min(AVERAGED, len(values) // 4))
            detail = f"mean of the first and the last {num} steps" if num > 1 else "first and last step"
            found.append(tile(label, f"{_mean(values[:num]):.2f} → {_mean(values[-num:]):.2f}", detail))
    for name, label in (("eval/sampled_accuracy", "Held-out, sampled"), ("eval/greedy_accuracy", "Held-out, greedy")):
        if name in curves:
            found.append(tile(label, _from_to(curves[name]), _last_interval(curves[name])))
    tokens = sum(value for _, value in run.series("completion/tokens"))
    if tokens:
        found.append(tile("Learnt from", f"{_short(tokens)} tokens", f"in {run.last_step} steps"))
    seconds = sum(value for name in ("time/step_s", "time/evaluate_s") for _, value in run.series(name))
    if seconds:
        evaluating = sum(value for _, value in run.series("time/evaluate_s"))
        found.append(tile("Time", _duration(seconds), f"{_duration(evaluating)} of it evaluation"))
    return found


def tile(label: str, value: str, detail: str) -> dict[str, str]:
    """One figure of the page's top."""
    return {"label": label, "value": value, "detail": detail}


def _from_to(curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    return f"{last:.0%}" if len(curve.values) == 1 else f"{first:.0%} → {last:.0%}"


def _last_interval(curve: Curve) -> str:
    interval = curve.intervals[-1]
    return "" if interval is None else f"95 % interval {interval.low:.0%} to {interval.high:.0%}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min" if minutes >= 2 else f"{seconds:.0f} s"


def facts(run: RecordedRun) -> list[tuple[str, str]]:
    """What was run, with what, and where."""
    config, record = run.config, run.record
    named = [(label, shown(config[name])) for label, name in FACTS.items() if config.get(name) is not None]
    if config.get("model.start_from") is not None:
        named.append(("began from", shown(config["model.start_from"])))
    packages = record.get("packages")
    versions = ", ".join(f"{name} {version}" for name, version in packages.items()) if isinstance(packages, dict) else ""
    recorded = [
        ("config hash", record.get("config_hash")),
        ("commit", record.get("commit")),
        ("python", record.get("python")),
        ("packages", versions),
        ("folder", str(run.folder.path)),
    ]
    return named + [(label, str(value)) for label, value in recorded if value]


def headline(run: RecordedRun) -> str:
    """What was run, in a line."""
    config = run.config
    source = shown(config.get("tasks.source", "")).partition("?")[0]
    parts = [
        f"{config.get('objective.name')} on {source}",
        f"{config.get('groups_per_step')} prompts of {config.get('group_size')} completions a step",
        f"learning rate {shown(config.get('learner.learning_rate'))}",
    ]
    return ", ".join(parts) if config else "What was run"


def notes(run: RecordedRun, counts: Sequence[GroupCount]) -> list[str]:
    """What is missing, or must be known to read the page right."""
    found = list(run.problems)
    if not run.steps:
        found.append("metrics.jsonl holds no step yet: the curves come with the first.")
    elif not run.series("eval/sampled_accuracy"):
        found.append("The run was not evaluated: without held-out accuracy, the reward alone says what it learnt.")
    if not counts:
        found.append(
            "There are no rollouts: sampled ones are stored every tracking.rollouts_every steps, recorded ones (pairs, labels, "
            "demonstrations) never."
        )
    elif any(value for _, value in run.series("collector/refused_groups")):
        found.append(
            "The objective refused some groups, such as flat ones, and they are not stored: pass@k of the training prompts is that "
            "of the groups that were learnt from."
        )
    return found


def rollouts_sentence(counts: Sequence[GroupCount], chosen: Chosen) -> str:
    """How much of the run's rollouts stands in the page; empty when there are none."""
    if not counts:
        return ""
    num_stored = sum(count.num_completions for count in counts)
    steps = len({count.step for count in counts})
    if chosen.num_completions == num_stored:
        return f"All {num_stored:,} completions that the run stored, of {_steps(steps)}."
    at = f"all {_steps(steps)}" if len(chosen.groups) == steps else f"{len(chosen.groups)} of {_steps(steps)}"
    return (
        f"{chosen.num_completions:,} of the {num_stored:,} completions that the run stored, from {at}: prompts that were seen most "
        "often first, then by a hash of their id. The curves count all of them. `grpo report --all` puts all of them here."
    )


def _steps(number: int) -> str:
    return f"{number:,} step" + "s" * (number != 1)


def config_table(runs: Mapping[str, RecordedRun]) -> dict[str, Any]:
    """Every value of the configs, a column a run."""
    names = list(dict.fromkeys(name for run in runs.values() for name in run.config))
    rows = [[name, *(shown(run.config.get(name, "")) for run in runs.values())] for name in names]
    head = ["", *runs] if len(runs) > 1 else ["field", "value"]
    return {"title": "Config, every value", "head": head, "rows": rows, "closed": True}


def differences_table(runs: Mapping[str, RecordedRun]) -> dict[str, Any]:
    """The values in which configs differ, and the code and packages they ran with."""
    names = list(dict.fromkeys(name for run in runs.values() for name in run.config))
    rows = [[name, *(shown(run.config.get(name, "")) for run in runs.values())] for name in names]
    rows.append(["commit", *(shown(run.record.get("commit")) for run in runs.values())])
    packages = [run.record.get("packages") or {} for run in runs.values()]
    for name in dict.fromkeys(name for versions in packages for name in versions):
        rows.append([name, *(shown(versions.get(name)) for versions in packages)])
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return {"title": "What differs", "head": ["", *runs], "rows": differing, "closed": False}


def meanings_table(curves: Curves) -> dict[str, Any]:
    """What each metric means."""
    rows = [[name, meaning] for name, meaning in METRICS.items() if "{" in name or name in curves]
    return {"title": "What the metrics mean", "head": ["metric", "meaning"], "rows": rows, "closed": True}


def shown(value: Any) -> str:
    """A config value as TOML would have it, as far as a reader cares."""
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
