"""Rules about the form of a completion: its tags, its box. Whether the answer is right is not their business."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator, Field

from verifiers.deadline import InWorkers, Overrun, WorkerPool
from verifiers.extract import boxed_spans
from verifiers.registry import rule, verifier
from verifiers.types import Score, Task, correct, timeout, wrong

PATTERNS = Path(__file__).with_name("format_patterns.py")
PATTERN_DEADLINE_S = 0.5

Preset = Literal["think_answer", "think_boxed", "boxed"]


def _compiles(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}. Mend the pattern.") from None
    return pattern


@verifier("format")
class Format(InWorkers):
    """Whether the text has the form that was asked for: 1 or 0.

    White space around the parts does not matter; text outside them does. A tag that appears twice, even inside another part, fails.
    A pattern is matched in a worker process, which is killed when it takes longer than half a second.
    """

    def __init__(
        self,
        *,
        preset: Annotated[
            Preset,
            Field(
                description="think_answer: <think>…</think><answer>…</answer>; think_boxed: <think>…</think>, then one box at the "
                "end; boxed: one box at the end."
            ),
        ] = "think_answer",
        pattern: Annotated[
            str | None,
            Field(description="A regular expression that the whole text must match; takes the preset's place."),
            AfterValidator(_compiles),
        ] = None,
        workers: int = 2,
    ) -> None:
        self._preset: Preset = preset
        self._pattern = pattern
        super().__init__(WorkerPool(PATTERNS, size=workers, deadline_s=PATTERN_DEADLINE_S))

    def prepare(self, reference: Any) -> None:
        """The form does not depend on the reference."""

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score | None:
        return preset_score(self._preset, text) if self._pattern is None else None

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        if self._pattern is None:
            return preset_score(self._preset, text)
        try:
            matches = await self._pool.ask({"pattern": self._pattern, "text": text})
        except Overrun as error:
            return timeout(f"matching the pattern was stopped: {error}")
        return correct("matches the pattern") if matches else wrong("does not match the pattern")


@rule("tags")
def tags_rule(
    task: Task,
    text: str,
    *,
    names: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="Names of tags: each opens and closes once, in this order, none inside another."),
    ],
    alone: Annotated[bool, Field(description="Whether nothing but white space may stand outside the tags.")] = False,
    filled: Annotated[bool, Field(description="Whether each must hold something besides white space.")] = True,
) -> Score:
    """Whether tags of one's own stand in the text, once each and in order."""
    fault = tags_fault(text, names, alone=alone, filled=filled)
    return wrong(fault) if fault else correct(f"has the tags {', '.join(names)}")


def preset_score(preset: Preset, text: str) -> Score:
    """Whether a text has one of the well-known forms."""
    if preset == "think_answer":
        fault = tags_fault(text, ("think", "answer"), alone=True, filled=True)
    elif preset == "think_boxed":
        fault = _think_boxed_fault(text)
    else:
        fault = _boxed_fault(text)
    return wrong(fault) if fault else correct(f"has the form {preset}")


def tags_fault(text: str, names: tuple[str, ...], *, alone: bool, filled: bool) -> str | None:
    """The first thing wrong with `<name>…</name>` once each and in order, or None."""
    fault = _missing_tag(text, names)
    if fault:
        return fault
    rest, outside = text, ""
    for name in names:
        before, _, rest = rest.partition(f"<{name}>")
        inside, _, rest = rest.partition(f"</{name}>")
        outside += before
        if filled and not inside.strip():
            return f"<{name}> is empty"
    return "there is text outside the tags" if alone and (outside + rest).strip() else None


def _missing_tag(text: str, names: tuple[str, ...]) -> str | None:
    """Whether each tag appears once, in order."""
    tags = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    for tag in tags:
        count = text.count(tag)
        if count != 1:
            return f"{tag} appears {count} times instead of once" if count else f"{tag} is missing"
    positions = [text.index(tag) for tag in tags]
    return None if positions == sorted(positions) else "the tags are out of order"


def _think_boxed_fault(text: str) -> str | None:
    """The first thing wrong with a thought in tags that is followed by one box at the very end, or None."""
    fault = tags_fault(text, ("think",), alone=False, filled=True)
    if fault:
        return fault
    before, _, rest = text.partition("<think>")
    if before.strip():
        return "there is text before <think>"
    return _boxed_fault(rest.partition("</think>")[2])


def _boxed_fault(text: str) -> str | None:
    """The first thing wrong with text that should have one box, which ends it, or None. A closing $ or full stop is no text."""
    spans = boxed_spans(text)
    if len(spans) != 1:
        return f"{len(spans)} boxes instead of one" if spans else "there is no \\boxed{…}"
    start, end = spans[0]
    if not text[start:end].partition("{")[2][:-1].strip():
        return "the box is empty"
    after = text[end:].strip().removesuffix(".").strip()
    return None if after in ("", "$", "$$", ".$", ".$$", "\\]", ".\\]", "\\)", ".\\)") else "there is text after the box"
