"""How much a completion says, and how often it says it again."""

from __future__ import annotations

import time

import pytest

from verifiers.errors import VerifierError
from verifiers.length_rules import count, repeated_sequences
from verifiers.registry import find
from verifiers.types import Outcome, Score, Task

TASK = Task("t", "", None, "mix")


async def score(name: str, text: str, num_tokens: int | None = None, **options: object) -> Score:
    return await find(name).build(options).score(TASK, text, num_tokens=num_tokens)


@pytest.mark.parametrize(
    ("num_tokens", "value"),
    # DAPO's own numbers (section 4.1): 20,480 tokens at most, of which a buffer of 4,096.
    [(0, 1.0), (16384, 1.0), (17408, 0.75), (18432, 0.5), (20479, 1 / 4096), (20480, 0.0), (30000, 0.0)],
)
async def test_length_falls_linearly_over_the_buffer(num_tokens: int, value: float):
    judged = await score("length", "", num_tokens, max_tokens=20480, buffer_tokens=4096)
    assert judged.value == pytest.approx(value)


@pytest.mark.parametrize(("num_tokens", "value"), [(10, 1.0), (11, 0.0)])
async def test_without_a_buffer_length_is_a_cliff(num_tokens: int, value: float):
    assert (await score("length", "", num_tokens, max_tokens=10, buffer_tokens=0)).value == value


async def test_an_unknown_length_is_our_fault_and_says_so():
    judged = await score("length", "", None, max_tokens=10, buffer_tokens=5)
    assert judged.outcome is Outcome.INFRA
    assert "number of tokens" in judged.reason


@pytest.mark.parametrize(
    ("unit", "text", "number"),
    [
        ("words", "It isn't well-known: 3.5 < 4", 6),  # It, isn't, well-known, 3, 5, 4
        ("words", "  \n ", 0),
        ("words", "\u4eca\u65e5 ok", 3),  # each character of a script without spaces is one
        ("sentences", "One. Two! Three? (Four.) five", 5),
        ("sentences", "It is 3.5, says Dr. Who, i.e. more... Really?!", 2),
        ("sentences", "", 0),
        ("lines", "a\n\n b\nc\n", 3),
        ("paragraphs", "a\nb\n\nc\n \n\nd", 3),
        ("characters", "  ab c \n", 4),
    ],
)
def test_what_a_text_has_is_counted(unit: str, text: str, number: int):
    assert count(unit, text) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({"unit": "words", "at_least": 2, "at_most": 3}, "one", 0.0),
        ({"unit": "words", "at_least": 2, "at_most": 3}, "one two", 1.0),
        ({"unit": "words", "at_least": 2, "at_most": 3}, "one two three four", 0.0),
        ({"unit": "words", "at_most": 3}, "<think>one two three four</think> five", 1.0),  # the reasoning does not count
    ],
)
async def test_an_answer_has_as_much_as_asked_for(options: dict[str, object], text: str, value: float):
    assert (await score("count", text, **options)).value == value


async def test_a_text_that_repeats_nothing_is_not_repetitive_and_one_that_goes_in_circles_is():
    fresh = " ".join(str(i) for i in range(200))
    circles = "wait, let me think again. " * 200
    assert (await score("repetition", fresh)).outcome is Outcome.CORRECT
    assert (await score("repetition", "short")).outcome is Outcome.CORRECT
    stuck = await score("repetition", circles)
    assert stuck.value is not None
    assert stuck.value < 0.02


async def test_the_value_is_the_share_of_new_sequences():
    # a b a b a: pairs ab ba ab ba, of which two are new.
    assert repeated_sequences("a b a b a", 2) == (2, 4)
    assert (await score("repetition", "a b a b a", num_words=2)).value == pytest.approx(0.5)
    assert (await score("repetition", "a b a b a", num_words=2, tolerated=0.5)).outcome is Outcome.CORRECT
    assert (await score("repetition", "a b a b a", num_words=2, tolerated=0.25)).value == pytest.approx(1 - 0.25 / 0.75)


@pytest.mark.slow
async def test_a_megabyte_is_counted_in_time():
    started = time.perf_counter()
    for text in ("word " * 200_000, "." * 10**6, "'" * 10**6, "a'" * 500_000, "\n " * 500_000):
        for unit in ("words", "sentences", "paragraphs", "lines"):
            count(unit, text)
        repeated_sequences(text, 20)
    assert time.perf_counter() - started < 15


def test_a_count_of_something_unknown_is_refused():
    with pytest.raises(VerifierError, match=r"unit is 'wrods', which is not one of .* Did you mean words"):
        find("count").build({"unit": "wrods"})
