"""What is registered, for people: each verifier with its origin, its sentence, and its options with theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from verifiers.options import shown
from verifiers.registry import Entry

_HERE = Path(__file__).parent
_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "nothing", dict: "table"}


def described(entry: Entry) -> Iterator[str]:
    """The lines on one verifier."""
    yield f"{entry.name}  ({place(entry)})"
    yield f"    {entry.summary or 'It has no docstring.'}"
    for name, field in entry.options.model_fields.items():
        yield f"    {name}: {kind(field.annotation)}, {default(field)}"
        if field.description:
            yield f"        {field.description}"


def place(entry: Entry) -> str:
    """Where a verifier comes from, and that it runs apart when it does."""
    path, _, function = entry.origin.rpartition(":")
    if Path(path).parent == _HERE:
        return f"built in: verifiers/{Path(path).name}"
    near = os.path.relpath(path) if os.path.isabs(path) else path
    where = f"{path if near.startswith('..') else near}:{function}"
    return f"plugin {where}" + (", in worker processes" if entry.runs_apart else "")


def kind(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(args[0])
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(kind(arg) for arg in args)
    if origin in (tuple, list):
        return f"list of {kind(args[0])}" if args else "list"
    return _NAMES.get(origin or annotation, "table" if hasattr(annotation, "model_fields") else "anything")


def default(field: FieldInfo) -> str:
    """What holds when an option is not given."""
    if field.default is PydanticUndefined:
        return "must be given"
    return f"default {shown(field.default)}"
