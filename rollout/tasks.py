"""Tasks from anywhere: JSONL files, Hugging Face datasets, reasoning_gym generators, Python functions; split and streamed.

Reading rows, mapping their fields, the held-out split and the resumable order live here. Turning a prompt into tokens does not; that
is prompting.py.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field

from rollout.errors import TaskError
from verifiers.types import Message, Task


class TasksConfig(BaseModel):
    """[tasks]: where prompts and references come from, and how a row becomes a Task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="FILE.jsonl, hf:owner/name?split=train&name=main, reasoning_gym:chain_sum?min_terms=2&size=1000, or "
        "python:package.module.function?key=value (yields rows)."
    )
    prompt: str = Field(
        default="{question}", description="Template of the prompt over the row's fields; {metadata[expression]} reaches inside."
    )
    reference: str = Field(default="answer", description="Field that holds the reference; dots reach inside.")
    completion: str | None = Field(
        default=None,
        description="Template of a recorded completion. With it the groups are recorded demonstrations; None: they are sampled.",
    )
    rewards: str = Field(
        default="math", description="Reward mix that judges these tasks: a name under [rewards], or a built-in one."
    )
    system: str | None = Field(default=None, description="System message put before the prompt; needs a chat template.")
    chat: bool | None = Field(default=None, description="Apply the tokenizer's chat template. None: when it has one.")
    held_out: int = Field(default=256, ge=0, description="Tasks kept out of training for evaluation; 0 keeps none.")
    held_out_source: str | None = Field(
        default=None, description="Take the held-out tasks from this source instead of from `source`."
    )


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks for training and for evaluation; no prompt is in both.

    `recorded[task.id]` is the text of the task's recorded completion, empty when groups are sampled. `num_duplicates` rows were dropped
    because their prompt had been seen.
    """

    train: tuple[Task, ...]
    held_out: tuple[Task, ...]
    recorded: Mapping[str, str]
    num_duplicates: int


def load_tasks(config: TasksConfig, *, base: Path = Path()) -> TaskSet:
    """All tasks of a config. Relative file names are looked up from `base`.

    The held-out tasks are those whose prompts hash lowest: the split depends neither on a seed nor on the order of the rows, so every
    run on one source keeps the same tasks apart, whichever objective it trains.
    Raises TaskError when a source cannot be read, a row lacks a field, or no training task is left.
    """
    rows = _distinct(_tasks(config, config.source, base))
    if config.held_out_source is None:
        held_out = sorted(rows.kept, key=lambda row: _prompt_hash(row.task))[: config.held_out]
    else:
        others = _distinct(_tasks(config.model_copy(update={"completion": None}), config.held_out_source, base))
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


class _Row(NamedTuple):
    task: Task
    completion: str | None


class _Distinct(NamedTuple):
    kept: list[_Row]
    num_duplicates: int


def _distinct(rows: Iterable[_Row]) -> _Distinct:
    kept: dict[str | tuple[Message, ...], _Row] = {}
    total = 0
    for row in rows:
        total += 1
        kept.setdefault(row.task.prompt, row)
    return _Distinct(list(kept.values()), total - len(kept))


def _prompt_hash(task: Task) -> bytes:
    return hashlib.blake2b(repr(task.prompt).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _tasks(config: TasksConfig, source: str, base: Path) -> Iterator[_Row]:
    for where, row in read_rows(source, base=base):
        prompt = _prompt(config, row, where)
        reference = _field(row, config.reference, where)
        if reference is None or reference == "":
            raise TaskError(
                f"{where}: the reference field {config.reference!r} is empty. Every task needs a reference to be judged against."
            )
        completion = None if config.completion is None else _fill(config.completion, row, where)
        task_id = str(row["id"]) if row.get("id") not in (None, "") else where
        yield _Row(Task(task_id, prompt, reference, config.rewards), completion)


def _prompt(config: TasksConfig, row: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    """The template filled in; the template `{messages}` alone takes a conversation as it is."""
    if config.prompt == "{messages}" and isinstance(row.get("messages"), list):
        return tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
    return _fill(config.prompt, row, where)


def _fill(template: str, row: Mapping[str, Any], where: str) -> str:
    try:
        return template.format_map(row)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        missing = str(error.args[0]) if error.args else ""
        raise TaskError(f"{where}: the template {template!r} cannot be filled: {_no_field(row, missing)}") from None


def _field(row: Mapping[str, Any], path: str, where: str) -> Any:
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise TaskError(f"{where}: {_no_field(value if isinstance(value, Mapping) else row, name)}")
        value = value[name]
    return value


def _no_field(row: Mapping[str, Any], name: str) -> str:
    close = difflib.get_close_matches(name, [str(key) for key in row], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"the row has no field {name!r}; it has {', '.join(map(str, row)) or 'none'}.{hint}"


def read_rows(source: str, *, base: Path = Path()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a source, each with the words that name its place in error messages (also its id when the row has none)."""
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "hf":
        return _hugging_face(source, rest)
    if colon and scheme == "reasoning_gym":
        return reasoning_gym_rows(*_query(rest))
    if colon and scheme == "python":
        return _python_function(source, rest)
    return _jsonl(base / source)


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.open("rb")
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}. Give tasks.source an existing JSONL file.") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TaskError(f"{path}:{number}: this line is not JSON: {error}. Each line is one JSON object.") from None
            if not isinstance(row, dict):
                raise TaskError(f"{path}:{number}: expected a JSON object with named fields, found {type(row).__name__}.")
            yield where, row


def _query(rest: str) -> tuple[str, dict[str, Any]]:
    """`name?key=value` apart; values are read as JSON where they are JSON, as text otherwise."""
    name, _, query = rest.partition("?")
    values: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return name, values


def _hugging_face(source: str, rest: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import datasets

    name, options = _query(rest)
    options.setdefault("split", "train")
    try:
        rows = datasets.load_dataset(name, **options)
    except Exception as error:  # the library raises whatever its network, cache and parsers raise
        raise TaskError(
            f"{source}: the dataset cannot be loaded ({type(error).__name__}: {error}). Check its name, that ?split= and ?name= "
            "exist, and that the hub can be reached or the dataset is in the local cache."
        ) from error
    for index, row in enumerate(rows):
        yield f"{name}/{options['split']}:{index}", dict(row)


def reasoning_gym_rows(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of one of reasoning_gym's generated datasets. The same options give the same rows; `seed` is 0 unless given."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        close = difflib.get_close_matches(name, list(DATASETS), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise TaskError(f"reasoning_gym has no dataset {name!r}.{hint}")
    options = {"seed": 0} | dict(options)
    try:
        dataset = reasoning_gym.create_dataset(name, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise TaskError(f"reasoning_gym:{name} does not take these options: {error}.") from None
    for index in range(len(dataset)):
        yield f"{name}:{options['seed']}:{index}", dataset[index]


def _python_function(source: str, rest: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path, options = _query(rest)
    module, _, function = path.rpartition(".")
    try:
        make_rows = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise TaskError(f"{source}: cannot be imported: {error}. Expected python:package.module.function.") from None
    for index, row in enumerate(make_rows(**options)):
        yield f"{function}:{index}", row


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
