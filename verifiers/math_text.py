r"""Answers as text: bounds on their size, what two spellings share, and splitting at the outermost level. Nothing is computed."""

from __future__ import annotations

import re

MAX_CHARS = 2000
MAX_DEPTH = 40
MAX_DIGITS = 400
MAX_EXPONENT_DIGITS = 4
MAX_TOWER = 3
MAX_ELEMENTS = 256

_BRACKETS = re.compile(r"\\begin\s*\{\w+\*?\}|\\end\s*\{\w+\*?\}|\\langle|\\rangle|\\[{}]|[\[\](){}]")
_UNSPACED = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_SPACED_COMMA = re.compile(r"(?<=\d), (?=\d)")
_TEXT_WITH_NUMBER = re.compile(r"\\text\s*\{([^{}]*\d[^{}]*)\}$")
_TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
_OPENING, _CLOSING = ("(", "[", "{", r"\{", r"\langle"), (")", "]", "}", r"\}", r"\rangle")


def trimmed(text: str) -> str:
    """Without white space, closing punctuation and braces or boxes around the whole."""
    while True:
        shorter = text.strip().rstrip(".,;: ").lstrip(",;: ").removesuffix(r"\cr")
        if shorter.startswith("\\"):
            shorter = shorter.removeprefix(r"\boxed") if shorter.startswith(r"\boxed{") else shorter
            shorter = _TEXT_WITH_NUMBER.sub(r"\1", shorter)
        if shorter.startswith("{") and closing_bracket(shorter, 0) == len(shorter) - 1:
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter


def literal_key(text: str) -> str:
    """Equal for answers that differ in nothing but spacing and text commands. Spaces between letters or digits count."""
    spaced = " ".join(_TEXT_COMMAND.sub(r" \1 ", text).split())
    # "32, 349" is two numbers, "32,349" is one.
    return _UNSPACED.sub("", _SPACED_COMMA.sub(";", spaced))


def excess_of_text(text: str) -> str | None:
    """Why a text is too large to be taken apart, or None."""
    if len(text) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    if max((len(run) for run in re.findall(r"\d+", text)), default=0) > MAX_DIGITS:
        return f"a number of more than {MAX_DIGITS} digits"
    if text.count(",") + text.count(";") + text.count("&") + text.count("\\\\") >= MAX_ELEMENTS:
        return f"more than {MAX_ELEMENTS} elements"
    depth = 0
    for match in re.finditer(r"[({\[]|[)}\]]", text):
        depth += 1 if match[0] in "({[" else -1
        if depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH}"
    return None


def excess_of_value(text: str) -> str | None:
    """Why what a normalized text writes is too large to be computed, or None. It may still equal a reference word for word."""
    if re.search(rf"\^\{{?\s*[-+]?\s*\d{{{MAX_EXPONENT_DIGITS + 1},}}", text):
        return f"an exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if "!!" in text or re.search(r"\d{4,}\s*[)}]?\s*!", text):
        return "a factorial beyond 999!"
    open_exponents: list[bool] = []
    for match in re.finditer(r"\^\s*\{|[{]|[}]", text):
        if match[0] != "}":
            open_exponents.append(match[0] != "{")
        elif open_exponents:
            open_exponents.pop()
        if sum(open_exponents) > MAX_TOWER:
            return f"a tower of more than {MAX_TOWER} exponents"
    return None


def closing_bracket(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes, of whatever kind it closes with; -1 when it does not."""
    depth = 0
    for match in _BRACKETS.finditer(text, start):
        depth += 1 if _opens(match[0]) else -1
        if depth <= 0:
            return match.end() - 1
    return -1


def outermost(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches of a pattern that stand in no bracket and no environment."""
    spans = []
    depth, begins = 0, 0
    for match in _BRACKETS.finditer(text):
        change = 1 if _opens(match[0]) else -1
        if depth == 0 and change == 1:
            spans.append((begins, match.start()))
        depth = max(0, depth + change)
        if depth == 0:
            begins = match.end()
    if depth == 0:
        spans.append((begins, len(text)))
    return [match for begins, ends in spans for match in pattern.finditer(text, begins, ends)]


def split_outermost(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The pieces between the outermost matches of a pattern."""
    pieces, begins = [], 0
    for match in outermost(text, pattern):
        pieces.append(text[begins : match.start()])
        begins = match.end()
    return [*pieces, text[begins:]]


def is_balanced(text: str) -> bool:
    """Whether every bracket opens before it closes; `[0, 1)` is balanced."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += 1 if _opens(match[0]) else -1
        if depth < 0:
            return False
    return depth == 0


def _opens(bracket: str) -> bool:
    return bracket in _OPENING or bracket.startswith(r"\begin")
