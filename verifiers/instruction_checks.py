"""Instructions whose following can be seen in the text alone, by the names that IFEval gave them.

Source of the names, their arguments and their meaning: Instruction-Following Evaluation, arXiv:2311.07911, and its data set. We
depart from it where it counts by a tokenizer of its own (sentences, words), where a keyword is taken for a pattern (here it is
taken literally), and in `language:response_language`, which knows a language only by its script.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from verifiers.length_rules import count
from verifiers.registry import options_model

Relation = Literal["at least", "less than"]
Count = Annotated[int, Field(ge=0)]
Check = Callable[..., str | None]

CHECKS: dict[str, Check] = {}
ARGUMENTS: dict[str, type[BaseModel]] = {}

_PLACEHOLDER = re.compile(r"\[[^\[\]]*\]")
_HIGHLIGHT = re.compile(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|(?<!\*)\*[^\n*]*[^\s*][^\n*]*\*(?!\*)")
_TITLE = re.compile(r"<<[^\n<>]*[^\s<>][^\n<>]*>>")
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-(?!-))", re.MULTILINE)
_FENCE = re.compile(r"```(?:json)?\s*\n(?P<inside>.*)\n```", re.DOTALL | re.IGNORECASE)
_CAPITALS = re.compile(r"\w+")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SCRIPTS = {
    "ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "bg": "CYRILLIC", "ru": "CYRILLIC", "uk": "CYRILLIC", "bn": "BENGALI",
    "el": "GREEK", "gu": "GUJARATI", "he": "HEBREW", "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "ja": "HIRAGANA",
    "kn": "KANNADA", "ko": "HANGUL", "ml": "MALAYALAM", "pa": "GURMUKHI", "ta": "TAMIL", "te": "TELUGU", "th": "THAI", "zh": "CJK",
}  # fmt: skip
Scripted = Literal[
    "ar",
    "fa",
    "ur",
    "bg",
    "ru",
    "uk",
    "bn",
    "el",
    "gu",
    "he",
    "hi",
    "mr",
    "ne",
    "ja",
    "kn",
    "ko",
    "ml",
    "pa",
    "ta",
    "te",
    "th",
    "zh",
]


def instruction(name: str) -> Callable[[Check], Check]:
    """Register a check `(text, *, argument, ...) -> what is wrong, or None` under its name in IFEval."""

    def register(check: Check) -> Check:
        CHECKS[name] = check
        ARGUMENTS[name] = options_model(name, check, ())
        return check

    return register


def _amount(found: int, relation: Relation, wanted: int, noun: str) -> str | None:
    follows = found >= wanted if relation == "at least" else found < wanted
    return None if follows else f"{found} {noun}, {relation} {wanted} are wanted"


def _occurrences(text: str, phrase: str) -> int:
    return text.casefold().count(phrase.casefold())


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


@instruction("keywords:existence")
def has_keywords(text: str, *, keywords: tuple[str, ...]) -> str | None:
    missing = [keyword for keyword in keywords if not _occurrences(text, keyword)]
    return f"{missing[0]!r} is missing" if missing else None


@instruction("keywords:frequency")
def repeats_keyword(text: str, *, keyword: str, frequency: Count, relation: Relation) -> str | None:
    return _amount(_occurrences(text, keyword.strip()) if keyword.strip() else 0, relation, frequency, f"times {keyword!r}")


@instruction("keywords:forbidden_words")
def avoids_words(text: str, *, forbidden_words: tuple[str, ...]) -> str | None:
    found = [word for word in forbidden_words if _has_word(text, word)]
    return f"{found[0]!r} is forbidden" if found else None


@instruction("keywords:letter_frequency")
def repeats_letter(text: str, *, letter: str, let_frequency: Count, let_relation: Relation) -> str | None:
    return _amount(_occurrences(text, letter) if letter else 0, let_relation, let_frequency, f"times the letter {letter!r}")


@instruction("language:response_language")
def is_in_language(text: str, *, language: Scripted) -> str | None:
    letters = [character for character in text if character.isalpha()]
    script = _SCRIPTS[language]
    names = ("HIRAGANA", "KATAKANA", "CJK") if language == "ja" else (script,)
    found = sum(unicodedata.name(letter, "").startswith(names) for letter in letters)
    if language == "ja" and not any(unicodedata.name(letter, "").startswith(names[:2]) for letter in letters):
        return "no kana"
    return None if letters and found > len(letters) / 2 else f"{found} of {len(letters)} letters are {script.title()}"


@instruction("length_constraints:number_sentences")
def counts_sentences(text: str, *, num_sentences: Count, relation: Relation) -> str | None:
    return _amount(count("sentences", text), relation, num_sentences, "sentences")


@instruction("length_constraints:number_paragraphs")
def counts_paragraphs(text: str, *, num_paragraphs: Count) -> str | None:
    """Paragraphs are divided by `***`."""
    found = [paragraph for paragraph in text.split("***") if paragraph.strip()]
    return None if len(found) == num_paragraphs else f"{len(found)} paragraphs, {num_paragraphs} are wanted"


@instruction("length_constraints:number_words")
def counts_words(text: str, *, num_words: Count, relation: Relation) -> str | None:
    return _amount(count("words", text), relation, num_words, "words")


@instruction("length_constraints:nth_paragraph_first_word")
def begins_paragraph(
    text: str, *, num_paragraphs: Count, nth_paragraph: Annotated[int, Field(ge=1)], first_word: str
) -> str | None:
    """Paragraphs are divided by an empty line."""
    found = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if len(found) != num_paragraphs or nth_paragraph > len(found):
        return f"{len(found)} paragraphs, {num_paragraphs} are wanted"
    word = found[nth_paragraph - 1].split()[0].strip("'\"*_(").rstrip(".,:;?!'\")*_")
    return None if word.casefold() == first_word.casefold() else f"paragraph {nth_paragraph} begins with {word!r}"


@instruction("detectable_content:number_placeholders")
def has_placeholders(text: str, *, num_placeholders: Count) -> str | None:
    return _amount(len(_PLACEHOLDER.findall(text)), "at least", num_placeholders, "placeholders in square brackets")


@instruction("detectable_content:postscript")
def has_postscript(text: str, *, postscript_marker: str) -> str | None:
    """On a line of its own or within one; `P.S.` is also found as `P. S.`."""
    squeezed, marker = ("".join(part.split()).casefold() for part in (text, postscript_marker))
    return None if marker and marker in squeezed else f"no {postscript_marker}"


@instruction("detectable_format:number_bullet_lists")
def counts_bullets(text: str, *, num_bullets: Count) -> str | None:
    found = len(_BULLET.findall(text))
    return None if found == num_bullets else f"{found} bullet points, {num_bullets} are wanted"


@instruction("detectable_format:constrained_response")
def chooses_a_response(text: str) -> str | None:
    return None if any(response in text for response in _CONSTRAINED) else "none of the three answers"


@instruction("detectable_format:number_highlighted_sections")
def has_highlights(text: str, *, num_highlights: Count) -> str | None:
    return _amount(len(_HIGHLIGHT.findall(text)), "at least", num_highlights, "highlighted sections")


@instruction("detectable_format:multiple_sections")
def has_sections(text: str, *, section_spliter: str, num_sections: Count) -> str | None:
    """Each begins with the splitter and a number: `Section 1`."""
    found = len(re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?\d+", text))
    return _amount(found, "at least", num_sections, f"sections that begin with {section_spliter!r}")


@instruction("detectable_format:json_format")
def is_json(text: str) -> str | None:
    """The whole is JSON, perhaps between three backticks; NaN is none."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        json.loads(fenced["inside"] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"[:200]
    return None


