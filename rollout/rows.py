"""Where rows come from: JSONL files, Hugging Face datasets, reasoning_gym's generators, Python functions.

A row is a mapping with named fields; what they mean, and how it becomes a Task, is tasks.py's business.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from rollout.errors import TaskError
from verifiers.options import did_you_mean

SCHEMES = ("hf", "reasoning_gym", "python")
# What [tasks] asks of these rows when it names no rewards; the verifier of that mix looks for its answer there.
OF_REASONING_GYM = {
    "prompt": "{question}\n\nState your final answer between <answer> and </answer>.",
    "reference": "entry",
    "rewards": "reasoning_gym",
}


class Row(NamedTuple):
    """One row, and the words that name its place: in error messages, and as its id when it has none of its own."""

    where: str
    fields: Mapping[str, Any]


def read_rows(source: str, *, base: Path = Path()) -> Iterator[Row]:
    """The rows of a source, in order. Relative paths, and modules, are looked up from `base`. Raises TaskError."""
    scheme, colon, rest = source.partition(":")
    if colon and scheme == "hf":
        return _hugging_face(source, rest, base)
    if colon and scheme == "reasoning_gym":
        return reasoning_gym_rows(*_query(rest))
    if colon and scheme == "python":
        return _python_function(source, rest, base)
    if colon and "/" not in scheme and not (base / source).exists():
        hint = did_you_mean(scheme, SCHEMES)
        raise TaskError(
            f"{source}: {scheme!r} is no kind of source, and there is no such file. {hint}{' ' if hint else ''}"
            f"Known are {', '.join(SCHEMES)}, and paths of JSONL files."
        )
    return _jsonl(base / source)


def _jsonl(path: Path) -> Iterator[Row]:
    try:
        lines = path.open("rb")
    except OSError as error:
        expected = "Expected a JSONL file, or a source that begins with hf:, reasoning_gym: or python:."
        raise TaskError(f"{path}: cannot be read: {error.strerror}. {expected}") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}:{number}: this line is not JSON: {error}. Each line is one JSON object.") from None
            if not isinstance(row, dict):
                found = type(row).__name__
                raise TaskError(f"{path}:{number}: expected a JSON object with named fields, found {found}. Mend the line.")
            yield Row(f"{path.name}:{number}", row)


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


def _hugging_face(source: str, rest: str, base: Path) -> Iterator[Row]:
    """A dataset of the hub, of the local cache, or of a local folder: data files, or what `save_to_disk` wrote."""
    import datasets

    name, options = _query(rest)
    split = str(options.setdefault("split", "train"))
    local = base / name
    try:
        if (local / "state.json").is_file():  # what save_to_disk leaves of a single split; load_dataset refuses it
            rows = datasets.load_from_disk(str(local))
        else:
            rows = datasets.load_dataset(str(local) if local.is_dir() else name, **options)
    except Exception as error:  # the library raises whatever its network, cache and parsers raise
        raise TaskError(
            f"{source}: the dataset cannot be loaded ({type(error).__name__}: {error}). Check its name, that ?split= and ?name= "
            "exist, and that the hub can be reached or the dataset is in the local cache."
        ) from error
    for index, row in enumerate(rows):
        yield Row(f"{name}/{split}:{index}", dict(row))


def reasoning_gym_rows(name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one of reasoning_gym's generated datasets. The same options give the same rows; `seed` is 0 unless given.

    Beside the dataset's own fields each has `entry`, plain JSON, which is what the verifier `reasoning_gym` takes as a reference.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS) or "Its documentation lists them."
        raise TaskError(f"reasoning_gym has no dataset {name!r}. {hint}")
    options = {"seed": 0} | dict(options)
    try:
        dataset = reasoning_gym.create_dataset(name, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise TaskError(f"reasoning_gym:{name} does not take these options: {error}. Mend what follows the ?.") from None
    for index in range(len(dataset)):
        made = dataset[index]
        entry = {"dataset": name, "options": options, "answer": made["answer"], "metadata": made["metadata"]}
        yield Row(f"{name}:{options['seed']}:{index}", {**made, "entry": json.loads(json.dumps(entry))})


def _python_function(source: str, rest: str, base: Path) -> Iterator[Row]:
    """What a function yields. Its module is also looked for in `base`, as `python -m` would."""
    path, options = _query(rest)
    module, _, function = path.rpartition(".")
    if str(base.resolve()) not in sys.path:
        sys.path.append(str(base.resolve()))
    try:
        make_rows = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise TaskError(f"{source}: cannot be imported: {error}. Expected python:package.module.function.") from None
    try:
        for index, row in enumerate(make_rows(**options)):
            if not isinstance(row, Mapping):
                raise TaskError(f"{source}: row {index} is {type(row).__name__}. Yield mappings with named fields.")
            yield Row(f"{function}:{index}", row)
    except TaskError:
        raise
    except Exception as error:  # whatever somebody's function raises
        raise TaskError(f"{source}: failed with {type(error).__name__}: {error}. Mend the function or its options.") from error
