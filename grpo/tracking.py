"""Where the numbers of a run go: metrics.jsonl always, rollouts to Parquet, and whoever else is told.

The trackers are in trackers/, the live progress among them.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout.types import Completion, Group
from verifiers.types import Message, Score, Verdict

logger = logging.getLogger(__name__)

# Columns of a rollout file that are worth a dictionary: it is the slowest part of writing the others, and makes them no smaller.
REPEATED = ["task_id", "prompt", "reference", "rewards", "finish_reason", "cause"]


class Tracker:
    """Told what happens in a run, on the thread of its loop: no method may wait. Those that do nothing here suit most trackers."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics by name. May be called more than once for a step, with different names."""

    def rollouts_written(self, step: int, path: Path) -> None:
        """The step's completions are in this Parquet file."""

    def checkpoint_written(self, step: int, path: Path, metadata: dict[str, Any]) -> None:
        """The run can be resumed from here: all that was logged until this step will not be logged again."""

    def alert(self, title: str, text: str) -> None:
        """Something that a person should hear of at once."""

    def close(self) -> None: ...


class Tracking(Tracker):
    """Tells each tracker everything."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def rollouts_written(self, step: int, path: Path) -> None:
        for tracker in self._trackers:
            tracker.rollouts_written(step, path)

    def checkpoint_written(self, step: int, path: Path, metadata: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.checkpoint_written(step, path, metadata)

    def alert(self, title: str, text: str) -> None:
        for tracker in self._trackers:
            tracker.alert(title, text)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class JsonlTracker(Tracker):
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


class RolloutStore:
    """rollouts/step-000012.parquet: one row per completion, with every Score and its reason."""

    def __init__(self, folder: Path, *, every: int) -> None:
        self._folder = folder
        self._every = every

    def write(self, step: int, groups: Sequence[Group]) -> Path | None:
        """The file that was written; None when none is due."""
        if not self._every or step % self._every:
            return None
        import pyarrow.parquet as pq

        self._folder.mkdir(parents=True, exist_ok=True)
        path = rollout_file(self._folder, step)
        beside = path.with_suffix(".partial")
        pq.write_table(rollout_table(step, groups), beside, compression="zstd", use_dictionary=REPEATED)  # type: ignore[arg-type]
        beside.replace(path)
        return path


def rollout_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.parquet"


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
            ("version_spans", pa.list_(pa.struct([("version", pa.int64()), ("num_tokens", pa.int32())]))),
            ("seed", pa.int64()),
            ("reward", pa.float64()),
            ("is_correct", pa.bool_()),
            ("cause", pa.string()),
            ("scores", pa.list_(score)),
        ]
    )


def rollout_table(step: int, groups: Sequence[Group]) -> Any:
    """The rows of a step under the schema of all of them."""
    import pyarrow as pa

    rows, schema = _rows_without_tokens(step, groups), rollout_schema()
    packed = [completion.packed for group in groups for completion in group.completions]
    columns = []
    for column in schema:
        if column.name == "token_ids":
            columns.append(_packed_lists([each.token_ids for each in packed], "q", column.type))
        elif column.name == "behavior_logprobs":
            columns.append(_packed_lists([each.logprobs for each in packed], "d", column.type))
        elif column.name == "prompt_ids":
            columns.append(_token_lists([row[column.name] for row in rows], column.type))
        else:
            columns.append(pa.array([row[column.name] for row in rows], type=column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _packed_lists(lists: Sequence[bytes | None], code: str, kind: Any) -> Any:
    """Lists of numbers that are bytes of struct's `code`, as an array of lists of `kind`. None is a missing list."""
    import numpy as np
    import pyarrow as pa

    dtype = np.dtype(code)
    offsets = np.cumsum([0, *(len(each or b"") // dtype.itemsize for each in lists)], dtype=np.int32)
    values = np.frombuffer(b"".join(each for each in lists if each), dtype).astype(kind.value_type.to_pandas_dtype())
    is_missing = np.array([*(each is None for each in lists), False])
    return pa.ListArray.from_arrays(pa.array(offsets, mask=is_missing), pa.array(values), type=kind)


def _token_lists(lists: Sequence[Sequence[int]], kind: Any) -> Any:
    """As pa.array(lists, type=kind) in a sixth of the time: that asks every number what it is."""
    return _packed_lists([struct.pack(f"{len(each)}i", *each) for each in lists], "i", kind)


def rollout_rows(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row per completion, in order."""
    completions = [completion for group in groups for completion in group.completions]
    return [
        row | {"token_ids": completion.token_ids, "behavior_logprobs": completion.behavior_logprobs}
        for row, completion in zip(_rows_without_tokens(step, groups), completions, strict=True)
    ]


def _rows_without_tokens(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    rows = []
    for group in groups:
        of_task = {
            "step": step,
            "task_id": _encodable(group.task.id),
            "prompt": _encodable(_prompt_text(group.task.prompt)),
            "reference": json.dumps(group.task.reference, default=str),
            "rewards": group.task.rewards,
        }
        pairs = zip(group.completions, group.verdicts, strict=True)
        rows += [of_task | _completion_row(completion, verdict) for completion, verdict in pairs]
    return rows


def _completion_row(completion: Completion, verdict: Verdict) -> dict[str, Any]:
    return {
        "index": completion.index,
        "text": _encodable(completion.text),
        "prompt_ids": completion.prompt_ids,
        "finish_reason": completion.finish_reason,
        "policy_version": completion.policy_version,
        "version_spans": [{"version": span.version, "num_tokens": span.num_tokens} for span in completion.version_spans],
        "seed": completion.seed,
        "reward": verdict.reward,
        "is_correct": verdict.is_correct,
        "cause": None if verdict.cause is None else _encodable(verdict.cause),
        "scores": [_score_row(score) for score in verdict.scores],
    }


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
