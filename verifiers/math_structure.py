r"""The shape of an answer: number, expression, tuple or interval, set, list, union, matrix, relation. Nothing is compared.

`\pm` makes two answers, `\{x \mid x > 5\}` is its condition, `x \in S` is S under the name x.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from verifiers.math_number import Number, exact_number
from verifiers.math_text import closing_bracket, literal_key, outermost, split_outermost, trimmed


@dataclass(frozen=True, slots=True)
class Leaf:
    """What has no structure of its own: a number, an expression, a word."""

    text: str
    number: Number | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A tuple or an interval: which, its brackets say. `(1, 2)` is both, as on paper."""

    opening: str
    closing: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """Several answers in no order: a set in braces (`is_set`), or a bare list."""

    items: tuple[Node, ...]
    is_set: bool = False


@dataclass(frozen=True, slots=True)
class Union:
    """Parts joined by a union sign, in no order."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    r"""`terms[i] signs[i] terms[i+1]`: an assignment, an equation, an inequality, a chain. A sign is = < > or a command."""

    terms: tuple[Node, ...]
    signs: tuple[str, ...]


Node = Leaf | Row | Many | Union | Matrix | Relation

MAX_NESTING = 12
INFINITY, MINUS_INFINITY = Leaf(r"\infty"), Leaf(r"-\infty")
REALS = Row("(", ")", (MINUS_INFINITY, INFINITY))
FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", "=": "=", r"\neq": r"\neq"}

_SEMICOLON = re.compile(r"\s*;\s*")
_AND_OR = r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z])"
_COMMA = re.compile(rf"\s*,\s*(?:{_AND_OR})?\s*|\s*(?:{_AND_OR})\s*")
_BAR = re.compile(r"\\mid(?![A-Za-z])|\||:")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_SIGN = re.compile(r"\\(?:leq|geq|neq|in|approx)(?![A-Za-z])|[=<>]")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MATRIX = re.compile(
    r"(?:\[\s*|\(\s*)?\\begin\s*\{(?P<kind>[pbB]?matrix|array|smallmatrix)\}(?:\s*\{[lcr|\s]*\})?(?P<body>.*)\\end\s*\{(?P=kind)\}\s*[\])]?"
)
_CASES = re.compile(r"\\begin\s*\{(?P<kind>cases|aligned|gathered)\}(?P<body>[^&]*)\\end\s*\{(?P=kind)\}")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])")
_REALS = re.compile(r"\\mathbb\s*\{?R\}?|(?:\\text\s*\{\s*)?[Aa]ll real(?:s| numbers)\s*\}?")
_POINTS_OUT = re.compile(r"\\mathbb\s*\{?R\}?\s*(?:\\setminus|-)\s*\\\{(?P<points>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\\\}")
_ROWS = re.compile(r"\\cr(?![A-Za-z])")
_CELLS = re.compile(r"&")
_NAME = re.compile(r"[A-Za-z]|\\[A-Za-z]+")
_NAME_PARTS = re.compile(
    r"\\(?:frac|overline|vec|hat|bar|overrightarrow|angle|triangle|mathbb|text|Delta|widehat|sphericalangle|measuredangle)(?![A-Za-z])|[A-Za-z'|:{}\s]"
    r"|_\{?\w+\}?|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|varphi|omega|sigma|rho|tau|psi|epsilon|ell|max|min)(?![A-Za-z])"
    r"|\([\w\s,]*\)|\^\s*\{-1\}"
)


@lru_cache(maxsize=65536)
def structure(text: str) -> Node:
    """The structure of a normalized answer. Total: what has none is a Leaf."""
    return _parse(text, 0)


def is_name(node: Node) -> bool:
    r"""Whether a term could name a quantity: `x`, `a_3`, `f(x)`, `|AB|`, `V_1:V_2`, `(p, q)`; not `5`, `2x`, `a + b`."""
    if isinstance(node, Row):
        return (node.opening, node.closing) == ("(", ")") and all(is_name(item) for item in node.items)
    if not isinstance(node, Leaf) or node.number is not None:
        return False
    return bool(_NAME.search(node.text)) and not _NAME_PARTS.sub("", node.text).strip()


def is_word(text: str) -> bool:
    """Whether a text is words and no mathematics, so that nothing but the same words equals it."""
    plain = literal_key(text)
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z' .-]*", plain)) and (len(plain) > 3 or r"\text" in text)


def _parse(text: str, level: int) -> Node:
    text = trimmed(text)
    number = exact_number(text)
    if number is not None or level > MAX_NESTING:
        return Leaf(text, number)
    for parse in (_matrix, _list, _relation, _union, _without_points, _bracketed, _plus_minus):
        node = parse(text, level + 1)
        if node is not None:
            return node
    return REALS if _REALS.fullmatch(text) else Leaf(text)


def _list(text: str, level: int) -> Node | None:
    """Answers joined by semicolons, commas, `and`, `or`. With semicolons, what the commas join belongs together."""
    groups = [piece for piece in split_outermost(text, _SEMICOLON) if piece.strip()]
    if len(groups) > 1:
        return _many([_grouped(piece, level) for piece in groups])
    pieces = [piece for piece in split_outermost(text, _COMMA) if piece.strip()]
    if len(pieces) < 2:
        return None
    items = [_parse(piece, level) for piece in pieces]
    chain = _between(items) if not _OR.search(text) else None
    return chain or _many(items)


def _between(items: list[Node]) -> Node | None:
    """`x > 1 and x < 3` as `1 < x < 3`; None where that is not one interval between numbers."""
    bounds: dict[str, tuple[Leaf, str]] = {}
    names: set[Node] = set()
    for item in items:
        if not isinstance(item, Relation) or len(item.terms) != 2 or item.signs[0] not in FLIPPED:
            return None
        (name, bound), sign = item.terms, item.signs[0]
        if is_name(bound) and not is_name(name):
            name, bound, sign = bound, name, FLIPPED[sign]
        if not is_name(name) or not isinstance(bound, Leaf) or bound.number is None or sign[0] == "=":
            return None
        names.add(name)
        bounds["<" if sign in ("<", r"\leq") else ">"] = (bound, sign)
    if len(items) != 2 or len(names) != 1 or len(bounds) != 2:
        return None
    (lower, above), (upper, below) = bounds[">"], bounds["<"]
    assert lower.number is not None
    assert upper.number is not None
    if lower.number.value >= upper.number.value:
        return None
    return Relation((lower, names.pop(), upper), (FLIPPED[above], below))


def _grouped(text: str, level: int) -> Node:
    """`p = 5, q = 2` between semicolons is one answer of two parts."""
    node = _parse(text, level)
    return Row("(", ")", node.items) if isinstance(node, Many) and not node.is_set and r"\pm" not in text else node


def _many(items: list[Node], *, is_set: bool = False) -> Many:
    flat = [part for item in items for part in (item.items if isinstance(item, Many) and not item.is_set else (item,))]
    return Many(tuple(flat), is_set)


def _relation(text: str, level: int) -> Node | None:
    signs = outermost(text, _SIGN)
    if not signs:
        return None
    terms = split_outermost(text, _SIGN)
    if any(not term.strip() for term in terms[1:]):
        return None
    if not terms[0].strip():
        return _parse(terms[1], level) if len(terms) == 2 and signs[0][0] in ("=", r"\approx") else None
    return Relation(tuple(_parse(term, level) for term in terms), tuple(sign[0] for sign in signs))


def _union(text: str, level: int) -> Node | None:
    parts = split_outermost(text, _UNION)
    return Union(tuple(_parse(part, level) for part in parts)) if len(parts) > 1 else None


def _without_points(text: str, level: int) -> Node | None:
    r"""`\mathbb{R} \setminus \{1, 2\}` as the union of the open intervals between the points."""
    match = _POINTS_OUT.fullmatch(text)
    if match is None:
        return None
    points = [_parse(piece, level) for piece in _COMMA.split(match["points"])]
    if not all(isinstance(point, Leaf) and point.number is not None for point in points):
        return None
    ordered = sorted(points, key=lambda point: point.number.value)  # type: ignore[union-attr]
    ends = (MINUS_INFINITY, *ordered, INFINITY)
    return Union(tuple(Row("(", ")", pair) for pair in pairwise(ends)))


def _bracketed(text: str, level: int) -> Node | None:
    """A set, a tuple, an interval, or brackets around a single thing."""
    if text in (r"\emptyset", r"\{\}", r"\{ \}"):
        return Many((), is_set=True)
    opening = next((bracket for bracket in (r"\{", r"\langle", "(", "[") if text.startswith(bracket)), None)
    if opening is None or closing_bracket(text, 0) != len(text) - 1:
        return None
    closing = next(bracket for bracket in (r"\}", r"\rangle", ")", "]", "}") if text.endswith(bracket))
    inside = text[len(opening) : len(text) - len(closing)]
    if (opening, closing) == (r"\{", r"\}"):
        return _set(inside, level)
    pieces = split_outermost(inside, _SEMICOLON) if ";" in inside else split_outermost(inside, _COMMA)
    if len(pieces) == 1:
        return _parse(inside, level) if (opening, closing) == ("(", ")") else None
    if opening == r"\langle":
        opening, closing = "(", ")"
    return Row(opening, closing, tuple(_parse(piece, level) for piece in pieces))


def _set(inside: str, level: int) -> Node:
    r"""The elements, or the condition of `\{x \mid condition\}`."""
    bars = outermost(inside, _BAR)
    if bars:
        name, condition = inside[: bars[0].start()], inside[bars[0].end() :]
        if is_name(_parse(name.partition(r"\in")[0], level)) and outermost(condition, _SIGN):
            return _parse(condition, level)
    pieces = split_outermost(inside, _SEMICOLON) if ";" in inside else split_outermost(inside, _COMMA)
    return _many([_parse(piece, level) for piece in pieces if piece.strip()], is_set=True)


def _matrix(text: str, level: int) -> Node | None:
    if r"\begin" not in text:
        return None
    if (cases := _CASES.fullmatch(text)) is not None:
        return _many([_parse(row, level) for row in _ROWS.split(cases["body"]) if row.strip()])
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match["body"]:
        return None
    rows = [row for row in _ROWS.split(match["body"]) if row.strip()]
    cells = tuple(tuple(_parse(cell, level) for cell in _CELLS.split(row)) for row in rows)
    return Matrix(cells) if cells and len({len(row) for row in cells}) == 1 else None


def _plus_minus(text: str, level: int) -> Node | None:
    if len(_PLUS_MINUS.findall(text)) != 1:
        return None
    return _many([_parse(_PLUS_MINUS.sub(sign, text), level) for sign in ("+", "-")])
