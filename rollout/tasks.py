"""From rows to tasks: fields mapped, duplicates dropped, held-out tasks kept apart, and the rest streamed in a resumable order.

Reading rows is rows.py's business, turning a prompt into tokens prompting.py's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rollout.errors import TaskError
from rollout.rows import Row, read_rows
from verifiers.options import did_you_mean
from verifiers.types import Message, Task


def _without_escapes(text: str) -> str:
    """`"\\boxed"` in a TOML file's double quotes is a backspace and `oxed`."""
    for character, letter in (("\b", "b"), ("\f", "f")):
        if character in text:
            raise ValueError(
                f"it holds the control character that \\{letter} stands for between double quotes. Use single quotes, "
                f"or \\\\{letter} for a backslash."
            )
    return text


def _template(text: str) -> str:
    braces = "Write {{ and }} for braces that stand for themselves."
    try:
        names = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{text!r} is not a template: {error}. {braces}") from None
    for name in names:
        if not name or name[0].isdigit():
            raise ValueError(f"{text!r} has the braces {{{name}}}, which name no field of a row. {braces}")
    return text


Text = Annotated[str, AfterValidator(_without_escapes)]
Template = Annotated[Text, AfterValidator(_template)]


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
    reference: str = Field(default="answer", description="Field that holds the reference; dots reach inside.")
    completion: Template | None = Field(
        default=None,
        description="Template of a recorded completion. With it the groups are recorded demonstrations; None: they are sampled.",
    )
    rewards: str = Field(
        default="math", description="Reward mix that judges these tasks: a name under [rewards], or a built-in one."
    )
    system: Text | None = Field(
        default=None, description="System message put before the prompt, unless it begins with its own; needs a chat template."
    )
    chat: bool | None = Field(default=None, description="Apply the tokenizer's chat template. None: when it has one.")
    held_out: int = Field(default=256, ge=1, description="Tasks kept out of training, to evaluate on.")
    held_out_source: str | None = Field(
        default=None, description="Take the held-out tasks from this source instead of from `source`."
    )


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks for training and for evaluation; no prompt is in both, and within each no id is there twice.

    `recorded[task.id]` is the text of the task's recorded completion, empty when groups are sampled. `num_duplicates` rows were
    dropped because their prompt had been seen.
    """

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    recorded: Mapping[str, str]
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
        others = _distinct(_tasks(config.model_copy(update={"completion": None}), config.held_out_source, base))
        if not others.kept:
            raise TaskError(f"{config.held_out_source}: holds no task. Give tasks.held_out_source rows to evaluate on.")
    held_out = sorted(others.kept, key=lambda row: _prompt_hash(row.task))[: config.held_out]
    kept_out = {row.task.prompt for row in held_out}
    train = [row for row in rows.kept if row.task.prompt not in kept_out]
    if not train:
        raise TaskError(
            f"{config.source}: no task is left for training: {len(rows.kept)} distinct prompts, {len(held_out)} of them held out. "
            "Give more rows, or lower tasks.held_out."
        )
    recorded = {row.task.id: row.completion for row in train if row.completion is not None}
    return TaskSet(tuple(row.task for row in train), tuple(row.task for row in held_out), recorded, rows.num_duplicates)


class _TaskRow(NamedTuple):
    where: str
    task: Task
    completion: str | None


class _Distinct(NamedTuple):
    kept: list[_TaskRow]
    num_duplicates: int


def _distinct(rows: Iterable[_TaskRow]) -> _Distinct:
    """The first row of each prompt. Two prompts under one id are refused: seeds and reports go by the id."""
    by_prompt: dict[str | tuple[Message, ...], _TaskRow] = {}
    by_id: dict[str, _TaskRow] = {}
    total = 0
    for row in rows:
        total += 1
        if by_prompt.setdefault(row.task.prompt, row) is not row:
            continue
        other = by_id.setdefault(row.task.id, row)
        if other is not row:
            raise TaskError(
                f"{row.where}: its id {row.task.id!r} is also that of {other.where}, whose prompt is another. Give each row an id "
                "of its own, or leave the ids out."
            )
    return _Distinct(list(by_prompt.values()), total - len(by_prompt))


def _prompt_hash(task: Task) -> bytes:
    return hashlib.blake2b(repr(task.prompt).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _tasks(config: TasksConfig, source: str, base: Path) -> Iterator[_TaskRow]:
    for row in read_rows(source, base=base):
        reference = _field(row, config.reference)
        if reference is None or (isinstance(reference, str) and not reference.strip()):
            raise TaskError(
                f"{row.where}: the reference field {config.reference!r} is empty. Give every task a reference to be judged against."
            )
        own_id = row.fields.get("id")
        task_id = row.where if own_id is None or own_id == "" else str(own_id)
        completion = None if config.completion is None else _fill(config.completion, row)
        yield _TaskRow(row.where, Task(task_id, _prompt(config.prompt, row), reference, config.rewards), completion)


def _prompt(template: str, row: Row) -> str | tuple[Message, ...]:
    """The template filled in; `{messages}` alone takes a conversation as it is."""
    turns = row.fields.get("messages")
    if template != "{messages}" or not isinstance(turns, list):
        return _fill(template, row)
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise TaskError(f'{row.where}: expected messages of the form {{"role": "user", "content": "..."}}, found {turn!r:.80}.')
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _fill(template: str, row: Row) -> str:
    try:
        return template.format_map(row.fields)
    except KeyError as error:
        raise TaskError(f"{row.where}: the template {template!r} cannot be filled: {_no_field(row, str(error.args[0]))}") from None
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise TaskError(f"{row.where}: the template {template!r} cannot be filled: {error}. It has {_names(row)}.") from None


def _field(row: Row, path: str) -> Any:
    value: Any = row.fields
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise TaskError(f"{row.where}: {_no_field(row, path)}")
        value = value[name]
    return value


def _no_field(row: Row, name: str) -> str:
    inner = [key for value in row.fields.values() if isinstance(value, Mapping) for key in value]
    hint = did_you_mean(name, map(str, [*row.fields, *inner]))
    return f"the row has no field {name!r}; it has {_names(row)}.{' ' if hint else ''}{hint}"


def _names(row: Row) -> str:
    """The row's fields, and those inside them, for a person who mistyped one."""
    names = []
    for name, value in row.fields.items():
        names.append(f"{name} ({', '.join(map(str, value))})" if isinstance(value, Mapping) and value else str(name))
    return ", ".join(names) or "none"


class Cursor(NamedTuple):
    """Where a TaskStream stands: `position` tasks were handed out, of which those in `unfinished` have not been learnt from."""

    position: int = 0
    unfinished: tuple[int, ...] = ()


class TaskStream:
    """Training tasks without end, each epoch in an order of its own that depends only on the seed and the epoch.

    `next` hands out a position and its task; `finish` says that the position needs no second visit. `rewind(cursor)` goes back to a
    checkpoint: what was unfinished then comes first.
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

    def _task_at(self, position: int) -> Task:
        epoch, index = divmod(position, len(self._tasks))
        if self._epoch_order[0] != epoch:
            order = list(range(len(self._tasks)))
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
            self._epoch_order = (epoch, order)
        return self._tasks[self._epoch_order[1][index]]
