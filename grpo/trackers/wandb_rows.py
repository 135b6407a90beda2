"""What W&B is told of a run, a row for each step, and what its table shows of a step's rollouts. Nothing here knows the client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.tracking import rollout_file

MAX_TABLE_ROWS = 64  # of one step
COLUMNS = ("step", "task", "prompt", "completion", "reward", "correct", "finish_reason", "policy_version", "scores")


@dataclass(frozen=True, slots=True)
class Row:
    """All that is known of one step. `rollouts` is its file of rollouts, where the table shows them."""

    step: int
    metrics: dict[str, float]
    rollouts: Path | None = None


def past_rows(lines: Iterable[dict[str, Any]], rollouts: Path, *, table_every: int) -> list[Row]:
    """What metrics.jsonl and the rollout files tell of the steps so far, one row for each."""
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        steps.setdefault(line["step"], {}).update({name: value for name, value in line.items() if name != "step"})
    return [
        Row(step, metrics, rollout_file(rollouts, step) if table_every and step and step % table_every == 0 else None)
        for step, metrics in sorted(steps.items())
    ]


def table_rows(path: Path) -> list[tuple[Any, ...]]:
    """The first completions of a rollout file, as the table shows them."""
    import pyarrow.parquet as pq

    columns = ["step", "task_id", "prompt", "text", "reward", "is_correct", "finish_reason", "policy_version", "scores"]
    rows = pq.read_table(path, columns=columns).slice(0, MAX_TABLE_ROWS).to_pylist()
    return [(*(row[name] for name in columns[:-1]), scores_text(row["scores"])) for row in rows]


def scores_text(scores: Iterable[dict[str, Any]]) -> str:
    """`math correct 1: equal to 12; format wrong 0: no box`"""
    return "; ".join(
        f"{score['verifier']} {score['outcome']}{'' if score['value'] is None else format(score['value'], ' g')}: {score['reason']}"
        for score in scores
    )
