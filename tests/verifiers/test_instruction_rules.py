"""Instructions by their IFEval names: what follows them, what does not, and references that make no sense."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.errors import InvalidReference, VerifierError
from verifiers.instruction_checks import CHECKS
from verifiers.instruction_rules import Instructions, instruction_of
from verifiers.registry import find
from verifiers.types import Outcome, Score, Task

# name, arguments, a text that follows it, a text that does not
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Ocean", "a.b"]}, "the ocean and A.B", "the ocean and axb"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "at least"}, "Sun and sun", "sun"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, "relation": "less than"}, "sun", "sun sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["can"]}, "a candle", "I CAN."),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Quick q", "quick"),
    ("language:response_language", {"language": "ru"}, "Это ответ, ok", "This is the answer"),
    ("language:response_language", {"language": "ja"}, "これは日本語", "这是中文"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One.", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n\n***\n\nb", "a\n\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "Hello.\n\n**Weekend**, at last.",
        "Hello.\n\nAt last, a weekend.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name], at [address]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP. S. more", "Bye. PS more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "Two:\n* one\n- two", "* one\n**bold**"),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe.", "maybe"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1\na\nPart 2\nb", "Part 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, null]}\n```', '{"a": NaN}'),
    ("detectable_format:json_format", {}, '{"a": 1}', '{"a": 1} indeed'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, "say it. Here", "Here: say it."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So it goes. the end."', "The end. Really"),
    ("startend:quotation", {}, ' "quoted" ', '"half'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A BIG one", "one A"),
    ("change_case:english_capital", {}, "ALL 3!", "All"),
    ("change_case:english_lowercase", {}, "all 3!", "All"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
]


def reference(*pairs: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"instruction_id_list": [name for name, _ in pairs], "kwargs": [arguments for _, arguments in pairs]}


def score(given: Any, text: str, **options: Any) -> Score:
    verifier: Any = find("instructions").build(options)
    return verifier.score_now(Task("t", "", given, "mix"), text)


@pytest.mark.parametrize(("name", "arguments", "follows", "does_not"), CASES)
def test_an_instruction_is_followed_or_not(name: str, arguments: dict[str, Any], follows: str, does_not: str):
    assert score(reference((name, arguments)), follows).value == 1.0
    judged = score(reference((name, arguments)), does_not)
    assert judged.value == 0.0
    assert judged.reason.startswith(f"{name}: ")


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_all_must_be_followed_unless_a_share_is_worth_something():
    both = reference(("punctuation:no_comma", {}), ("startend:quotation", {}))
    assert score(both, "no quotation").outcome is Outcome.WRONG
    half = score(both, "no quotation", share=True)
    assert (half.outcome, half.value) == (Outcome.PARTIAL, 0.5)
    assert score(both, "no, none", share=True).outcome is Outcome.WRONG
    assert score(both, '"both"', share=True).outcome is Outcome.CORRECT


def test_the_reasoning_is_not_judged_and_nothing_else_is_unparseable():
    given = reference(("punctuation:no_comma", {}))
    assert score(given, "<think>well, well</think>none").value == 1.0
    assert score(given, "<think>well").outcome is Outcome.UNPARSEABLE


def test_instructions_of_the_config_hold_for_every_task():
    follow = [{"name": "length_constraints:number_words", "num_words": 3, "relation": "less than"}]
    assert score(None, "two words", follow=follow).value == 1.0
    assert score(reference(("punctuation:no_comma", {})), "now it is four", follow=follow).value == 0.0


def test_arguments_that_are_none_were_not_given():
    padded = reference(("punctuation:no_comma", {"num_words": None, "keywords": None}))
    assert score(padded, "fine").value == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no instructions"),
        ("no commas", "needs instruction_id_list and kwargs"),
        ({}, "instruction_id_list is missing"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "a list of 1 tables"),
        (
            reference(("punctuation:no_coma", {})),
            r"'punctuation:no_coma' is not an instruction. Did you mean punctuation:no_comma\?",
        ),
        (reference(("keywords:frequency", {"keyword": "a"})), "frequency is missing"),
        (reference(("keywords:frequency", {"keyword": "a", "frequency": "2", "relation": "at least"})), "should be a whole number"),
        (
            reference(("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at most"})),
            "not one of at least, less than",
        ),
        (reference(("language:response_language", {"language": "de"})), "'de', which is not one of"),
        (reference(("startend:quotation", {"end": 1})), "end is not an argument of startend:quotation"),
    ],
)
def test_a_reference_that_makes_no_sense_is_refused_when_tasks_are_loaded(given: Any, message: str):
    with pytest.raises(InvalidReference, match=message):
        Instructions().prepare(given)


def test_instructions_of_the_config_are_checked_with_the_options():
    with pytest.raises(VerifierError, match=r"'punctuation:comma' is not an instruction. Did you mean punctuation:no_comma"):
        find("instructions").build({"follow": [{"name": "punctuation:comma"}]})


@given(st.sampled_from(CASES), st.text() | st.text(alphabet='*[]<>"-#\n .,\ud800\x00', max_size=60))
def test_any_text_gets_an_opinion(case: tuple[str, dict[str, Any], str, str], text: str):
    assert isinstance(instruction_of(case[0], case[1]).fault(text), str | None)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "*" * 10**6, "<<" * 500_000, ". " * 500_000, "'" * 10**6, "\n" * 10**6, "-\n" * 400_000]
)
def test_a_megabyte_ends_in_time(text: str):
    for name, arguments, *_ in CASES:
        started = time.perf_counter()
        instruction_of(name, arguments).fault(text)
        assert time.perf_counter() - started < 3, name
