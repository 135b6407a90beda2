"""From the fields of a row to a prompt, a reference and recorded completions: templates filled in, conversations taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from rollout.errors import TaskError
from rollout.rows import Row
from verifiers.options import did_you_mean
from verifiers.types import Message

Prompt = str | tuple[Message, ...]


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


class Recorded(NamedTuple):
    """A recorded completion and what it is worth: 1 when it is chosen, desirable or demonstrated, 0 when it is not."""

    text: str
    reward: float


def prompt(template: str, row: Row) -> Prompt:
    """The template filled in. A single field that holds a conversation is taken as it is, up to the assistant's last turn."""
    turns = _conversation(template, row)
    if turns is None:
        return fill(template, row)
    return turns[:-1] if len(turns) > 1 and turns[-1].role == "assistant" else turns


def completion(template: str, row: Row, asked: Prompt) -> str:
    """The template filled in; of a conversation, its last turn. Raises TaskError when that is empty, or answers no such prompt."""
    turns = _conversation(template, row)
    if turns is None:
        text = fill(template, row)
    else:
        *before, last = turns
        if last.role != "assistant":
            raise TaskError(
                f"{row.where}: {template} ends with a turn of the {last.role}. End it with what the assistant answered."
            )
        if before and tuple(before) != asked:
            raise TaskError(f"{row.where}: the conversation in {template} is not the prompt before its last turn. Mend the row.")
        text = last.content
    if not text.strip():
        raise TaskError(f"{row.where}: the completion {template} is empty, so nothing could be learnt from it. Drop the row.")
    return text


def pair(chosen: str, rejected: str, row: Row, asked: Prompt) -> tuple[Recorded, ...]:
    """The two completions of a preference. Raises TaskError when they are the same text."""
    texts = completion(chosen, row, asked), completion(rejected, row, asked)
    if texts[0] == texts[1]:
        raise TaskError(f"{row.where}: {chosen} and {rejected} are the same text, so neither can be preferred. Drop the row.")
    return Recorded(texts[0], 1.0), Recorded(texts[1], 0.0)


def label(path: str, row: Row) -> float:
    """1 for true or 1, 0 for false or 0."""
    value = field(row, path)
    if value not in (0, 1) or isinstance(value, str):
        raise TaskError(
            f"{row.where}: the label {path!r} is {value!r:.40}. Give true or 1 for desirable, false or 0 for undesirable."
        )
    return float(value)


def fill(template: str, row: Row) -> str:
    try:
        return template.format_map(row.fields)
    except KeyError as error:
        raise TaskError(f"{row.where}: the template {template!r} cannot be filled: {_no_field(row, str(error.args[0]))}") from None
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise TaskError(f"{row.where}: the template {template!r} cannot be filled: {error}. It has {_names(row)}.") from None


def field(row: Row, path: str) -> Any:
    value: Any = row.fields
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise TaskError(f"{row.where}: {_no_field(row, path)}")
        value = value[name]
    return value


def _conversation(template: str, row: Row) -> tuple[Message, ...] | None:
    """The turns in the one field that the template consists of; None when it is more than that, or the field holds none."""
    parts = list(Formatter().parse(template))
    if len(parts) != 1 or parts[0][0] or not parts[0][1]:
        return None
    turns = row.fields.get(parts[0][1])
    if not isinstance(turns, Sequence) or not any(isinstance(turn, Mapping) for turn in turns):
        return None
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise TaskError(f'{row.where}: expected messages of the form {{"role": "user", "content": "..."}}, found {turn!r:.80}.')
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


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
