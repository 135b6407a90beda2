"""What an evaluation has so far: every completion on disk as soon as it is judged, so that whatever ends it loses none."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from grpo.tracking import rollout_rows, rollout_schema
from rollout.types import Completion, Group
from sandbox.errors import SystemFault, UserError
from verifiers.types import Task, Verdict

Row = dict[str, Any]


class Sample(NamedTuple):
    """A completion, and the number of its tokens; None when the endpoint does not tell."""

    completion: Completion
    num_tokens: int | None


class Journal:
    """`completions.jsonl` of an evaluation: a line for each judged completion. One process at a time writes there.

    Opening it reads what is there, less a half-written last line. Raises UserError when it belongs to another evaluation: when
    `settings` are not those it was begun with.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._settings = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = (folder / "completions.jsonl").open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process evaluates into this folder. Wait for it, or give another -o.") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}. Give another folder with -o.") from None
        self._rows: dict[tuple[str, int], Row] = {}
        self._read()
        self._agree(settings)

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                break  # what follows a torn line is sampled again
            self._rows[row["task_id"], row["index"]] = row
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def _agree(self, settings: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(settings))
        if self._rows and self._settings.exists():
            before = json.loads(self._settings.read_text())
            differing = [f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in now if before.get(name) != now.get(name)]
            if differing:
                raise UserError(
                    f"{self.folder} holds another evaluation:\n  " + "\n  ".join(differing) + "\nGive another folder with -o, or "
                    "remove this one."
                )
        self._settings.write_text(json.dumps(now, indent=1))

    def row(self, task: Task, index: int) -> Row | None:
        """What is known of one completion; None when there is none, or when the task has changed since."""
        row = self._rows.get((task.id, index))
        if row is None:
            return None
        (now,) = rollout_rows(0, [Group(task, (_NO_COMPLETION,), (_NO_VERDICT,))])
        return row if (row["prompt"], row["reference"]) == (now["prompt"], now["reference"]) else None

    def rows(self, tasks: Sequence[Task], num_samples: int) -> list[Row]:
        """Of these tasks the first completions, in order, as far as they are there."""
        found = (self.row(task, index) for task in tasks for index in range(num_samples))
        return [row for row in found if row is not None]

    def add(self, task: Task, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
        group = Group(task, tuple(sample.completion for sample in samples), tuple(verdicts))
        rows = rollout_rows(0, [group])
        self._write({**row, "num_tokens": sample.num_tokens} for row, sample in zip(rows, samples, strict=True))

    def judge_again(self, row: Row, verdict: Verdict, task: Task) -> None:
        """Another verdict on a completion that had none."""
        (judged,) = rollout_rows(0, [Group(task, (_NO_COMPLETION,), (verdict,))])
        self._write([row | {name: judged[name] for name in ("reward", "is_correct", "cause", "scores")}])

    def _write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._rows[row["task_id"], row["index"]] = row
            try:
                self._file.write(json.dumps(row).encode("ascii") + b"\n")
                self._file.flush()
            except OSError as error:
                raise SystemFault(
                    f"{self.folder}: {error.strerror}. What was judged before is kept. Make room, and type the same command again."
                ) from error

    def write_parquet(self, rows: Sequence[Row]) -> None:
        """completions.parquet: the columns of a run's rollouts, and `num_tokens`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = rollout_schema().append(pa.field("num_tokens", pa.int64()))
        beside = self.folder / "completions.partial"
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), beside, compression="zstd")
        beside.replace(self.folder / "completions.parquet")

    def write_results(self, results: Mapping[str, Any]) -> None:
        beside = self.folder / "results.partial"
        beside.write_text(json.dumps(results, indent=1))
        beside.replace(self.folder / "results.json")

    def close(self) -> None:
        self._file.close()


_NO_COMPLETION = Completion(0, (), (), "", "stop")
_NO_VERDICT = Verdict(None, False, (), "none")
