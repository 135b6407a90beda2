"""Where the answer stands in a completion: the final region, its boxes, and the lenient ways out. Linear in the text's length."""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_SIMPLE_BOX = re.compile(r"\\boxed\{([^{}\\]*)\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What may stand between two boxes that together are one answer: `\boxed{1}$ and $\boxed{2}`, `\boxed{1}, y = \boxed{2}`.
_CONNECTIVE = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;!: ]|\\q?quad|(?:[a-z]+\s+)?(?:and|or)\b|\\text\s*\{[^{}\\$]*\b(?:and|or)\s*\}"
    r"|[A-Za-z](?:_\{?\w+\}?)?\s*=)*"
)
_MAX_CONNECTIVE = 60
MAX_BARE = 200
# A formula that never closes is searched for to the end, once for each that opens: quadratic, so what is searched has a bound.
_MAX_SEARCHED = 10_000
_PERCENT = re.compile(r"\s*\$?\s*(?:\\?%|percent|pct)")
# A formula inside a line ends on that line; what is displayed may take several. None reaches over the opening of another.
_FORMULA = re.compile(
    r"\$\$((?:(?!\$\$).)+)\$\$|\$((?:\\[^\n]|[^$\\\n])+)\$|\\\(((?:(?!\\[()])[^\n])+)\\\)|(?<!\\)\\\[((?:(?!\\[\[\]]).)+)\\\]",
    re.DOTALL,
)
# What is left of a formula that never ended: nothing is read out of it.
_BROKEN_FORMULA = re.compile(r"\\[()]|(?<![\d\s])[ \t]*\$[ \t]*\n")
_NUMBER = re.compile(r"[-\u2212+]?\\?\$?(?:\d+,\d{1,2}(?![\d,])|(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)(?:\s*/\s*\d+)?(?:\s*\\?%)?")
_ANSWER_IS = re.compile(r"(?i)\banswer(?!\s+is\s+not\b)(?:\s+is)?\s*:?\s*")
_FINAL_ANSWER = re.compile(r"(?i)\bfinal\s+answer(?:\s+is\s*:?|\s*:)\s*")
_IS = re.compile(r"\s+(?:is|are|equals)\b")
_LABEL = re.compile(r"[A-Za-z]{3,}\s*:\s")
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z']{2,}[,.;:]?\s+[A-Za-z']{2,}(?![A-Za-z])")
_AND_OR = re.compile(r"\s*(?:[,;]\s*(?:(?:and|or)\b\s*)?|(?:and|or)\b\s*)")
_TEXT = re.compile(r"\\text\s*\{[^{}]*\}")


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
    start = region.rfind("\\boxed")
    if start == region.find("\\boxed") and (box := _SIMPLE_BOX.match(region, start)) and "\\fbox" not in region:
        return Extraction(box[1] + (r"\%" if _PERCENT.match(region, box.end()) else ""))
    spans = boxed_spans(region)
    if not spans:
        return None
    chains: list[list[str]] = []
    previous_end: int | None = None
    for start, end in spans:
        content = region[start:end].partition("{")[2][:-1] + (r"\%" if _PERCENT.match(region, end) else "")
        between = None if previous_end is None else region[previous_end:start]
        if between is not None and len(between) <= _MAX_CONNECTIVE and _CONNECTIVE.fullmatch(between):
            chains[-1].append(content)
        else:
            chains.append([content])
        previous_end = end
    answers = [", ".join(chain) for chain in chains]
    others = tuple(dict.fromkeys(answer for answer in answers[:-1] if answer != answers[-1]))
    return Extraction(answers[-1], others)


def tagged_answer(region: str) -> Extraction | None:
    """What stands in the last `<answer>…</answer>`, stripped. None where none opens, or the last never closes."""
    _, *opened = region.split("<answer>")
    if not opened or "</answer>" not in opened[-1]:
        return None
    *others, answer = (each.partition("</answer>")[0].strip() for each in opened)
    return Extraction(answer, tuple(dict.fromkeys(other for other in others if other != answer)))


