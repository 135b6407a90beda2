"""Where the answer stands in a completion: the final region, its boxes, and the lenient ways out. Linear in the text's length."""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What may stand between two boxes that together are one answer: `\boxed{1}$ and $\boxed{2}`, `\boxed{1}, y = \boxed{2}`.
_CONNECTIVE = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;!: ]|\\q?quad|and|or|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|[A-Za-z](?:_\{?\w+\}?)?\s*=)*", re.DOTALL
)
_MAX_CONNECTIVE = 60
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"[-\u2212+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?%?")


class Extraction(NamedTuple):
    """The answer as written, and the other boxed answers of the final region, each as written."""

    answer: str
    others: tuple[str, ...] = ()


def final_region(text: str) -> str:
    """What follows the reasoning: the text after the last `</think>`, up to a `<think>` that never ends.

    A completion that is still reasoning when it ends has the empty region, or what stood before its first thought.
    """
    return text.rpartition(THINK_CLOSE)[2].partition(THINK_OPEN)[0]


def boxed_spans(text: str) -> list[tuple[int, int]]:
    r"""Start and end of every balanced `\boxed{…}` that is not inside another, in order. Escaped braces do not count."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return []
    closing: dict[int, int] = {}
    open_at: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            open_at.append(match.start())
        elif match[0] == "}" and open_at:
            closing[open_at.pop()] = match.start()
    spans: list[tuple[int, int]] = []
    for match in _BOX.finditer(text):
        end = closing.get(match.end())
        if end is not None and (not spans or match.start() >= spans[-1][1]):
            spans.append((match.start(), end + 1))
    return spans


def boxed_answer(region: str) -> Extraction | None:
    r"""The last box; boxes joined by commas and conjunctions are one list. None when there is no balanced box."""
    spans = boxed_spans(region)
    if not spans:
        return None
    chains: list[list[str]] = []
    previous_end: int | None = None
    for start, end in spans:
        content = region[start:end].partition("{")[2][:-1]
        between = None if previous_end is None else region[previous_end:start]
        if between is not None and len(between) <= _MAX_CONNECTIVE and between.strip("$ \n") and _CONNECTIVE.fullmatch(between):
            chains[-1].append(content)
        else:
            chains.append([content])
        previous_end = end
    answers = [_joined(chain) for chain in chains]
    others = tuple(dict.fromkeys(answer for answer in answers[:-1] if answer != answers[-1]))
    return Extraction(answers[-1], others)


def last_answer(region: str) -> Extraction | None:
    """For evaluation only: the last formula between math delimiters, or the last number when it comes later."""
    formula = None
    for formula in _MATH.finditer(region):  # noqa: B007  the last one is wanted
        pass
    number = None
    for match in _NUMBER.finditer(region, formula.end() if formula else 0):
        number = match if any(c.isdigit() for c in match[0]) else number
    if number is not None:
        return Extraction(number[0])
    if formula is not None:
        return Extraction(next(group for group in formula.groups() if group is not None))
    return None


def _joined(chain: list[str]) -> str:
    return chain[0] if len(chain) == 1 else ", ".join(chain)
