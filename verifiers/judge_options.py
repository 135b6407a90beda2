"""What the options of `judge` must keep to. Each function returns the option as it is used; ValueError says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ENGINE = "engine"  # as base_url: the engine of the run itself, which names these two variables
ENGINE_URL, ENGINE_KEY = "GRPO_ENGINE_URL", "GRPO_ENGINE_KEY"
OURS = ("messages", "model", "n", "stream", "response_format")


def principles_of(value: tuple[str, ...] | str) -> tuple[str, ...]:
    """The sentences; those of a file stand one on each line, and a line that begins with # is none."""
    if isinstance(value, str):
        try:
            lines = Path(value).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or error
            raise ValueError(f"{value!r} cannot be read: {cause}. Give sentences, or a file with one on each line.") from None
        value = tuple(line for line in lines if not line.lstrip().startswith("#"))
    sentences = tuple(sentence.strip() for sentence in value if sentence.strip())
    if not sentences:
        raise ValueError("there is no principle to judge by. Give at least one sentence.")
    return sentences


def address(value: str) -> str:
    """Where an API answers, without a slash at the end; or the word for the run's own engine."""
    if value == ENGINE:
        return value
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url, parts = False, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the address holds a user or a password, and would be logged. Put the key into a variable: key_variable.")
    if not is_url or parts.query or parts.fragment or not value.isprintable() or " " in value:
        raise ValueError(f"{value!r} is not the address of an API. Give one such as http://127.0.0.1:8000/v1, or {ENGINE}.")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError(f"{value!r} goes too far: give the part before /chat/completions.")
    return value.rstrip("/")


def variable_with_key(name: str | None) -> str | None:
    """The name of a variable that holds what may stand in a header. The key itself goes nowhere from here."""
    if name is not None:
        key = os.environ.get(name, "") if name and "=" not in name and "\0" not in name else ""
        if not key:
            raise ValueError(f"the environment variable {name!r} is not set. Put the endpoint's key into it: export {name}=…")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"the environment variable {name!r} holds no key, but spaces, line ends or letters beyond ASCII.")
    return name


def extra_fields(extra: dict[str, Any] | None) -> dict[str, Any] | None:
    """Fields of a request that are not the judge's own."""
    for name in extra or {}:
        if name in OURS:
            raise ValueError(f"{name} cannot be set here: the judge sets it. Drop it; model is an option of its own.")
    return extra
