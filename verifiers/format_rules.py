"""Rules about the form of a completion: its tags, its box, its length. Whether the answer is right is not their business."""

from __future__ import annotations

from typing import Annotated, Literal

import regex
from pydantic import AfterValidator, Field

from verifiers.extract import boxed_spans
from verifiers.registry import rule
from verifiers.types import Score, Task, correct, infra, partial, timeout, wrong

PATTERN_TIMEOUT_S = 0.5

Preset = Literal["think_answer", "think_boxed", "boxed"]


def _compiles(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}. Mend the pattern.") from None
    return pattern


@rule("format")
def format_rule(
    task: Task,
    text: str,
    *,
    preset: Annotated[
        Preset,
        Field(
            description="think_answer: <think>…</think><answer>…</answer>; think_boxed: <think>…</think> and one box at the end; "
            "boxed: one box at the end."
        ),
    ] = "think_answer",
    pattern: Annotated[
        str | None,
        Field(description="A regular expression that the whole text must match; takes the preset's place."),
        AfterValidator(_compiles),
    ] = None,
) -> Score:
    """Whether the text has the form that was asked for: 1 or 0.

    White space around the parts does not matter; text outside them does. A tag that appears twice, even inside another part, fails.
    """
    if pattern is not None:
        return _matches(pattern, text)
    fault = {"think_answer": _think_answer_fault, "think_boxed": _think_boxed_fault, "boxed": _boxed_fault}[preset](text)
    return wrong(fault) if fault else correct(f"has the form {preset}")


@rule("length")
def length_rule(
    task: Task,
    text: str,
    *,
    max_tokens: Annotated[int, Field(gt=0, description="Length at which the value reaches 0, in tokens.")],
    buffer_tokens: Annotated[int, Field(ge=0, description="The value falls to 0 over the last this many tokens; 0 is a cliff.")],
    num_tokens: int | None,
) -> Score:
    """Soft overlong shaping: 1 up to max_tokens - buffer_tokens, then linear down to 0 at max_tokens.

    Source: DAPO, arXiv:2503.14476, equation 13, whose penalty in [-1, 0] is this value minus 1. The paper adds it to an answer
    reward of 1 or -1. A mix that gives length half the answer's weight is that sum up to an affine map, which group normalization
    removes.
    """
    if num_tokens is None:
        return infra("length was not judged: the number of tokens of this completion is unknown. Record num_tokens with it.")
    buffer_tokens = min(buffer_tokens, max_tokens)
    over = num_tokens - (max_tokens - buffer_tokens)
    told = f"{num_tokens} tokens, limit {max_tokens} with a buffer of {buffer_tokens}"
    if over <= 0:
        return correct(told)
    if over >= buffer_tokens:
        return wrong(told)
    return partial(1 - over / buffer_tokens, told)


def _matches(pattern: str, text: str) -> Score:
    try:
        matched = regex.fullmatch(pattern, text, timeout=PATTERN_TIMEOUT_S)
    except TimeoutError:
        return timeout(f"matching the pattern took longer than {PATTERN_TIMEOUT_S:g} s")
    return correct("matches the pattern") if matched else wrong("does not match the pattern")


def _think_answer_fault(text: str) -> str | None:
    """The first thing wrong with `<think>…</think><answer>…</answer>`, or None."""
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    fault = _tags_fault(text, tags)
    if fault:
        return fault
    before, _, rest = text.partition("<think>")
    thought, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, _, after = rest.partition("</answer>")
    if before.strip() or between.strip() or after.strip():
        return "there is text outside the tags"
    if not thought.strip():
        return "the thought is empty"
    return None if answer.strip() else "the answer is empty"


def _think_boxed_fault(text: str) -> str | None:
    """The first thing wrong with a thought in tags that is followed by one box at the very end, or None."""
    fault = _tags_fault(text, ("<think>", "</think>"))
    if fault:
        return fault
    before, _, rest = text.partition("<think>")
    thought, _, final = rest.partition("</think>")
    if before.strip():
        return "there is text before <think>"
    if not thought.strip():
        return "the thought is empty"
    return _boxed_fault(final)


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


def _tags_fault(text: str, tags: tuple[str, ...]) -> str | None:
    """Whether each tag appears once, in order."""
    for tag in tags:
        count = text.count(tag)
        if count != 1:
            return f"{tag} appears {count} times instead of once" if count else f"{tag} is missing"
    positions = [text.index(tag) for tag in tags]
    return None if positions == sorted(positions) else "the tags are out of order"
