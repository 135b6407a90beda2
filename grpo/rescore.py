"""A run's stored rollouts judged again, by the verifiers of today, and what flipped: the work of `grpo rescore`.

The texts, references and mixes are those that the run wrote down; the rewards it learnt from are compared, never changed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sandbox.config import SandboxConfig
from sandbox.errors import UserError
from verifiers.errors import InvalidReference, VerifierError
from verifiers.reward import RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Task, Verdict

COLUMNS = ["step", "task_id", "prompt", "reference", "rewards", "index", "text", "token_ids", "reward", "is_correct", "scores"]
ROWS_AT_ONCE = 256


class Rules(NamedTuple):
    """What to judge with."""

    mixes: Mapping[str, RewardMix]
    plugins: tuple[str, ...]
    sandbox: SandboxConfig


@dataclass(slots=True)
class Rescored:
    """What came of a run: completions judged, and the flips by what they were and became."""

    num_rows: int = 0
    num_flips: int = 0
    changes: Counter[str] = field(default_factory=Counter)


def rules_of(run: Path, config: Path | None = None) -> Rules:
    """The mixes, plugins and sandbox of a config file, or those that the run wrote down. Raises UserError."""
    from grpo.config import RunConfig, load_config
    from grpo.folder import nested_values

    if config is not None:
        loaded = load_config(config)
        return Rules(loaded.mixes, loaded.plugins, loaded.sandbox)
    recorded = run / "config.json"
    try:
        values = json.loads(recorded.read_text())["config"]
        nested = nested_values(
            {name: value for name, value in values.items() if name.split(".")[0] in ("rewards", "plugins", "sandbox")}
        )
        known = RunConfig.model_validate({"tasks": {"source": "recorded"}, **nested})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{recorded}: what the run was judged by cannot be read ({type(error).__name__}: {error}). Give the folder of a run, "
            "or --config with a config whose mixes shall be used."
        ) from None
    return Rules(known.mixes, known.plugins, known.sandbox)


async def rescore(
    run: Path, rules: Rules, flips: list[dict[str, Any]], *, rewards: str | None = None, workers: int = 2
) -> Rescored:
    """Judge every stored completion of a run again; those whose reward changed are added to `flips`, in order."""
    service = VerifierService(rules.mixes, plugins=rules.plugins, workers=workers, sandbox=rules.sandbox)
    rescored = Rescored()
    try:
        async for row, verdict in _judged(service, run, rewards):
            rescored.num_rows += 1
            if differs(row, verdict):
                flip = flipped(row, verdict)
                flips.append(flip)
                rescored.num_flips += 1
                rescored.changes[f"from {_shown(flip['before'])} to {_shown(flip['after'])}"] += 1
    finally:
        await service.close()
    return rescored


async def _judged(service: VerifierService, run: Path, rewards: str | None) -> AsyncIterator[tuple[dict[str, Any], Verdict]]:
    for rows in stored_rows(run):
        verdicts = await asyncio.gather(*(_verdict(service, row, rewards) for row in rows))
        for row, verdict in zip(rows, verdicts, strict=True):
            yield row, verdict


async def _verdict(service: VerifierService, row: Mapping[str, Any], rewards: str | None) -> Verdict:
    """A completion's verdict; unscored where its reference is refused today."""
    task = Task(row["task_id"], row["prompt"], json.loads(row["reference"]), rewards or row["rewards"])
    try:
        await service.prepare([task])
    except InvalidReference as error:
        return Verdict(None, False, (), str(error))
    except VerifierError as error:
        raise UserError(f"{error} Say with --config or --rewards what these rollouts shall be judged by.") from None
    (verdict,) = await service.judge(task, [Text(row["text"], len(row["token_ids"]))])
    return verdict


def stored_rows(run: Path) -> Iterator[list[dict[str, Any]]]:
    """The rollouts of a run in the order of its steps, some at a time. Raises UserError when there are none."""
    import pyarrow.parquet as pq

    files = sorted((run / "rollouts").glob("step-*.parquet"))
    if not files:
        raise UserError(
            f"{run}: there are no rollouts. Give the folder of a run; tracking.rollouts_every says how often it stores them."
        )
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE, columns=COLUMNS):
            yield batch.to_pylist()


def differs(row: Mapping[str, Any], verdict: Verdict) -> bool:
    """Whether a completion's reward, or whether it counts as correct, is not what it was."""
    if (row["reward"] is None) != (verdict.reward is None) or row["is_correct"] != verdict.is_correct:
        return True
    return row["reward"] is not None and verdict.reward is not None and abs(row["reward"] - verdict.reward) > 1e-9


def flipped(row: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    """What somebody wants to see of a completion whose reward changed: the scores before and now, with their reasons."""
    return {
        "step": row["step"],
        "task_id": row["task_id"],
        "index": row["index"],
        "reference": json.loads(row["reference"]),
        "before": row["reward"],
        "after": verdict.reward,
        "scores_before": [
            {name: score[name] for name in ("verifier", "outcome", "value", "reason", "extracted")} for score in row["scores"]
        ],
        "scores_after": [
            {
                "verifier": score.verifier,
                "outcome": score.outcome.value,
                "value": score.value,
                "reason": score.reason,
                "extracted": score.extracted,
            }
            for score in verdict.scores
        ],
        "cause": verdict.cause,
    }


def told(flip: Mapping[str, Any]) -> str:
    """One flip in one line: what it was and became, and the first score that changed with both reasons."""
    before = {score["verifier"]: score for score in flip["scores_before"]}
    changed = _changed(flip["scores_after"], before)
    reasons = "" if changed is None else f": {changed['verifier']} {_said(before.get(changed['verifier']))} -> {_said(changed)}"
    place = f"step {flip['step']} task {flip['task_id']} completion {flip['index']}"
    return f"{place}: {_shown(flip['before'])} -> {_shown(flip['after'])}{reasons}"


def _changed(after: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((score for score in after if before.get(score["verifier"], {}).get("value") != score["value"]), None)


def _said(score: Mapping[str, Any] | None) -> str:
    return "not judged" if score is None else f"{score['outcome']} ({score['reason'][:120]})"


def _shown(reward: float | None) -> str:
    return "unscored" if reward is None else f"{reward:g}"
