"""From pydantic's errors to sentences: what was wrong, what was expected, how to mend it, with the values.

Used for verifier options and for the whole configuration. No knowledge of either: it walks the types that pydantic validated.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, Tag, ValidationError

MAX_SHOWN = 60

EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_sub_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dataclass_type": "a table",
    "none_required": "nothing",
    "path_type": "a path",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "{min_length} or more elements long",
    "too_long": "{max_length} or fewer elements long",
    "string_too_short": "{min_length} or more characters long",
    "string_too_long": "{max_length} or fewer characters long",
    "string_pattern_mismatch": "text that matches {pattern}",
}


class Place(NamedTuple):
    """Where an error stands.

    `path` is the dotted path of the value, `annotation` its type; `owner` is the model that holds it, `owner_name` what a reader
    calls that model: the tag that chose it, its title, or its own path.
    """

    path: str
    annotation: Any
    owner: Any
    owner_name: str


class Problem(NamedTuple):
    """One sentence to tell. `expected` is set when several expectations of one value may be told together."""

    path: str
    value: Any
    sentence: str
    expected: str | None = None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean clip_high?` when one of the known words is near, or the empty text."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"Did you mean {by_lower[near[0]]}?" if near else ""


def explain(error: ValidationError, model: Any, where: str = "", *, noun: str = "field") -> str:
    """One sentence for each mistake, a line each: `objective.clip_hihg is not a field of dapo. Did you mean clip_high?`

    `model` is the type that was validated (a model, or any annotation), `where` the dotted path at which it stands ("" for the
    whole file), `noun` what its fields are called.
    """
    problems = [_problem(details, _walk(model, details["loc"], where), noun) for details in error.errors(include_url=False)]
    return "\n".join(_merged(problems))


def shown(value: Any) -> str:
    """A value as a person would write it in a file, cut at 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, BaseModel)):
        return "a table"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _problem(details: Any, place: Place, noun: str) -> Problem:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = place.path
    expected = None
    if kind == "extra_forbidden":
        sentence = _unknown_name(place, str(details["loc"][-1]), noun)
    elif kind == "missing":
        sentence = f"{path} is missing: {place.owner_name} needs it."
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        path = _join(path, _unquoted(context["discriminator"]))
        known = _tags(place.annotation) or [_unquoted(tag) for tag in context.get("expected_tags", "").split(", ")]
        sentence = f"{path} is missing. Set it to one of {', '.join(known)}."
        if kind == "union_tag_invalid":
            sentence = _not_one_of(path, context["tag"], known)
    elif kind in ("literal_error", "enum"):
        known = _literals(place.annotation) or [_unquoted(part) for part in context["expected"].replace(" or ", ", ").split(", ")]
        expected = " or ".join(known)
        sentence = _not_one_of(path, value, known)
    elif kind in ("value_error", "assertion_error"):
        message = str(context.get("error") or details["msg"])
        sentence = message if not path or message.startswith(path) else f"{path}: {message}"
    elif kind in EXPECTED:
        expected = EXPECTED[kind].format(**{key: f"{v:g}" if isinstance(v, float) else v for key, v in context.items()})
        sentence = f"{path or 'the whole'} is {shown(value)}, but it should be {expected}."
    else:
        sentence = f"{path or 'the whole'} is {shown(value)}: {details['msg']}."
    return Problem(path, value, sentence, expected)


def _merged(problems: Sequence[Problem]) -> list[str]:
    """The sentences without repetition; what the members of one union expect of a value becomes one sentence."""
    sentences: dict[str, None] = {}
    for problem in problems:
        expectations = dict.fromkeys(other.expected for other in problems if other.path == problem.path and other.expected)
        if problem.expected and len(expectations) > 1:
            sentences[f"{problem.path} is {shown(problem.value)}, but it should be {' or '.join(expectations)}."] = None
        else:
            sentences[problem.sentence] = None
    return list(sentences)


def _unknown_name(place: Place, name: str, noun: str) -> str:
    fields = list(place.owner.model_fields) if _is_model(place.owner) else []
    article = "an" if noun[0] in "aeiou" else "a"
    hint = did_you_mean(name, fields) or (f"It has {', '.join(fields)}." if fields else f"It has no {noun}s.")
    return f"{place.path} is not {article} {noun} of {place.owner_name}. {hint}"


def _not_one_of(path: str, value: Any, known: Sequence[str]) -> str:
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"{path} is {shown(value)}, which is not one of {', '.join(known)}." + (f" {hint}" if hint else "")


def _walk(model: Any, loc: Sequence[int | str], where: str) -> Place:
    """Follow pydantic's location through the types.

    Names of union members stand in the location, but not in the reader's file: they choose a type and leave the path alone.
    """
    path, current = where, _settled(model)
    owner, owner_name = current, _name_of(current, path)
    tag: str | None = None
    for step in loc:
        member = _union_member(current, step)
        if member is not None:
            current, tag = _settled(member), str(step) if step in _tags_of(member) else None
            continue
        if _is_model(current):
            owner, owner_name = current, tag or _name_of(current, path)
        path, current, tag = _join(path, step), _settled(_child(current, step)), None
    if _is_model(current):
        owner_name = tag or owner_name
    return Place(path, current, owner, owner_name)


def _settled(annotation: Any) -> Any:
    """The type without Optional and without RootModel around it; pydantic's locations show neither. Annotated stays."""
    bare = _bare(annotation)
    members = [member for member in _members(bare) if member is not type(None)]
    if len(members) == 1:
        return _settled(members[0])
    if _is_model(bare) and issubclass(bare, RootModel):
        return _settled(bare.model_fields["root"].annotation)
    return bare


def _union_member(annotation: Any, step: int | str) -> Any:
    """The member of a union that a location's step names; None when the type is not a union."""
    members = _members(annotation)
    for member in members:
        bare = _bare(member)
        if step in _tags_of(member) or step in (getattr(bare, "__name__", None), str(bare)):
            return member
    return Any if members else None


def _child(annotation: Any, step: int | str) -> Any:
    """The type found at a field's name, a key or an index; Any when it cannot be told."""
    if _is_model(annotation):
        fields = annotation.model_fields.items()
        return next((field.annotation for name, field in fields if step in (name, field.alias, field.validation_alias)), Any)
    args = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(step, int) and step < len(args) and args[-1] is not Ellipsis:
        return args[step]
    if get_origin(annotation) is tuple and args:
        return args[0]
    return args[-1] if args else Any


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()


def _tags(annotation: Any) -> list[str]:
    return [tag for member in _members(annotation) for tag in _tags_of(member)]


def _tags_of(member: Any) -> list[str]:
    """What the discriminator says for this member of a union: an explicit Tag, or the values of its first Literal field."""
    explicit = [item.tag for item in getattr(member, "__metadata__", ()) if isinstance(item, Tag)]
    bare = _bare(member)
    if explicit or not _is_model(bare):
        return explicit
    return next((_literals(field.annotation) for field in bare.model_fields.values() if _literals(field.annotation)), [])


def _literals(annotation: Any) -> list[str]:
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []


def _name_of(annotation: Any, path: str) -> str:
    title = annotation.model_config.get("title") if _is_model(annotation) else None
    return title or path or getattr(annotation, "__name__", "the whole")


def _join(path: str, step: int | str) -> str:
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")
