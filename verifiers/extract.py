"""Where the answer stands in a completion: the final region, its boxes, and the lenient ways out. Linear in the text's length."""

from __future__ import annotations

import re
from typing import NamedTuple

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What may stand between two boxes that together are one answer: `\boxed{1}$ and $\boxed{2}`, `\boxed{1}, y = \boxed{2}`.
_CONNECTIVE = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;!: ]|\\q?quad|(?:[a-z]+\s+)?(?:and|or)\b|\\text\s*\{\s*,?\s*(?:and|or)\s*\}"
    r"|[A-Za-z](?:_\{?\w+\}?)?\s*=)*"
)
_MAX_CONNECTIVE = 60
_MAX_BARE = 200
# A formula that never closes is searched for to the end, once for each that opens: quadratic, so what is searched has a bound.
_MAX_SEARCHED = 10_000
_PERCENT = re.compile(r"\s*\$?\s*(?:\\?%|percent|pct)")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"[-\u2212+]?\\?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?(?:\s*\\?%)?")
_ANSWER_IS = re.compile(r"(?i)\banswer(?:\s+is)?\s*:?\s*")
_IS = re.compile(r"\s+(?:is|are|equals)\b")
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z']{2,}[,.;:]?\s+[A-Za-z']{2,}(?![A-Za-z])")


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


def last_answer(region: str) -> Extraction | None:
    """For evaluation only, where there is no box: a bare answer whole, or the last formula, or the last number if that is later.

    What follows the last "answer is" or "answer:" goes before what stands elsewhere.
    """
    text = region.partition("<|")[0].strip()[-_MAX_SEARCHED:]
    if len(text) <= _MAX_BARE and not _FORMULA.search(text) and not _PROSE.search(text):
        return Extraction(text) if text else None
    after = [match.end() for match in _ANSWER_IS.finditer(text)]
    return (_first_stated(text[after[-1] :]) if after else None) or _last_stated(text)


def only_formula(answer: str) -> str:
    """The formula, when an answer is words around exactly one formula and no other number: `the answer is $5$` is 5.

    The caller has bounded the answer's length.
    """
    formulas = list(_FORMULA.finditer(answer))
    if len(formulas) != 1:
        return answer
    around = answer[: formulas[0].start()] + " " + answer[formulas[0].end() :]
    if re.search(r"[\d\\^=<>]", around) or not re.search(r"[A-Za-z]{2}", around):
        return answer
    return _formula(answer, formulas[0])


def _first_stated(text: str) -> Extraction | None:
    """The first formula or number of what follows "answer is". One that is something, "the largest $n$ is 34", is skipped."""
    formulas = list(_FORMULA.finditer(text))
    spans = [match.span() for match in formulas]
    numbers = [match for match in _NUMBER.finditer(text) if _has_digit(match[0])]
    outside = [match for match in numbers if not any(begins <= match.start() < ends for begins, ends in spans)]
    for match in sorted((*formulas, *outside), key=lambda found: found.start()):
        if not _IS.match(text, match.end()):
            return Extraction(_formula(text, match) if match.re is _FORMULA else match[0])
    return None


def _last_stated(text: str) -> Extraction | None:
    formulas = list(_FORMULA.finditer(text))
    begins = formulas[-1].end() if formulas else 0
    numbers = [match for match in _NUMBER.finditer(text, begins) if _has_digit(match[0])]
    if numbers:
        return Extraction(numbers[-1][0])
    return Extraction(_formula(text, formulas[-1])) if formulas else None


def _formula(text: str, match: re.Match[str]) -> str:
    """What stands between the delimiters, with a percent sign that follows them."""
    content = next(group for group in match.groups() if group is not None)
    return content + (r"\%" if _PERCENT.match(text, match.end()) else "")


def _has_digit(text: str) -> bool:
    return any(character.isdigit() for character in text)
