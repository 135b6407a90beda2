"""What an evaluation found: pass@k, the mean reward and the rest, from the stored completions; as JSON and as a table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo.evaluation.pass_at_k import Estimate, Tally, interval, mean_pass_at_k
from sandbox.errors import SystemFault

if TYPE_CHECKING:
    from rich.table import Table

    from grpo.evaluation.journal import Row


def results(rows: Sequence[Row], *, ks: Sequence[int], num_tasks: int, num_samples: int) -> dict[str, Any]:
    """Everything that is told, JSON-ready. Raises SystemFault when there are completions and none could be scored."""
    tallies = tallies_of(rows)
    scored = [row for row in rows if row["reward"] is not None]
    if rows and not scored:
        raise SystemFault(f"none of the {len(rows)} completions could be scored. The first cause: {rows[0]['cause']}")
    lengths = [row["num_tokens"] for row in rows if row["num_tokens"] is not None]
    return {
        "pass_at_k": {str(k): told(mean_pass_at_k(list(tallies.values()), k)) for k in ks},
        "reward": told(mean_reward(scored)),
        "num_tasks": num_tasks,
        "completions_per_task": num_samples,
        "num_completions": len(rows),
        "num_unscored": len(rows) - len(scored),
        "num_missing": num_tasks * num_samples - len(rows),
        "tokens_mean": statistics.fmean(lengths) if lengths else None,
        "truncated_fraction": sum(row["finish_reason"] == "length" for row in rows) / len(rows) if rows else None,
        "outcomes": outcomes(rows),
        "tasks": [{"id": task_id, **tally._asdict()} for task_id, tally in tallies.items()],
    }


def tallies_of(rows: Sequence[Row]) -> dict[str, Tally]:
    """Scored and correct completions by task. An unscored completion says nothing about the policy."""
    scored, right = Counter[str](), Counter[str]()
    for row in rows:
        scored[row["task_id"]] += row["reward"] is not None
        right[row["task_id"]] += row["reward"] is not None and row["is_correct"]
    return {task_id: Tally(scored[task_id], right[task_id]) for task_id in scored}


def mean_reward(scored: Sequence[Row]) -> Estimate | None:
    """The reward averaged within each task, and then over the tasks."""
    by_task: dict[str, list[float]] = {}
    for row in scored:
        by_task.setdefault(row["task_id"], []).append(row["reward"])
    values = [statistics.fmean(rewards) for rewards in by_task.values()]
    return interval(values, most=len(scored)) if values else None


def told(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate._asdict()


def outcomes(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How often each verifier found what."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for score in row["scores"]:
            counts.setdefault(score["verifier"], Counter())[score["outcome"]] += 1
    return {verifier: dict(sorted(found.items())) for verifier, found in sorted(counts.items())}


def results_table(found: Mapping[str, Any]) -> Table:
    """The estimates with their intervals."""
    from rich.table import Table

    table = Table("", "mean", "95% interval", "tasks")
    named = {f"pass@{k}": estimate for k, estimate in found["pass_at_k"].items()} | {"reward": found["reward"]}
    for name, estimate in named.items():
        if estimate is None:
            table.add_row(name, "-", "-", "0")
        else:
            ends = f"{estimate['low']:.3f} to {estimate['high']:.3f}"
            table.add_row(name, f"{estimate['value']:.3f}", ends, str(estimate["num_tasks"]))
    return table


def remarks(found: Mapping[str, Any]) -> list[str]:
    """Lines that stand below the table."""
    lines = [f"{found['num_completions']} completions of {found['num_tasks']} tasks"]
    if found["tokens_mean"] is not None:
        lines[0] += f", {found['tokens_mean']:.1f} tokens on average"
    if found["truncated_fraction"]:
        lines[0] += f", {found['truncated_fraction']:.1%} cut off at sampling.max_tokens"
    for verifier, counts in found["outcomes"].items():
        lines.append(f"{verifier}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if found["num_unscored"]:
        lines.append(f"{found['num_unscored']} completions are unscored and left out; the same command judges them again")
    return lines
