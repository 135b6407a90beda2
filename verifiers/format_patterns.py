"""The program of the killable workers of `format`: does a text match a pattern of somebody's own? A pattern may never end."""

from __future__ import annotations

import regex


def answer(question: dict[str, str]) -> bool:
    return regex.fullmatch(question["pattern"], question["text"]) is not None
