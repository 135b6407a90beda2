"""Answers near a right one that are not right, and answers that are none at all: what a scorer must not give full marks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from verifiers.reasoning_gym_comparison import number, value

MAX_EACH = 6  # places at which one kind of change is made


class Neighbour(NamedTuple):
    """A changed answer, and what was done to it."""

    kind: str
    text: str


def neighbours(answer: str, others: Sequence[str], *, seed: int) -> Iterator[Neighbour]:
    """Answers that say something else than `answer`, which is one; `others` answer other tasks of the same dataset."""
    rng = random.Random(seed)
    made = [
        *_at_places("a digit changed", answer, r"\d", lambda found: str((int(found) + 1) % 10), rng),
        *_at_places("a letter changed", answer, r"[A-Za-z]", _next_letter, rng),
        *_at_places("a character dropped", answer, r"[^\W_]", lambda _: "", rng),
        *_at_places("a character doubled", answer, r"[^\W_]", lambda found: found * 2, rng),
        *_at_places("a sign changed", answer, r"(?<![\w.)-])-(?=\d)|(?<![\w.,-])(?=\d)", lambda found: "" if found else "-", rng),
        *_at_places("a decimal added", answer, r"(?<=\.)\d+", lambda found: f"{found}{found[-1]}", rng),
        *_at_places("a number nudged", answer, r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", _nudged, rng),
        *_at_places("not a number", answer, r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])", lambda _: "NaN", rng),
        *_at_places("an infinite number", answer, r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])", lambda _: "Infinity", rng),
        *_at_places("digits set apart", answer, r"(?<=\d)(?=\d)", lambda _: ",", rng),
        *_at_places("digits set apart", answer, r"(?<=\d)(?=\d)", lambda _: " ", rng),
        *_at_places("numbers run together", answer, r"(?<=\d)[ \n,]+(?=\d)", lambda _: "", rng),
        *_parts_changed(answer, rng),
        *_words_added(answer, others, rng),
        *_whole_changed(answer, others),
    ]
    seen: set[str] = set()
    for neighbour in made:
        if neighbour.text not in seen and not means_the_same(neighbour.text, answer):
            seen.add(neighbour.text)
            yield neighbour


def means_the_same(one: str, other: str) -> bool:
    """Whether two answers differ only in case and white space, are one number, or one JSON value."""
    if _folded(one) == _folded(other):
        return True
    numbers = number(one), number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    values = value(one), value(other)
    return None not in values and values[0] == values[1]


def garbage() -> Iterator[str]:
    """Texts that answer nothing."""
    yield from (
        "",
        " ",
        "\n\n",
        "None",
        "null",
        "nan",
        "NaN",
        "inf",
        "-Infinity",
        "[]",
        "{}",
        "()",
        "[[]]",
        '""',
        "?",
        ".",
        ",",
        "-",
    )
    yield from ("\x00", "a\x00b", "\ud800", "\u202e", "\u0661\u0662", "\U0001f600" * 50, "True", "False", "yes", "no", "the answer")
    yield from ("[" * 2000, "(" * 2000, "{" * 2000, "[" * 500 + "]" * 500, "((" * 100 + "1" + "))" * 100)
    yield from ("9" * 4000, "9" * 10_000, "1e9999", "1e99999999", "1/0", "0/0", "1_000", "x" * 10_000, "1 " * 3000, "a,b\n" * 2000)
    yield from (
        '{"a": NaN}',
        "[1, [2, [3]]]",
        '[{"a": []}]',
        '{"": ""}',
        "[null, true]",
        '"text"',
        "<answer>1</answer>",
        "%s %d {0}",
    )


def programs(touched: str) -> Iterator[str]:
    """Answers that are programs: whoever evaluates one leaves the file `touched`."""
    deed = f"open({touched!r}, 'w')"
    yield from (deed, f"[{deed}]", f"[[{deed}]]", f"({deed},)", f"[str({deed})]", f"'a' if {deed} else 'b'", f"{{'a': {deed}}}")
    yield f"__import__('os').system('touch {touched}')"
    yield f"(lambda: {deed})()"
    yield f"eval({deed!r})"
    yield f"exec({deed!r})"
    yield f"import os; os.system('touch {touched}')"
    yield f"[x for x in ().__class__.__base__.__subclasses__() if {deed}]"
    yield f"__import__('pathlib').Path({touched!r}).touch()"


def _at_places(kind: str, answer: str, pattern: str, change: Any, rng: random.Random) -> Iterator[Neighbour]:
    """The answer changed at one place at a time: the first, the last, and some between."""
    places = list(re.finditer(pattern, answer))
    if len(places) > MAX_EACH:
        places = [places[0], places[-1], *rng.sample(places[1:-1], MAX_EACH - 2)]
    for place in places:
        yield Neighbour(kind, answer[: place.start()] + change(place[0]) + answer[place.end() :])


def _parts_changed(answer: str, rng: random.Random) -> Iterator[Neighbour]:
    """Lines, and words or list elements, dropped, exchanged, repeated."""
    for separator in ("\n", ", ", ",", " "):
        parts = answer.split(separator)
        if len(parts) < 2:
            continue
        for index in {0, len(parts) - 1, rng.randrange(len(parts))}:
            yield Neighbour("a part dropped", separator.join(parts[:index] + parts[index + 1 :]))
            yield Neighbour("a part repeated", separator.join(parts[: index + 1] + parts[index:]))
        for _ in range(3):
            i, j = sorted(rng.sample(range(len(parts)), 2))
            if parts[i] != parts[j]:
                exchanged = [*parts[:i], parts[j], *parts[i + 1 : j], parts[i], *parts[j + 1 :]]
                yield Neighbour("two parts exchanged", separator.join(exchanged))
        yield Neighbour("reversed", separator.join(reversed(parts)))
    elements = value(answer)
    if isinstance(elements, list) and elements:
        yield Neighbour("an element added", json.dumps([*elements, elements[-1]]))
        yield Neighbour("an element dropped", json.dumps(elements[:-1]))
        if isinstance(elements[0], list):
            yield Neighbour("an element added inside", json.dumps([[*elements[0], *elements[0][:1]], *elements[1:]]))


def _words_added(answer: str, others: Sequence[str], rng: random.Random) -> Iterator[Neighbour]:
    """Beside one word, another of this answer or of an answer to another task."""
    words = re.findall(r"\S+", answer)
    foreign = sorted({word for text in (answer, *others) for word in text.split()})
    for _ in range(MAX_EACH if len(foreign) > 1 else 0):
        index, word = rng.randrange(len(words)), rng.choice(foreign)
        yield Neighbour("a word added", " ".join([*words[: index + 1], word, *words[index + 1 :]]))


def _whole_changed(answer: str, others: Sequence[str]) -> Iterator[Neighbour]:
    """Cut in half, extended, hedged, or the answer to another task."""
    if len(answer) > 1:
        yield Neighbour("the first half", answer[: len(answer) // 2])
        yield Neighbour("the second half", answer[len(answer) // 2 :])
    yield Neighbour("said twice", f"{answer} {answer}")
    yield Neighbour("words before", f"The answer is {answer}")
    yield Neighbour("words after", f"{answer} or something else")
    for other in [each for each in others if not means_the_same(each, answer)][:4]:
        yield Neighbour("the answer to another task", other)
        yield from (Neighbour("hedged", f"{answer}{joint}{other}") for joint in (" or ", ", ", "\n", " "))
        yield from (Neighbour("hedged", f"{other}{joint}{answer}") for joint in (" or ", ", ", "\n", " "))


def _next_letter(letter: str) -> str:
    return {"z": "a", "Z": "A"}.get(letter) or chr(ord(letter) + 1)


def _nudged(number: str) -> str:
    """A thousandth more, so that a number is neither what it was nor rounded to it."""
    return f"{number}001" if "." in number else f"{number}.001"


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
