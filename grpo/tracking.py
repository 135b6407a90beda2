"""Where the numbers of a run go: metrics.jsonl always, W&B when asked for, rollouts to Parquet. Showing progress is progress.py."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rollout.types import Group
from verifiers.types import Message, Score

logger = logging.getLogger(__name__)

WandbMode = Literal["online", "offline", "disabled"]


class Tracker(Protocol):
    """Receives metrics by name. `log` may be called more than once for a step, with different names."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class Tracking:
    """Sends everything to each tracker."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class JsonlTracker:
    """metrics.jsonl: one JSON object per call, with its step. A value that is not finite has no JSON, and is left out.

    Opening it drops what lies beyond `from_step`, and a half-written last line: a run resumed from step k logs the steps after k
    again, and one that begins at step 0 logs everything again.
    """

    def __init__(self, path: Path, *, from_step: int) -> None:
        kept = [line for line in read_metrics(path) if from_step > 0 and line["step"] <= from_step]
        beside = path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        beside.replace(path)
        self._file = path.open("a")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that were damaged, such as a last one that was cut off."""
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        else:
            logger.warning("%s:%d: a damaged line was left out", path, number)
    return lines


class WandbTracker:
    """Weights & Biases. Offline when there is no key or no network; a failure is reported once and never stops the run."""

    def __init__(
        self, *, project: str, entity: str | None, name: str, folder: Path, config: dict[str, Any], run_id: str | None
    ) -> None:
        self._run = start_wandb(project=project, entity=entity, name=name, folder=folder, config=config, run_id=run_id)

    @property
    def run_id(self) -> str | None:
        return None if self._run is None else str(self._run.id)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._attempt(lambda run: run.log(metrics, step=step))

    def close(self) -> None:
        self._attempt(lambda run: run.finish())

    def _attempt(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever its client raises, training goes on without it
            logger.warning("W&B failed and is left out from here on: %s: %s", type(error).__name__, error)
            self._run = None


def start_wandb(*, project: str, entity: str | None, name: str, folder: Path, config: dict[str, Any], run_id: str | None) -> Any:
    """A W&B run: online when a key is known and the server answers, else offline, else None. Never raises."""
    for mode in wandb_modes():
        try:
            return import_wandb().init(
                project=project,
                entity=entity,
                name=name,
                dir=folder,
                config=config,
                id=run_id,
                resume="allow" if run_id else None,
                mode=mode,
                settings=import_wandb().Settings(init_timeout=30, console="off"),
            )
        except Exception as error:  # its client raises many kinds, and none of them is worth a run
            logger.warning("W&B does not start in mode %s: %s: %s", mode, type(error).__name__, error)
    return None


def import_wandb() -> Any:
    """The client, told to keep its messages in its own log: the terminal belongs to the progress display."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb


def wandb_modes() -> tuple[WandbMode, ...]:
    """What to try, in order: what WANDB_MODE says; else online when a key is known; offline last."""
    asked = os.environ.get("WANDB_MODE", "online")
    if asked == "disabled":
        return ("disabled",)
    return ("online", "offline") if asked == "online" and _has_wandb_key() else ("offline",)


def _has_wandb_key() -> bool:
    try:
        return bool(os.environ.get("WANDB_API_KEY") or import_wandb().api.api_key)
    except Exception:  # a netrc it cannot read, a settings file it cannot parse: no key then
        logger.debug("W&B could not tell whether there is a key", exc_info=True)
        return False


class RolloutStore:
    """rollouts/step-000012.parquet: one row per completion, with every Score and its reason."""

    def __init__(self, folder: Path, *, every: int) -> None:
        self._folder = folder
        self._every = every

    def write(self, step: int, groups: Sequence[Group]) -> None:
        if not self._every or step % self._every:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:06d}.parquet"
        beside = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rollout_rows(step, groups), schema=rollout_schema()), beside, compression="zstd")
        beside.replace(path)


def rollout_schema() -> Any:
    """The columns of a rollout file. Empty groups of columns keep their types, so that files of all steps can be read together."""
    import pyarrow as pa

    score = pa.struct(
        [
            ("verifier", pa.string()),
            ("outcome", pa.string()),
            ("value", pa.float64()),
            ("reason", pa.string()),
            ("extracted", pa.string()),
            ("seconds", pa.float64()),
        ]
    )
    return pa.schema(
        [
            ("step", pa.int64()),
            ("task_id", pa.string()),
            ("prompt", pa.string()),
            ("reference", pa.string()),
            ("rewards", pa.string()),
            ("index", pa.int64()),
            ("text", pa.string()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("token_ids", pa.list_(pa.int32())),
            ("behavior_logprobs", pa.list_(pa.float32())),
            ("finish_reason", pa.string()),
            ("policy_version", pa.int64()),
            ("seed", pa.int64()),
            ("reward", pa.float64()),
            ("is_correct", pa.bool_()),
            ("cause", pa.string()),
            ("scores", pa.list_(score)),
        ]
    )


def rollout_rows(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row per completion, in order."""
    return [
        {
            "step": step,
            "task_id": _encodable(group.task.id),
            "prompt": _encodable(_prompt_text(group.task.prompt)),
            "reference": json.dumps(group.task.reference, default=str),
            "rewards": group.task.rewards,
            "index": completion.index,
            "text": _encodable(completion.text),
            "prompt_ids": completion.prompt_ids,
            "token_ids": completion.token_ids,
            "behavior_logprobs": completion.behavior_logprobs,
            "finish_reason": completion.finish_reason,
            "policy_version": completion.policy_version,
            "seed": completion.seed,
            "reward": verdict.reward,
            "is_correct": verdict.is_correct,
            "cause": None if verdict.cause is None else _encodable(verdict.cause),
            "scores": [_score_row(score) for score in verdict.scores],
        }
        for group in groups
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
    ]


def _score_row(score: Score) -> dict[str, Any]:
    return {
        "verifier": score.verifier,
        "outcome": score.outcome.value,
        "value": score.value,
        "reason": _encodable(score.reason),
        "extracted": None if score.extracted is None else _encodable(score.extracted),
        "seconds": score.seconds,
    }


def _prompt_text(prompt: str | tuple[Message, ...]) -> str:
    return prompt if isinstance(prompt, str) else json.dumps([turn._asdict() for turn in prompt])


def _encodable(text: str) -> str:
    """Lone surrogates cannot be stored as UTF-8; they are kept as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
