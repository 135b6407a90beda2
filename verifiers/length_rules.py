"""Rules about how much a completion says: its tokens, its words, and what it says again."""

from __future__ import annotations

import re
from collections import deque
from typing import Annotated, Literal

from pydantic import Field

from verifiers.extract import final_region
from verifiers.registry import rule
from verifiers.types import Score, Task, correct, infra, partial, wrong

Unit = Literal["characters", "words", "sentences", "lines", "paragraphs"]

# Scripts without spaces between words count by the character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:['\u2019-]\w+)*")
# A full stop ends a sentence only where white space follows, so that 3.5 and e.g.this do not.
_SENTENCE_END = re.compile(r"(?<![.!?\u3002])[.!?\u3002]+[\"'\u201d\u2019)\]]*(?:\s|$)")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|cf|Fig|No)\.(?=\s)")
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")


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


@rule("count")
def count_rule(
    task: Task,
    text: str,
    *,
    unit: Annotated[Unit, Field(description="What is counted, after the reasoning.")],
    at_least: Annotated[int, Field(ge=0, description="Fewer than this fail.")] = 0,
    at_most: Annotated[int | None, Field(ge=0, description="More than this fail. None: any number passes.")] = None,
) -> Score:
    """Whether the answer has as many words, sentences, lines, paragraphs or characters as asked for."""
    found = count(unit, final_region(text))
    wanted = f"at least {at_least}" + ("" if at_most is None else f", at most {at_most}")
    passes = found >= at_least and (at_most is None or found <= at_most)
    return correct(f"{found} {unit}") if passes else wrong(f"{found} {unit}, {wanted} are wanted")


@rule("repetition")
def repetition_rule(
    task: Task,
    text: str,
    *,
    num_words: Annotated[int, Field(ge=1, description="Length of the word sequences that are compared.")] = 20,
    tolerated: Annotated[float, Field(ge=0, lt=1, description="Share of repeated sequences that still gets full marks.")] = 0.0,
) -> Score:
    """1 minus the share of word sequences that stood in the text before, over the whole text; 1 for a text too short to have any.

    A text that goes round in circles tends to 0. Sequences of num_words are long enough that a formula or a step restated once
    costs little. Source: the repetition penalty of arXiv:2502.03373, which charges each repeated n-gram; here it is averaged.
    """
    distinct, total = repeated_sequences(text, num_words)
    if total == 0:
        return correct(f"fewer than {num_words} words")
    share = 1 - distinct / total
    told = f"{share:.1%} of {total} sequences of {num_words} words stood there before"
    return correct(told) if share <= tolerated else partial(1 - (share - tolerated) / (1 - tolerated), told)


def count(unit: Unit, text: str) -> int:
    """How many words, sentences, lines, paragraphs or characters a text has. White space alone is none of any."""
    if unit == "words":
        return sum(1 for _ in _WORD.finditer(text))
    if unit == "sentences":
        return num_sentences(text)
    if unit == "characters":
        return len(text.strip())
    pieces = text.split("\n") if unit == "lines" else re.split(r"\n[^\S\n]*\n", text)
    return sum(1 for piece in pieces if piece.strip())


def num_sentences(text: str) -> int:
    """Sentences by their ends; what stands after the last end is one more."""
    text = _ABBREVIATION.sub(" ", text)
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def repeated_sequences(text: str, size: int) -> tuple[int, int]:
    """How many different sequences of `size` words and signs a text has, and how many in all."""
    window: deque[str] = deque(maxlen=size)
    seen: set[int] = set()
    total = 0
    for match in _TOKEN.finditer(text):
        window.append(match[0])
        if len(window) == size:
            # The hash stands for the sequence: a megabyte of text need not be held twenty times.
            seen.add(hash(tuple(window)))
            total += 1
    return len(seen), total
