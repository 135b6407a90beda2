"""The loop inside the sandbox that answers questions by calling a program's function. Standard library only, as calls.py."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from typing import Any

from sandbox.agent.calls import Call, NotPlain, Raised, Returned, decode_call, encode_answer, type_name

# Bound here, as in calls.py: a program that replaces them for its own use is still judged by what it returns.
globals().update({name: value for name, value in vars(builtins).items() if not name.startswith("_")})

MAX_ERROR_TEXT = 200

_BUILTIN_ERRORS = {value for value in vars(builtins).values() if isinstance(value, type) and issubclass(value, BaseException)}


def serve(namespace: Mapping[str, Any], entry_point: str, questions: int, answers: int) -> None:
    """Answer one line with one line until the questions end. `questions` and `answers` are descriptors.

    `entry_point` is the name of a function in the namespace, or `Class.method`; each call then gets an instance of its own. Raises
    SystemExit, with a sentence, when there is no such function.
    """
    _find(namespace, entry_point)
    with open(questions, "rb", closefd=False) as lines:
        for line in lines:
            text = _answer(namespace, entry_point, decode_call(line.decode("ascii").rstrip("\n")))
            data = memoryview(text.encode("ascii") + b"\n")
            while data:
                data = data[os.write(answers, data) :]


def _find(namespace: Mapping[str, Any], entry_point: str) -> None:
    first, *rest = entry_point.split(".")
    found = namespace.get(first)
    for name in rest:
        found = getattr(found, name, None)
    if not callable(found):
        raise SystemExit(f"the program defines no function {entry_point}")


def _answer(namespace: Mapping[str, Any], entry_point: str, call: Call) -> str:
    try:
        first, *rest = entry_point.split(".")
        function = namespace[first]
        for name in rest:
            function = getattr(function() if isinstance(function, type) else function, name)
        returned = function(*call.args, **call.kwargs)
    except BaseException as error:
        return encode_answer(_raised(error))
    try:
        return encode_answer(Returned(returned))
    except ValueError as error:
        return encode_answer(NotPlain(str(error)))


def _raised(error: BaseException) -> Raised:
    """What can be said of an exception without trusting its class; its text is asked for, and may fail."""
    kind = type(error)
    nearest = next(base for base in type.mro(kind) if base in _BUILTIN_ERRORS)
    try:
        text = str.__str__(str(error))[:MAX_ERROR_TEXT]
    except BaseException:
        text = ""
    return Raised(type_name(kind), nearest.__name__, text)