@instruction("detectable_format:title")
def has_title(text: str) -> str | None:
    return None if _TITLE.search(text) else "no title in double angular brackets"


@instruction("combination:two_responses")
def gives_two_responses(text: str) -> str | None:
    """Divided by six asterisks, and different."""
    found = [response.strip() for response in text.split("******")]
    responses = [response for response in found if response]
    if len(responses) != 2 or "" in found[1:-1]:
        return f"{len(responses)} responses instead of two"
    return "the two responses are the same" if responses[0] == responses[1] else None


@instruction("combination:repeat_prompt")
def repeats_prompt(text: str, *, prompt_to_repeat: str) -> str | None:
    begins = text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())
    return None if begins else "it does not begin with the request"


@instruction("startend:end_checker")
def ends_with(text: str, *, end_phrase: str) -> str | None:
    ends = text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())
    return None if ends else f"it does not end with {end_phrase!r}"


@instruction("startend:quotation")
def is_quoted(text: str) -> str | None:
    whole = text.strip()
    return None if len(whole) > 1 and whole[0] == whole[-1] == '"' else "not wrapped in double quotation marks"


@instruction("change_case:capital_word_frequency")
def counts_capitals(text: str, *, capital_frequency: Count, capital_relation: Relation) -> str | None:
    found = sum(word.isupper() for word in _CAPITALS.findall(text))
    return _amount(found, capital_relation, capital_frequency, "words in capitals")


@instruction("change_case:english_capital")
def is_in_capitals(text: str) -> str | None:
    return None if text.isupper() else "not all in capital letters"


@instruction("change_case:english_lowercase")
def is_in_lower_case(text: str) -> str | None:
    return None if text.islower() else "not all in lower case"


@instruction("punctuation:no_comma")
def has_no_comma(text: str) -> str | None:
    return f"{text.count(',')} commas" if "," in text else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
