"""Which of a run's rollouts go into the page, and their text. Rollouts are streamed: a batch of rows is all that is held.

The first pass counts (every group, without its texts), the second reads the groups that were chosen.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
MAX_COMPLETIONS = 10_000  # in a page that opens within a second or two
MAX_CHARACTERS = 24_000_000
CLIP_HEAD, CLIP_TAIL = 8_000, 4_000  # of one text; an answer stands at its end
COUNTED = ["step", "task_id", "index", "reward", "is_correct", "behavior_logprobs"]
SHOWN = [
    *("step", "task_id", "prompt", "reference", "rewards", "index", "text", "token_ids", "finish_reason"),
    *("policy_version", "reward", "is_correct", "cause", "scores"),
]


class GroupCount(NamedTuple):
    """One group of one step. Demonstrations that stand beside samples count among `num_completions` alone."""

    step: int
    position: int  # among the groups of its step
    task_id: str
    num_completions: int
    num_scored: int
    num_correct: int
    reward_total: float


class Chosen(NamedTuple):
    """The groups that go into the page: step -> position -> how many of its completions."""

    groups: dict[int, dict[int, int]]
    clip: bool

    @property
    def num_completions(self) -> int:
        return sum(count for positions in self.groups.values() for count in positions.values())


def count_groups(files: Iterable[Path], problems: list[str]) -> list[GroupCount]:
    """Every group that was stored. A file that cannot be read is left out and told of in `problems`."""
    counts: list[GroupCount] = []
    for path in files:
        rows: dict[int, list[tuple[Any, ...]]] = {}
        try:
            for batch, positions in _batches(path, COUNTED):
                columns = [batch.column(name).to_pylist() for name in COUNTED[:-1]]
                is_sampled = batch.column("behavior_logprobs").is_valid().to_pylist()
                for position, *row in zip(positions, *columns, is_sampled, strict=True):
                    rows.setdefault(position, []).append(tuple(row))
        except (OSError, ValueError, KeyError) as error:  # pyarrow's ArrowInvalid is a ValueError
            problems.append(f"{path.name} cannot be read ({type(error).__name__}: {str(error)[:200]}), so it is left out.")
            continue
        counts.extend(_counted(position, group) for position, group in rows.items())
    return counts


def _counted(position: int, rows: Sequence[tuple[Any, ...]]) -> GroupCount:
    """The rows of one group: step, task, index, reward, is_correct, is_sampled."""
    own = [row for row in rows if row[5]] or rows
    rewards = [row[3] for row in own if row[3] is not None]
    num_correct = sum(bool(row[4]) for row in own if row[3] is not None)
    return GroupCount(rows[0][0], position, rows[0][1], len(rows), len(rewards), num_correct, sum(rewards))


def mean_text_bytes(files: Sequence[Path]) -> float:
    """How long a text is in the mean, by what some of the files say of themselves."""
    import pyarrow.parquet as pq

    num_bytes = num_rows = 0
    for path in files[:: max(1, len(files) // 8)]:
        try:
            metadata = pq.read_metadata(path)
        except (OSError, ValueError):  # it is told of where it is counted
            continue
        num_rows += metadata.num_rows
        for number in range(metadata.num_row_groups):
            columns = [metadata.row_group(number).column(i) for i in range(metadata.num_columns)]
            num_bytes += sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
    return num_bytes / num_rows if num_rows else 0.0


def choose(counts: Sequence[GroupCount], *, per_step: int | None, text_bytes: float = 0.0, take_all: bool = False) -> Chosen:
    """Some groups of each step, or of as many steps, evenly spread, as there is room for: whole ones where they fit.

    Tasks that were seen at most steps come first, then by a hash of their id: the same tasks are taken whenever they come, and so
    can be followed. `per_step` is the most completions of a step, None for as many as there is room for.
    """
    by_step: dict[int, list[GroupCount]] = {}
    for count in counts:
        by_step.setdefault(count.step, []).append(count)
    if take_all or not by_step:
        everything = {step: {count.position: count.num_completions for count in groups} for step, groups in by_step.items()}
        return Chosen(everything, clip=not take_all)
    room = min(MAX_COMPLETIONS, int(MAX_CHARACTERS / (min(text_bytes, CLIP_HEAD + CLIP_TAIL) + 400)))
    largest = max(count.num_completions for count in counts)
    if per_step is None:
        per_step = max(largest, room // len(by_step))
    kept = _spread(sorted(by_step), max(1, room // per_step))
    num_steps = Counter(task_id for _, task_id in {(count.step, count.task_id) for count in counts})

    def order(count: GroupCount) -> tuple[int, bytes]:
        return -num_steps[count.task_id], hashlib.sha256(count.task_id.encode("utf-8", "replace")).digest()

    return Chosen({step: _within(sorted(by_step[step], key=order), per_step) for step in kept}, clip=True)


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many steps, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _within(groups: Sequence[GroupCount], most: int) -> dict[int, int]:
    """Whole groups in their order, until the next does not fit; of the first one as much as fits."""
    taken: dict[int, int] = {}
    for group in groups:
        left = most - sum(taken.values())
        if group.num_completions > left and taken:
            break
        taken[group.position] = min(group.num_completions, left)
    return taken


def chosen_groups(files: Iterable[Path], chosen: Chosen) -> Iterator[dict[str, Any]]:
    """The chosen groups as the page knows them, in order, one at a time."""
    for path in files:
        if int(path.stem.removeprefix("step-")) not in chosen.groups:
            continue
        group: dict[str, Any] = {}
        for position, row in _chosen_rows(path, chosen):
            if group and group["position"] != position:
                yield group
                group = {}
            group = group or _group(position, row, clip=chosen.clip)
            group["completions"].append(_completion(row, clip=chosen.clip))
        if group:
            yield group


def _chosen_rows(path: Path, chosen: Chosen) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    taken: Counter[int] = Counter()
    for batch, positions in _batches(path, SHOWN):
        steps = batch.column("step").to_pylist()
        wanted = []
        for number, (step, position) in enumerate(zip(steps, positions, strict=True)):
            if taken[position] < chosen.groups.get(step, {}).get(position, 0):
                taken[position] += 1
                wanted.append(number)
        lengths = pc.list_value_length(batch.column("token_ids")).to_pylist()  # type: ignore[attr-defined]
        rows = batch.drop_columns(["token_ids"]).take(pa.array(wanted, pa.int64())).to_pylist()
        for number, row in zip(wanted, rows, strict=True):
            yield positions[number], row | {"num_tokens": lengths[number]}


def _batches(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, list[int]]]:
    """The rows of a file some at a time, with the position of the group each belongs to: within a group the indices rise."""
    import pyarrow.parquet as pq

    position, last = -1, ("", 0)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
            positions = []
            for task_id, index in zip(batch.column("task_id").to_pylist(), batch.column("index").to_pylist(), strict=True):
                position += position < 0 or task_id != last[0] or index <= last[1]
                last = (task_id, index)
                positions.append(position)
            yield batch, positions


def _group(position: int, row: Mapping[str, Any], *, clip: bool) -> dict[str, Any]:
    return {
        "step": row["step"],
        "position": position,
        "task": row["task_id"],
        "prompt": clipped(row["prompt"], clip=clip),
        "reference": clipped(row["reference"], clip=clip),
        "rewards": row["rewards"],
        "completions": [],
    }


def _completion(row: Mapping[str, Any], *, clip: bool) -> dict[str, Any]:
    return {
        "index": row["index"],
        "text": clipped(row["text"], clip=clip),
        "tokens": row["num_tokens"],
        "finish": row["finish_reason"],
        "version": row["policy_version"],
        "reward": row["reward"],
        "correct": row["is_correct"],
        "cause": row["cause"],
        "scores": [
            score | {"reason": clipped(score["reason"], clip=clip), "extracted": clipped(score["extracted"], clip=clip)}
            for score in row["scores"]
        ],
    }


def clipped(text: str | None, *, clip: bool = True) -> str | None:
    """A text without the middle of it when it is very long."""
    left_out = 0 if text is None else len(text) - CLIP_HEAD - CLIP_TAIL
    if text is None or not clip or left_out <= 0:
        return text
    return f"{text[:CLIP_HEAD]}\n[... {left_out} characters are left out here ...]\n{text[-CLIP_TAIL:]}"