def lenient_answer(region: str) -> Extraction | None:
    """For evaluation only: the box, unless a "final answer is" follows it; without a box, the last answer that is stated."""
    boxed = boxed_answer(region)
    if boxed is None:
        return last_answer(region)
    after = region[boxed_spans(region)[-1][1] :][-_MAX_SEARCHED:]
    final = [match.end() for match in _FINAL_ANSWER.finditer(after)]
    return (_first_stated(after[final[-1] :]) if final else None) or boxed


def last_answer(region: str) -> Extraction | None:
    """A bare answer whole, or the last formula or number; for what follows the last "answer is" or "answer:", the first.

    Nothing is read where a formula begins and does not end: the digits in it are no answer.
    """
    text = region.partition("<|")[0].strip()[-_MAX_SEARCHED:]
    if len(text) <= MAX_BARE and not _FORMULA.search(text) and not _PROSE.search(text) and not _LABEL.search(text):
        return Extraction(text) if text else None
    after = [match.end() for match in _ANSWER_IS.finditer(text)]
    return (_first_stated(text[after[-1] :]) if after else None) or _last_stated(text)


def only_formula(answer: str) -> str:
    """The formula, when an answer is words around exactly one formula and no other number: `the answer is $5$` is 5.

    The caller has bounded the answer's length.
    """
    if "$" not in answer and "\\(" not in answer and "\\[" not in answer:
        return answer
    formulas = list(_FORMULA.finditer(answer))
    if len(formulas) != 1:
        return answer
    around = answer[: formulas[0].start()] + " " + answer[formulas[0].end() :]
    if re.search(r"[\d\\^=<>]", around) or not re.search(r"[A-Za-z]{2}", around):
        return answer
    return _stated(answer, formulas[0])


def _first_stated(text: str) -> Extraction | None:
    """The first statement of what follows "answer is". One that is something, "the largest $n$ is 34", is skipped."""
    statements = _statements(text)
    first = next((i for i, match in enumerate(statements) if not _IS.match(text, match.end())), None)
    if first is None:
        return None
    last = first
    while last + 1 < len(statements) and _are_joined(text, statements[last], statements[last + 1]):
        last += 1
    return _listed(text, statements[first : last + 1])


def _last_stated(text: str) -> Extraction | None:
    """The last statement, with those that a comma, `and` or `or` joins to it: "5 or 6" is not 6."""
    statements = _statements(text)
    if not statements:
        return None
    first = len(statements) - 1
    while first > 0 and _are_joined(text, statements[first - 1], statements[first]):
        first -= 1
    return _listed(text, statements[first:])


def _statements(text: str) -> list[re.Match[str]]:
    """The formulas, and the numbers outside them, in order. None at all when a formula is broken."""
    formulas = [match for match in _FORMULA.finditer(text) if not _PROSE.search(_TEXT.sub(" ", _content(match)))]
    outside, begins = [], 0
    for match in formulas:
        outside.append((begins, match.start()))
        begins = match.end()
    outside.append((begins, len(text)))
    if any(_BROKEN_FORMULA.search(text, *span) for span in outside):
        return []
    numbers = [match for span in outside for match in _NUMBER.finditer(text, *span) if _has_digit(match[0])]
    return sorted((*formulas, *numbers), key=lambda match: match.start())


def _are_joined(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    return _AND_OR.fullmatch(text, one.end(), other.start()) is not None


def _listed(text: str, matches: list[re.Match[str]]) -> Extraction:
    return Extraction(", ".join(_stated(text, match) for match in matches))


def _stated(text: str, match: re.Match[str]) -> str:
    """A number as it stands; of a formula what stands between the delimiters, with a percent sign that follows them."""
    if match.re is not _FORMULA:
        return match[0]
    return _content(match) + (r"\%" if _PERCENT.match(text, match.end()) else "")


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None)


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)
