r"""Completions that a verifier should survive: generated, each with a name that says what it is.

None is a right answer to anything. `hostile_texts()` gives over a thousand, a few of them megabytes; `few_hostile_texts()` the
simplest, and the first of each other kind. Answers stand in boxes, so that they get as far as they can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

MEGABYTE = 2**20
Named = tuple[str, str]

_SIZES = (3, 10, 40, 100, 600)
_LARGE = (10_000, 100_000, 400_000)


def hostile_texts() -> Iterator[Named]:
    """All of them, in a fixed order."""
    for name, texts in _KINDS.items():
        for number, text in enumerate(texts()):
            yield f"{name} {number}", text


def few_hostile_texts(each: int = 1) -> Iterator[Named]:
    """All of the simple ones, and the first of every other kind."""
    for name, texts in _KINDS.items():
        for number, text in enumerate(texts() if texts is _simple else islice(texts(), each)):
            yield f"{name} {number}", text


def _boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


def _simple() -> Iterator[str]:
    yield from ("", " ", "\n", "\x00", "\ufeff", "\u202e", "\\", "{", "}", "$", "<think>", "</think>", "\\boxed{}", "\\boxed")
    yield from ("\ud800", "\udfff\ud800", "\x00\ud800", "\\boxed{\ud800}", "a" * MEGABYTE, "\\boxed{" * 10_000, "{" * 10_000)


def _nested() -> Iterator[str]:
    pairs = [
        ("{", "}"), ("(", ")"), ("[", "]"), (r"\{", r"\}"), (r"\left(", r"\right)"), (r"\frac{1}{", "}"), (r"\frac{", "}{2}"),
        (r"\sqrt{", "}"), (r"\sqrt[3]{", "}"), ("|", "|"), (r"\boxed{", "}"), (r"\text{", "}"), ("x^{", "}"), ("x_{", "}"),
        (r"\sin(", ")"), (r"\ln(", ")"), (r"\overline{", "}"), (r"\lfloor ", r"\rfloor "), (r"\abs{", "}"), (r"\binom{", "}{2}"),
        (r"\begin{pmatrix}", r"\end{pmatrix}"), (r"\sum_{k=1}^{n}", ""), (r"\langle ", r"\rangle "), ("e^{", "}"),
        (r"\lim_{x\to 0}", ""),
    ]  # fmt: skip
    for opening, closing in pairs:
        for depth in _SIZES:
            yield _boxed(opening * depth + "2" + closing * depth)
            yield _boxed(opening * depth + "2" + closing * (depth - 1))


def _unclosed() -> Iterator[str]:
    openers = [
        "\\boxed{",
        "{",
        "(",
        "[",
        "$",
        "\\(",
        "\\[",
        "\\begin{pmatrix}",
        "\\frac{",
        "<think>",
        "\\left(",
        "$$",
        "\\text{",
        "\\{",
    ]
    for opener in openers:
        for times in (1, 2, *_LARGE):
            yield opener * times
            yield f"\\boxed{{1}} {opener * times}"


def _towers() -> Iterator[str]:
    for base in ("2", "9", "10", "99999", "x", "-2", "0.5", r"\pi", "e", r"\frac{1}{2}"):
        for height in (2, 3, 4, 5, 8, 30):
            yield _boxed("^{".join([base] * height) + "}" * (height - 1))
            yield _boxed("^".join([base] * height))
            yield _boxed("(" * (height - 1) + base + f")^{{{base}}}" * (height - 1))


def _powers() -> Iterator[str]:
    for base in ("2", "-3", "123456789", "0.1", r"\frac{2}{3}", "x", "(x+1)", "(x+y+z)", r"(\sqrt{2}+1)", "(1+i)"):
        for exponent in (50, 999, 9999, 99999, 10**9, 10**50):
            yield _boxed(f"{base}^{{{exponent}}}")
            yield _boxed(f"{base}^{{-{exponent}}}+1")


def _factorials() -> Iterator[str]:
    for number in (5, 20, 170, 999, 1000, 9999, 10**6, 10**12):
        for marks in ("!", "!!", "!!!!", "!" * 50):
            yield _boxed(f"{number}{marks}")
        yield _boxed(f"({number}!)!")
        yield _boxed(rf"\binom{{{number}}}{{{number // 2}}}")
        yield _boxed(rf"\frac{{{number}!}}{{{number - 1}!}}")
        yield _boxed("(" * 20 + str(number) + ")!" * 20)


def _sums() -> Iterator[str]:
    terms: list[Callable[[int], str]] = [
        lambda n: rf"\sqrt{{{n}}}",
        lambda n: rf"\frac{{1}}{{{n}}}",
        lambda n: rf"\sin({n}x)",
        lambda n: f"x^{{{n}}}",
        lambda n: rf"\frac{{1}}{{x+{n}}}",
        lambda n: rf"\ln({n})",
        lambda n: rf"\sqrt[{n}]{{{n + 1}}}",
        lambda n: f"a_{{{n}}}",
        lambda n: rf"e^{{{n}x}}",
        lambda n: rf"|x-{n}|",
        lambda n: rf"\arctan({n})",
    ]
    for term in terms:
        for size in (4, 12, 40, 120):
            pieces = [term(n) for n in range(2, size + 2)]
            yield _boxed("+".join(pieces))
            yield _boxed(r"\cdot ".join(pieces))
            yield _boxed(rf"\frac{{{'+'.join(pieces)}}}{{{'-'.join(pieces)}}}")
            yield _boxed(f"({'+'.join(pieces)})^{{7}}")


def _lists() -> Iterator[str]:
    for size in (50, 200, 300, 5000):
        numbers = ", ".join(map(str, range(size)))
        roots = ", ".join(rf"\sqrt{{{n}}}" for n in range(size))
        for opening, closing in (("", ""), (r"\{", r"\}"), ("(", ")"), ("[", "]")):
            yield _boxed(opening + numbers + closing)
            yield _boxed(opening + roots + closing)
        yield _boxed(r" \cup ".join(f"({n},{n + 1})" for n in range(size)))
        yield _boxed(" = ".join(f"x_{{{n}}}" for n in range(size)))
        yield _boxed(" < ".join(map(str, range(size))))
        yield _boxed(r" \text{ or } ".join(map(str, range(size))))
        yield _boxed(r"\pm " * size + "1")
        yield _boxed("(1, " * size + ")" * size)


def _matrices() -> Iterator[str]:
    for rows, columns in ((1, 100), (100, 1), (15, 15), (40, 40), (3, 1000)):
        body = r" \\ ".join(" & ".join([r"\sqrt{2}"] * columns) for _ in range(rows))
        for kind in ("pmatrix", "bmatrix", "array"):
            yield _boxed(rf"\begin{{{kind}}}{body}\end{{{kind}}}")
        yield _boxed(r"\begin{pmatrix}" + body)
        yield _boxed(rf"\begin{{pmatrix}}{body}\end{{pmatrix}}^{{8}}")


def _digits() -> Iterator[str]:
    for size in (41, 300, 401, 5000, MEGABYTE):
        for pattern in ("9", "0", "1,", "1 ", "0.", "-", "+", "1/", "1e", ".", "1,000,"):
            yield _boxed((pattern * size)[:size] + "1")
        yield _boxed("0." + "3" * size)
        yield _boxed(f"{'9' * (size // 2)}/{'7' * (size // 2)}")


def _characters() -> Iterator[str]:
    for character in (
        "\x00",
        "\ud800",
        "\udfff",
        "\u200b",
        "\u0301",
        "\u202e",
        "\u2028",
        "\x85",
        "\U0010ffff",
        "½",
        "²",
        "√",
        "٣",
        "∞",
    ):
        for size in (1, 100, 1900, 100_000):
            yield _boxed(character * size)
            yield _boxed(f"4{character * size}2")
        yield character * 1000


def _prose() -> Iterator[str]:
    for phrase in (
        "word ",
        "answer is ",
        "the answer is $n$ is 41 is ",
        "and ",
        "41 or ",
        "\\boxed{41}",
        "$1$ and ",
        "#### ",
        "a, ",
    ):
        for size in (10, 1000, 100_000):
            yield phrase * size
            yield f"\\boxed{{{phrase * size}}}"
            yield f"<think>{phrase * size}</think>"


def _megabytes() -> Iterator[str]:
    for character in ("a", " ", "\n", "\\", "{", "}", "$", "9", "\x00", "*", "_", "<", ".", "'", "-", "=", "&"):
        yield character * MEGABYTE
        yield _boxed(character * MEGABYTE)


def _code() -> Iterator[str]:
    for code in (
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "(lambda: (yield))()",
        "exec(chr(49))",
        "{{7*7}} ${7*7} %s %n {0.__class__}",
        "S(0).func.__globals__",
        "'; DROP TABLE rewards; --",
    ):
        yield _boxed(code)
        yield _boxed(rf"\text{{{code}}}+\sqrt{{2}}")
        yield f"```python\n{code}\n```"


_KINDS: dict[str, Callable[[], Iterator[str]]] = {
    "simple": _simple,
    "nested": _nested,
    "unclosed": _unclosed,
    "tower": _towers,
    "power": _powers,
    "factorial": _factorials,
    "sum": _sums,
    "list": _lists,
    "matrix": _matrices,
    "digits": _digits,
    "characters": _characters,
    "prose": _prose,
    "megabyte": _megabytes,
    "code": _code,
}
