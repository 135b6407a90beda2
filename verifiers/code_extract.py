"""Where the program stands in a completion: the final region, its code blocks, or the whole of it. Linear in the text's length.

Nothing here parses Python: what a model wrote is only ever read by an interpreter in the sandbox.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from verifiers.extract import final_region

Fence = Literal["optional", "required"]

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_INDENTED = re.compile(r"[\r\n]*(?:\t|  )")  # one space is how many tokenizers begin any text
_PYTHON = ("", "python", "python3", "py", "py3")


class Code(NamedTuple):
    """The program of a completion, the part of the text it is or begins from, and where that stood.

    `source` is None when there is none, and `place` says why.
    """

    source: str | None
    place: str
    written: str = ""


class Block(NamedTuple):
    """A fenced code block: the first word after its fence in lower case, and what it holds."""

    language: str
    content: str


def extract_code(text: str, *, entry_point: str | None, prompt: str = "", fence: Fence = "optional") -> Code:
    """The program of a completion.

    After the reasoning, the last code block that defines the entry point, else the last one; blocks of other languages do not
    count. Without any block the whole text is the program, unless `fence` is "required", or there is an entry point that it does
    not define. A `prompt` is the beginning of a program: it stands before what defines the entry point anew, and is continued by
    what does not; a text that begins indented continues it, and ends at the first fence.
    """
    region = final_region(text)
    if not region.strip():
        return Code(None, "nothing after the reasoning" if text.strip() else "nothing was written")
    blocks = code_blocks(region)
    python = [block.content for block in blocks if block.language in _PYTHON]
    if prompt and fence == "optional" and _INDENTED.match(region):
        end = _FENCE.search(region)
        body = region[: end.start()] if end else region
        return Code(prompt + body, "the text, which continues the prompt", body)
    if python:
        defining = [content for content in python if defines(content, entry_point)]
        place = "the last code block" + (f" that defines {entry_point}" if defining and entry_point else "")
        written = (defining or python)[-1]
        return Code(_joined(prompt, written, entry_point), place, written)
    if blocks:
        return Code(None, f"no Python code block (found {', '.join(sorted({block.language for block in blocks}))[:60]})")
    if fence == "required":
        return Code(None, "no code block")
    if not prompt and not defines(region, entry_point):
        return Code(None, f"no code block, and the text itself does not define {entry_point}")
    return Code(_joined(prompt, region, entry_point), "the whole text", region)


def code_blocks(region: str) -> list[Block]:
    """The fenced blocks in order. One that is never closed goes to the end of the text, as in CommonMark."""
    blocks: list[Block] = []
    opening: re.Match[str] | None = None
    for match in _FENCE.finditer(region):
        if opening is None:
            opening = match
        elif match[2].startswith(opening[2]) and not match[3].strip():
            blocks.append(_block(opening, region[opening.end() + 1 : match.start()]))
            opening = None
    if opening is not None:
        blocks.append(_block(opening, region[opening.end() + 1 :]))
    return blocks


def defines(source: str, entry_point: str | None) -> bool:
    """Whether a line at the outermost level defines the entry point, or the class it is a method of. None is always defined."""
    if entry_point is None:
        return True
    name = re.escape(entry_point.partition(".")[0])
    return bool(
        re.search(rf"^(?:(?:async[ \t]+)?def[ \t]+|class[ \t]+){name}\b|^{name}[ \t]*(?::[^=\n]+)?=(?!=)", source, re.MULTILINE)
    )


def _joined(prompt: str, source: str, entry_point: str | None) -> str:
    """The prompt's imports and helpers stand before a new definition, which replaces the one that it began."""
    if not prompt:
        return source
    return f"{prompt}\n{source}" if defines(source, entry_point) else prompt + source


def _block(opening: re.Match[str], content: str) -> Block:
    """What a block holds, without the indentation that its fence has, in a list for example."""
    if opening[1]:
        content = re.sub(rf"^[ \t]{{1,{len(opening[1])}}}", "", content, flags=re.MULTILINE)
    words = re.split(r"[\s,{}.]+", opening[3].strip().lower().lstrip("{."), maxsplit=1)
    return Block(words[0], content)
