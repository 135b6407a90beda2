"""The program of the workers in which plugins run: one verifier, built from its plugin, and its answers as plain data.

What a plugin prints goes nowhere and may be no more than 16 MB between two answers. It may not fork: the copy would answer too.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Mapping
from typing import Any

MAX_PRINTED_BYTES = 16 * 2**20

_verifier: Any = None
_loop: asyncio.AbstractEventLoop | None = None
_printed = -1


def setup(plugin: Mapping[str, Any]) -> None:
    """Build the verifier `name` of a plugin with its options. Raises what the plugin raises."""
    global _verifier, _loop
    sys.path.extend(path for path in plugin["sys_path"] if path not in sys.path)
    _confine()
    from verifiers.registry import find, load_plugins

    load_plugins([plugin["plugin"]])
    _loop = asyncio.new_event_loop()
    entry = find(plugin["name"])
    _verifier = entry.build_here(entry.validated(plugin["options"]), workers=plugin["workers"])


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What the verifier says, or `fault`: what it raised. Memory and depth are the worker's business."""
    from sandbox.errors import UserError

    os.ftruncate(_printed, 0)
    try:
        return {"said": _said(question)}
    except (MemoryError, RecursionError):
        raise
    except UserError as error:
        return {"refused": str(error)}
    except (Exception, SystemExit) as error:
        return {"fault": f"{type(error).__name__}: {error}"[:1000]}


def _said(question: Mapping[str, Any]) -> Any:
    from verifiers.types import Message, Score, Task

    assert _loop is not None
    if question["method"] == "prepare":
        _verifier.prepare(question["reference"])
        return None
    if question["method"] == "example":
        return _verifier.example(question["reference"]) if hasattr(_verifier, "example") else None
    fields = question["task"]
    prompt = fields["prompt"] if isinstance(fields["prompt"], str) else tuple(Message(*turn) for turn in fields["prompt"])
    task = Task(fields["id"], prompt, fields["reference"], fields["rewards"])
    score = _loop.run_until_complete(_verifier.score(task, question["text"], num_tokens=question["num_tokens"]))
    if not isinstance(score, Score):
        raise TypeError(f"it returned {type(score).__name__} instead of a Score")
    return [score.outcome.value, score.value, str(score.reason), None if score.extracted is None else str(score.extracted)]


def _confine() -> None:
    global _printed
    _printed = os.memfd_create("printed")
    os.set_inheritable(_printed, True)
    for descriptor in (1, 2):
        os.dup2(_printed, descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_PRINTED_BYTES, MAX_PRINTED_BYTES))
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)

    def refuse(*_: object) -> None:
        raise PermissionError("a plugin may not fork; start a program with subprocess instead")

    os.fork = os.forkpty = refuse  # type: ignore[assignment]
