"""The text of questions and answers: plain data as one line of JSON. The loop that answers inside the sandbox is in answering.py.

Standard library only: the same file runs in the image and on our side. What arrives from a program is whatever it wrote, so
decoding is total (a value or ValueError, in time and memory linear in the line), and a decoded value is made of exact built-in
types alone: nothing of the program's, such as an object that equals everything, can come out of it.

JSON's own null, booleans, numbers, strings and arrays stand for None, bool, int, float, str and list. Everything else is an object
with one key that names the type:

    {"tuple": [...]}  {"set": [...]}  {"frozenset": [...]}  {"dict": [[key, value], ...]}  {"bytes": HEX}  {"complex": [re, im]}
    {"int": HEX} beyond 64 bits  {"float": "nan" | "inf" | "-inf"}  {"str": HEX} of a text with surrogates, in UTF-8
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

# Bound here: a program that replaces them for its own use is still judged by what it returns.
globals().update({name: value for name, value in vars(builtins).items() if not name.startswith("_")})

MAX_LINE = 1 << 20
MAX_DEPTH = 64
MAX_INT_BITS = 1 << 16
MAX_EQUAL_HASHES = 100

_HEX_INT = re.compile(rf"-?[0-9a-f]{{1,{MAX_INT_BITS // 4}}}")
_HEX_BYTES = re.compile(r"(?:[0-9a-f]{2})*")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FLOATS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class Call(NamedTuple):
    """A question: call the entry point with these."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Returned(NamedTuple):
    """The call returned plain data."""

    value: Any


class Raised(NamedTuple):
    """The call raised `name`, whose nearest built-in class is `builtin`; `text` is the beginning of its text."""

    name: str
    builtin: str
    text: str


class NotPlain(NamedTuple):
    """The call returned something that is no plain data, or too much of it; `what` says what."""

    what: str


Answer = Returned | Raised | NotPlain


def encode(value: Any) -> str:
    """One line of ASCII. The elements of a set are in the order of their text, so equal sets give equal lines.

    An object of a subclass, such as a Counter or an IntEnum, counts as what it holds: only methods of the built-in type are called.
    Raises ValueError, with a sentence, for every other type, and for what is too deep, too large or contains itself.
    """
    return _line(_Encoder().tree(value, MAX_DEPTH))


def decode(line: str) -> Any:
    """The value that `encode` wrote. Raises ValueError, with a sentence, for every other text, and nothing else."""
    return _value(_tree(line), MAX_DEPTH)


def from_tree(tree: Any) -> Any:
    """As `decode`, for JSON that has been parsed already: what stands in a file next to other things."""
    try:
        return decode(json.dumps(tree))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None


