"""What a relation states: a value under a name, or a set under a name. By structure alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from verifiers.math_structure import FLIPPED, INFINITY, MINUS_INFINITY, Leaf, Many, Node, Relation, Row, Union, is_name
from verifiers.math_text import literal_key

# |z| and |w| are as often distances in the plane.
_ABSOLUTE = re.compile(r"\|([a-vxy])\|")
_MIRRORED = {"(": ")", ")": "(", "[": "]", "]": "["}


class Assignment(NamedTuple):
    """`x = 5` as a name, "" for a value without one, and its value."""

    name: str
    value: Node


def assignment_of(relation: Relation) -> Assignment | None:
    r"""What `x = 5`, `5 = x`, `x = 2 + 3 = 5`, `x = 1/3 \approx 0.33` or `1/3 \approx 0.33` states; None for other relations.

    What follows \approx is no part of the statement. A chain that names two different numbers states nothing.
    """
    if any(sign not in ("=", r"\approx") for sign in relation.signs):
        return None
    num_exact = relation.signs.index(r"\approx") + 1 if r"\approx" in relation.signs else len(relation.terms)
    terms = relation.terms[:num_exact]
    if len(terms) == 1:
        is_named = is_name(terms[0])
        return Assignment(_name(terms[0]), relation.terms[1]) if is_named and len(relation.terms) == 2 else Assignment("", terms[0])
    if not is_name(terms[0]):
        return Assignment(_name(terms[1]), terms[0]) if len(terms) == 2 and is_name(terms[1]) else None
    numbers = {term.number.value for term in terms[1:] if isinstance(term, Leaf) and term.number is not None}
    return Assignment(_name(terms[0]), terms[-1]) if len(numbers) <= 1 else None


def region_of(relation: Relation) -> Assignment | None:
    r"""The name and the set that `x \in S`, `x > 5`, `1 < x \leq 2`, `x \neq 3` or `|x| < 2` describe; None for other relations."""
    region = _region(relation)
    absolute = _ABSOLUTE.fullmatch(region.name) if region is not None else None
    if region is None or absolute is None:
        return region
    unfolded = _both_sides(region.value)
    return None if unfolded is None else Assignment(absolute[1], unfolded)


def _both_sides(region: Node) -> Node | None:
    """The x whose |x| lies in an interval; None where the interval is none, or reaches below 0 otherwise than without bound."""
    if not isinstance(region, Row):
        return None
    lower, upper = region.items
    if lower == MINUS_INFINITY:
        below = _negative(upper)
        return None if below is None else Row(_MIRRORED[region.closing], region.closing, (below, upper))
    least, most = _negative(lower), MINUS_INFINITY if upper == INFINITY else _negative(upper)
    if least is None or most is None:
        return None
    return Union((Row(_MIRRORED[region.closing], _MIRRORED[region.opening], (most, least)), region))


def _negative(bound: Node) -> Leaf | None:
    """Minus a bound that is a positive number, or a product without a sign of its own."""
    if not isinstance(bound, Leaf) or re.search("[-+]", bound.text):
        return None
    if bound.number is None:
        return Leaf(f"-{bound.text}")
    return Leaf(f"-{bound.text}", replace(bound.number, value=-bound.number.value)) if bound.number.value > 0 else None


def _region(relation: Relation) -> Assignment | None:
    terms, signs = relation.terms, relation.signs
    if len(terms) == 2 and signs[0] == r"\in":
        return Assignment(_name(terms[0]), terms[1]) if is_name(terms[0]) else None
    if any(sign not in ("<", ">", r"\leq", r"\geq", r"\neq") for sign in signs):
        return None
    if len(terms) == 2:
        if is_name(terms[1]) and not is_name(terms[0]):
            terms, signs = terms[::-1], (FLIPPED[signs[0]],)
        if not is_name(terms[0]) or not isinstance(terms[1], Leaf):
            return None
        below = Row("(", "]" if signs[0] == r"\leq" else ")", (MINUS_INFINITY, terms[1]))
        above = Row("[" if signs[0] == r"\geq" else "(", ")", (terms[1], INFINITY))
        if signs[0] == r"\neq":
            return Assignment(_name(terms[0]), Union((below, above)))
        return Assignment(_name(terms[0]), below if signs[0] in ("<", r"\leq") else above)
    if len(terms) != 3 or not is_name(terms[1]):
        return None
    if signs[0] in (">", r"\geq"):
        terms, signs = terms[::-1], tuple(FLIPPED[sign] for sign in signs[::-1])
    if any(sign not in ("<", r"\leq") for sign in signs):
        return None
    brackets = ("[" if signs[0] == r"\leq" else "(", "]" if signs[1] == r"\leq" else ")")
    return Assignment(_name(terms[1]), Row(*brackets, (terms[0], terms[2])))


def named(items: Iterable[Node]) -> list[Assignment]:
    """Elements with their names. In `a = 4, -8` the name stands for what follows it."""
    named: list[Assignment] = []
    for item in items:
        assignment = assignment_of(item) if isinstance(item, Relation) else None
        if assignment is None:
            follows = named[-1].name if named and isinstance(item, Leaf) else ""
            assignment = Assignment(follows, item)
        named.append(assignment)
    return named


def regrouped(many: Many) -> Many:
    """`p = 5, q = 2, p = 7, q = 2` as two answers of two parts; any other list as it is."""
    names = [assignment.name for assignment in named(many.items)]
    period = names.index(names[0], 1) if names and names[0] and names[0] in names[1:] else 0
    if period < 2 or names != names[:period] * (len(names) // period):
        return many
    groups = [many.items[at : at + period] for at in range(0, len(names), period)]
    return Many(tuple(Row("(", ")", group) for group in groups), many.is_set)


def _name(node: Node) -> str:
    if isinstance(node, Row):
        return ",".join(_name(item) for item in node.items)
    return literal_key(node.text) if isinstance(node, Leaf) else ""
