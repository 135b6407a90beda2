"""From rows to tasks: fields mapped, duplicates dropped, held-out tasks kept apart, and the rest streamed in a resumable order.

Reading rows is rows.py's business, filling in their templates fields.py's, turning a prompt into tokens prompting.py's.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollout import fields
from rollout.errors import TaskError
from rollout.fields import Recorded, Template, Text
from rollout.rows import OF_REASONING_GYM, Row, read_rows
from verifiers.types import Task

RecordedForm = Literal["pairs", "labels", "demonstrations"]


class TasksConfig(BaseModel):
    """[tasks]: where prompts and references come from, and how a row becomes a Task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        min_length=1,
        description="FILE.jsonl, hf:owner/name?split=train&name=main, reasoning_gym:chain_sum?min_terms=2&size=1000, or "
        "python:package.module.function?key=value (yields rows).",
    )
    prompt: Template = Field(
        default="{question}",
        description="Template of the prompt over the row's fields; {metadata[expression]} reaches inside, and {messages} alone "
        "takes a conversation as it is.",
    )
    reference: str = Field(
        default="answer",
        description="Field that holds the reference; dots reach inside, and a dot alone takes the whole row, which is how "
        "unit_tests reads HumanEval and MBPP.",
    )
    completion: Template | None = Field(
        default=None,
        description="Template of a recorded completion, for objectives that learn from demonstrations or labels. None: groups are "
        "sampled. Of a conversation the last turn is taken.",
    )
    label: str | None = Field(
        default=None,
        description="Field that says whether the recorded completion is desirable: true or 1, false or 0. None: it is.",
    )
    chosen: Template | None = Field(
        default=None,
        description="Template of the better completion of a recorded pair; prompt and chosen may share a conversation.",
    )
    rejected: Template | None = Field(default=None, description="Template of the worse completion of a recorded pair.")
    rewards: str = Field(
        default="math",
        description="Reward mix that judges these tasks: a name under [rewards], or a built-in one. Without it, tasks of "
        "reasoning_gym: are judged by its own scorers, and prompt and reference default to what those need.",
    )
    system: Text | None = Field(
        default=None, description="System message put before the prompt, unless it begins with its own; needs a chat template."
    )
    too_long: Literal["skip", "refuse"] = Field(default="skip", description="Prompts too long for the model: left out, or refused.")
    chat: bool | None = Field(default=None, description="Apply the tokenizer's chat template. None: when it has one.")
    held_out: int = Field(default=256, ge=1, description="Tasks kept out of training, to evaluate on.")
    held_out_source: str | None = Field(
        default=None, description="Take the held-out tasks from this source instead of from `source`."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_source(cls, values: Any) -> Any:
        if isinstance(values, dict) and "rewards" not in values and str(values.get("source")).startswith("reasoning_gym:"):
            return OF_REASONING_GYM | values
        return values

    @model_validator(mode="after")
    def _one_recorded_form(self) -> TasksConfig:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError("a recorded pair needs both chosen and rejected. Give the other one too.")
        if self.chosen is not None and self.completion is not None:
            raise ValueError("completion and chosen are both set, but a row is either one completion or a pair. Drop one of them.")
        if self.label is not None and self.completion is None:
            raise ValueError(
                "label says what a recorded completion is worth, but completion is not set. Set it, or drop the label."
            )
        return self

    @property
    def recorded_form(self) -> RecordedForm | None:
        """What the rows record; None when they are prompts alone."""
        if self.chosen is not None:
            return "pairs"
        if self.completion is None:
            return None
        return "demonstrations" if self.label is None else "labels"

    def prompts_only(self) -> TasksConfig:
        """The same without what the rows record."""
        return self.model_copy(update={"completion": None, "label": None, "chosen": None, "rejected": None})


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks for training and for evaluation; no prompt is in both, and within each no id is there twice.

    `recorded[task.id]` are the task's recorded completions, chosen before rejected; without any it is empty. `num_duplicates` rows
    were dropped because their prompt had been seen, or, where rows are pairs or labels, because all of the row had been.
    """

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    recorded: Mapping[str, tuple[Recorded, ...]]
    num_duplicates: int


def load_tasks(config: TasksConfig, *, base: Path = Path()) -> TaskSet:
    """All tasks of a config. Relative file names are looked up from `base`.

    The held-out tasks are those whose prompts hash lowest: the split depends neither on a seed nor on the order of the rows, so
    every run on one source keeps the same tasks apart, whichever objective it trains.
    Raises TaskError when a source cannot be read, a row lacks a field, or no task is left for one of the two.
    """
    rows = _distinct(_tasks(config, config.source, base))
    others = rows
    if config.held_out_source is not None:
        others = _prompts(config, config.held_out_source, base)
    first_of_prompt = {row.task.prompt: row for row in reversed(others.kept)}
    held_out = sorted(first_of_prompt.values(), key=lambda row: _prompt_hash(row.task))[: config.held_out]
    kept_out = {row.task.prompt for row in held_out}
    train = [row for row in rows.kept if row.task.prompt not in kept_out]
    if not train:
        raise TaskError(
            f"{config.source}: no task is left for training: {len({row.task.prompt for row in rows.kept})} distinct prompts, "
            f"{len(held_out)} of them held out. Give more rows, or lower tasks.held_out."
        )
    recorded = {row.task.id: row.recorded for row in train if row.recorded}
    return TaskSet(tuple(row.task for row in train), tuple(row.task for row in held_out), recorded, rows.num_duplicates)


def load_prompts(config: TasksConfig, *, base: Path = Path()) -> tuple[Task, ...]:
    """Every distinct task of the source in order, to evaluate on, whatever the rows record. Raises TaskError."""
    return tuple(row.task for row in _prompts(config, config.source, base).kept)


def _prompts(config: TasksConfig, source: str, base: Path) -> _Distinct:
    rows = _distinct(_tasks(config.prompts_only(), source, base))
    if not rows.kept:
        raise TaskError(f"{source}: holds no task. Give rows to evaluate on.")
    return rows


class _TaskRow(NamedTuple):
    where: str
    task: Task
    recorded: tuple[Recorded, ...]
    content: Any  # rows of equal content are duplicates


class _Distinct(NamedTuple):
    kept: list[_TaskRow]
    num_duplicates: int


def _distinct(rows: Iterable[_TaskRow]) -> _Distinct:
    """The first row of each content. Two prompts under one id are refused: seeds and reports go by the id."""
    by_content: dict[Any, _TaskRow] = {}
    by_id: dict[str, _TaskRow] = {}
    counts: Counter[str] = Counter()
    total = 0
    for row in rows:
        total += 1
        if row.content in by_content:
            continue
        other = by_id.setdefault(row.task.id, row)
        if other.task.prompt != row.task.prompt:
            raise TaskError(
                f"{row.where}: its id {row.task.id!r} is also that of {other.where}, whose prompt is another. Give each row an id "
                "of its own, or leave the ids out."
            )
        if other is not row:  # one more judgement of the same prompt
            counts[row.task.id] += 1
            row = row._replace(task=replace(row.task, id=f"{row.task.id}#{counts[row.task.id] + 1}"))
        by_content[row.content] = row
    return _Distinct(list(by_content.values()), total - len(by_content))


def _prompt_hash(task: Task) -> bytes:
    return hashlib.blake2b(repr(task.prompt).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _tasks(config: TasksConfig, source: str, base: Path) -> Iterator[_TaskRow]:
    for row in read_rows(source, base=base):
        own_id = row.fields.get("id")
        task_id = row.where if own_id is None or own_id == "" else str(own_id)
        prompt = fields.prompt(config.prompt, row)
        recorded = _recorded(config, row, prompt)
        # A prompt is sampled, or its demonstration shown, once in an epoch; it may be compared and labelled many times.
        content = (prompt, recorded) if config.recorded_form in ("pairs", "labels") else prompt
        yield _TaskRow(row.where, Task(task_id, prompt, _reference(config, row), config.rewards), recorded, content)


def _recorded(config: TasksConfig, row: Row, prompt: fields.Prompt) -> tuple[Recorded, ...]:
    if config.chosen is not None and config.rejected is not None:
        return fields.pair(config.chosen, config.rejected, row, prompt)
    if config.completion is None:
        return ()
    reward = 1.0 if config.label is None else fields.label(config.label, row)
    return (Recorded(fields.completion(config.completion, row, prompt), reward),)


def _reference(config: TasksConfig, row: Row) -> Any:
    """None where pairs or labels are recorded without one: those are not judged again, unless they are held out."""
    if config.reference == ".":
        return dict(row.fields)
    if config.recorded_form in ("pairs", "labels") and config.reference.partition(".")[0] not in row.fields:
        return None
    reference = fields.field(row, config.reference)
    if reference is None or (isinstance(reference, str) and not reference.strip()):
        raise TaskError(
            f"{row.where}: the reference field {config.reference!r} is empty. Give every task a reference to be judged against."
        )
    return reference


class Cursor(NamedTuple):
    """Where a TaskStream stands: `position` tasks were handed out, of which those in `unfinished` have not been learnt from."""

    position: int = 0
    unfinished: tuple[int, ...] = ()


class TaskStream:
    """Training tasks without end, each epoch in an order of its own that depends only on the seed and the epoch.

    `next` hands out a position and its task; `finish` says that the position needs no second visit, `put_back` that it comes before
    new ones. `rewind(cursor)` goes back to a checkpoint: what was unfinished then comes first.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int) -> None:
        assert tasks, "load_tasks leaves at least one task for training"
        self._tasks = tasks
        self._seed = seed
        self._epoch_order: tuple[int, list[int]] = (-1, [])
        self.rewind(Cursor())

    def rewind(self, cursor: Cursor) -> None:
        self._position = cursor.position
        self._waiting = list(cursor.unfinished)
        self._unfinished: set[int] = set(cursor.unfinished)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self._position, tuple(sorted(self._unfinished)))

    def next(self) -> tuple[int, Task]:
        if self._waiting:
            position = self._waiting.pop(0)
        else:
            position, self._position = self._position, self._position + 1
        self._unfinished.add(position)
        return position, self._task_at(position)

    def finish(self, position: int) -> None:
        self._unfinished.discard(position)

    def put_back(self, position: int) -> None:
        self._waiting.append(position)

    def _task_at(self, position: int) -> Task:
        epoch, index = divmod(position, len(self._tasks))
        if self._epoch_order[0] != epoch:
            order = list(range(len(self._tasks)))
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
            self._epoch_order = (epoch, order)
        return self._tasks[self._epoch_order[1][index]]