def encode_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Raises ValueError when an argument is no plain data."""
    return _line(_Encoder().tree([list(args), dict(kwargs)], MAX_DEPTH + 2))


def decode_call(line: str) -> Call:
    """Raises ValueError."""
    parts = _value(_tree(line), MAX_DEPTH + 2)
    if type(parts) is list and [type(part) for part in parts] == [list, dict] and all(type(name) is str for name in parts[1]):
        return Call(tuple(parts[0]), parts[1])
    raise ValueError("a question is a list of arguments and a table of named ones")


def encode_answer(answer: Answer) -> str:
    """Raises ValueError when a returned value is no plain data."""
    return _line(_Encoder().tree([type(answer).__name__, *answer], MAX_DEPTH + 1))


def decode_answer(line: str) -> Answer:
    """Raises ValueError."""
    parts = _value(_tree(line), MAX_DEPTH + 1)
    if type(parts) is list and len(parts) >= 2:
        if parts[0] == "Returned" and len(parts) == 2:
            return Returned(parts[1])
        if all(type(part) is str for part in parts):
            if parts[0] == "Raised" and len(parts) == 4:
                return Raised(*parts[1:])
            if parts[0] == "NotPlain" and len(parts) == 2:
                return NotPlain(parts[1])
    raise ValueError("the line is plain data, but no answer")


def type_name(kind: type) -> str:
    """Of any class, and nothing of the class is called."""
    return type.__dict__["__name__"].__get__(kind)[:100]


class _Encoder:
    """Turns one value into what json can write, and stops as soon as that cannot fit into a line."""

    def __init__(self) -> None:
        self._room = MAX_LINE

    def tree(self, value: Any, depth: int) -> Any:
        """The JSON of a value that may be nested `depth` levels deep."""
        if depth < 0:
            raise ValueError(f"the data is nested more than {MAX_DEPTH} levels deep, or contains itself")
        self._take(1)
        kind = type(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, int):
            return _int_tree(int.__int__(value))
        if issubclass(kind, float):
            return _float_tree(float.__float__(value))
        if issubclass(kind, str):
            return self._text(str.__str__(value))
        if issubclass(kind, list):
            return self._all(list.__iter__(value), depth)
        if issubclass(kind, tuple):
            return {"tuple": self._all(tuple.__iter__(value), depth)}
        if issubclass(kind, dict):
            return {"dict": [self._all(pair, depth) for pair in dict.items(value)]}
        if issubclass(kind, set):
            return {"set": sorted(self._all(set.__iter__(value), depth), key=_line)}
        if issubclass(kind, frozenset):
            return {"frozenset": sorted(self._all(frozenset.__iter__(value), depth), key=_line)}
        if issubclass(kind, bytes):
            self._take(2 * bytes.__len__(value))
            return {"bytes": bytes.hex(value)}
        if issubclass(kind, complex):
            exact = complex.__pos__(value)
            return {"complex": [_float_tree(exact.real), _float_tree(exact.imag)]}
        raise ValueError(f"{type_name(kind)} is no plain data")

    def _all(self, values: Any, depth: int) -> list[Any]:
        return [self.tree(value, depth - 1) for value in values]

    def _text(self, text: str) -> Any:
        self._take(len(text))
        if not _SURROGATE.search(text):
            return text
        # JSON writes characters beyond 16 bits as two surrogates, so two that stand side by side would come back as one character.
        return {"str": text.encode("utf-8", "surrogatepass").hex()}

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise ValueError(f"the data is larger than {MAX_LINE:,} bytes")


def _int_tree(number: int) -> Any:
    bits = number.bit_length()
    if bits > MAX_INT_BITS:
        raise ValueError(f"an integer has {bits:,} bits; at most {MAX_INT_BITS:,} are taken")
    return number if bits < 64 else {"int": format(number, "x")}


def _float_tree(number: float) -> Any:
    if number != number:
        return {"float": "nan"}
    if number - number != 0:
        return {"float": "inf" if number > 0 else "-inf"}
    return number


_line_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _line(tree: Any) -> str:
    line = _line_encoder.encode(tree)
    if len(line) > MAX_LINE:
        raise ValueError(f"the data is larger than {MAX_LINE:,} bytes")
    return line


class _Tagged(NamedTuple):
    """A JSON object with one key."""

    tag: str
    content: Any


def _tagged(pairs: list[tuple[str, Any]]) -> _Tagged:
    if len(pairs) != 1:
        raise ValueError(f"an object has {len(pairs)} keys; one is expected, the name of a type")
    return _Tagged(*pairs[0])


def _short_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("an integer of more than 64 bits is written in decimal")
    return int(text)


def _finite(text: str) -> float:
    if len(text) > 32:
        raise ValueError("a float has more digits than any float needs")
    return _refuse_constant(text) if text[-1] in "fy" or abs(number := float(text)) == _FLOATS["inf"] else number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


_decoder = json.JSONDecoder(
    object_pairs_hook=_tagged, parse_int=_short_int, parse_float=_finite, parse_constant=_refuse_constant, strict=True
)


def _tree(line: str) -> Any:
    if len(line) > MAX_LINE:
        raise ValueError(f"the line is longer than {MAX_LINE:,} bytes")
    if not line.isascii():
        raise ValueError("the line is not ASCII")
    try:
        return _decoder.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"the data is nested more than {MAX_DEPTH} levels deep") from None


def _value(tree: Any, depth: int) -> Any:
    if depth < 0:
        raise ValueError(f"the data is nested more than {MAX_DEPTH} levels deep")
    if type(tree) is list:
        return [_value(item, depth - 1) for item in tree]
    if type(tree) is not _Tagged:
        return tree
    tag, content = tree
    if tag == "int" and type(content) is str and _HEX_INT.fullmatch(content):
        return int(content, 16)
    if tag == "float" and type(content) is str and content in _FLOATS:
        return float(content)
    if tag in ("bytes", "str") and type(content) is str and _HEX_BYTES.fullmatch(content):
        data = bytes.fromhex(content)
        return data if tag == "bytes" else data.decode("utf-8", "surrogatepass")
    if tag in ("tuple", "set", "frozenset", "dict", "complex") and type(content) is list:
        return _collection(tag, content, depth)
    raise ValueError(f"{tag[:20]!r} is no type of plain data, or is followed by what does not belong to it")


def _collection(tag: str, content: list[Any], depth: int) -> Any:
    if tag == "dict":
        if not all(type(pair) is list and len(pair) == 2 for pair in content):
            raise ValueError("a dict is written as pairs")
        keys = _distinct([_value(key, depth - 1) for key, _ in content])
        return dict(zip(keys, [_value(value, depth - 1) for _, value in content], strict=True))
    items = [_value(item, depth - 1) for item in content]
    if tag == "tuple":
        return tuple(items)
    if tag == "complex":
        if [type(item) for item in items] != [float, float]:
            raise ValueError("a complex number is written as two floats")
        return complex(*items)
    return set(_distinct(items)) if tag == "set" else frozenset(_distinct(items))


def _distinct(keys: list[Any]) -> list[Any]:
    """The keys, if a set or dict of them takes linear time and keeps them all: numbers can be chosen to share one hash."""
    try:
        hashes = sorted(map(hash, keys))
    except TypeError:
        raise ValueError("a key or element is of a type that no set or dict can hold") from None
    if any(first == other for first, other in zip(hashes, hashes[MAX_EQUAL_HASHES:], strict=False)):
        raise ValueError(f"more than {MAX_EQUAL_HASHES} keys or elements share one hash")
    if len(set(keys)) != len(keys):
        raise ValueError("a key or element is there twice")
    return keys
