"""Whether an answer equals a reference, by structure: element by element, exact numbers at once, the rest as open questions.

Three-valued: True, False, or None while questions about expressions are open. Whoever compares asks them (in a killable worker) and
compares again with the replies known. Nothing here computes with expressions, so everything here ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from verifiers.math_number import Number, unit_of
from verifiers.math_relation import FLIPPED, Assignment, assignment_of, named, region_of, regrouped
from verifiers.math_structure import Leaf, Many, Matrix, Node, Relation, Row, Union, is_word
from verifiers.math_text import literal_key

Percent = Literal["value", "number", "either"]
Units = Literal["optional", "required", "ignored"]

# What leaves the work undone: accepted only where the reference has it too.
_HEADS = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf|gcd|lcm|max|min|det|bmod|pmod|mod|lfloor|lceil|partial|nabla|dots|sup|inf|deg|arg)"
    r"(?![A-Za-z])|\\frac\s*\{\s*d\s*\}|\\frac\s*\{\s*d\s|!|\\begin|\?"
)
_TOWER = re.compile(r"\d\s*\^\s*\{[^{}]*\d\s*\^")
_TRAILING_UNIT = re.compile(r"(?P<body>.*[^\s\\])\s*(?P<unit>\\text\s*\{[^{}0-9]*\}\s*(?:\^\s*\{[23]\})?|°)$")
_MAX_MATCHED = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """How strictly answers are compared; the options of the verifier `math`."""

    percent: Percent = "value"
    units: Units = "optional"
    tolerance: float = 0.0
    evaluated: bool = True
    vectors: bool = False


class Question(NamedTuple):
    """Are two expressions equal ("equal": one text on each side), or two relations ("relation": left side, sign, right side)?"""

    kind: Literal["equal", "relation"]
    reference: tuple[str, ...]
    answer: tuple[str, ...]


class Comparison:
    """One comparison under a policy. `replies` are known, `open` collects what must be asked, `notes` why things differ."""

    def __init__(self, policy: Policy, replies: Mapping[Question, bool]) -> None:
        self.policy = policy
        self.replies = replies
        self.open: dict[Question, None] = {}
        self.notes: list[str] = []

    def equal(self, reference: Node, answer: Node) -> bool | None:
        """Whether the answer has the reference's value and shape; None while questions are open."""
        if reference == answer:
            return True
        if isinstance(reference, Relation) and isinstance(answer, Relation):
            return self._relations(reference, answer)
        if isinstance(answer, Relation):
            return self._relation_and_value(answer, lambda node: self.equal(reference, node), reference)
        if isinstance(reference, Relation):
            return self._relation_and_value(reference, lambda node: self.equal(node, answer), answer)
        if isinstance(reference, Many) and isinstance(answer, Many):
            return self._lists(regrouped(reference), regrouped(answer))
        if isinstance(reference, Many) or isinstance(answer, Many):
            return self._list_and_other(reference, answer)
        if isinstance(reference, Row) and isinstance(answer, Row):
            same_brackets = (reference.opening, reference.closing) == (answer.opening, answer.closing)
            return self._in_order(reference.items, answer.items) if same_brackets else self._differ("other brackets")
        if isinstance(reference, Union) and isinstance(answer, Union):
            return self._in_any_order(reference.parts, answer.parts)
        if isinstance(reference, Matrix) or isinstance(answer, Matrix):
            return self._matrices(reference, answer)
        if isinstance(reference, Leaf) and isinstance(answer, Leaf):
            return self._leaves(reference, answer)
        return self._differ("another kind of object")

    def _differ(self, note: str) -> bool:
        self.notes.append(note)
        return False

    def _ask(self, question: Question) -> bool | None:
        if question not in self.replies:
            self.open[question] = None
            return None
        return self.replies[question]

    def _leaves(self, reference: Leaf, answer: Leaf) -> bool | None:
        wanted, given = _key(reference.text), _key(answer.text)
        if wanted == given:
            return True
        if reference.number is not None and answer.number is not None:
            return numbers_equal(reference.number, answer.number, self.policy) or self._differ("another number")
        if is_word(reference.text) or is_word(answer.text):
            return (wanted.lower() == given.lower() and len(wanted) > 1) or self._differ("other words")
        if reference.number is not None and self.policy.evaluated:
            return self._differ("not evaluated to a number")
        missing = {head[0] for head in _HEADS.finditer(answer.text)} - {head[0] for head in _HEADS.finditer(reference.text)}
        if missing or (_TOWER.search(answer.text) and not _TOWER.search(reference.text)):
            return self._differ("not a closed form")
        (wanted, wanted_unit), (given, given_unit) = _without_unit(reference), _without_unit(answer)
        if not _units_agree(wanted_unit, given_unit, self.policy.units):
            return self._differ("another unit")
        if wanted == given:
            return True
        return self._ask(Question("equal", (wanted,), (given,)))

    def _relation_and_value(self, relation: Relation, compare: Callable[[Node], bool | None], other: Node) -> bool | None:
        """`x = 5` and `5`, `x > 5` and `(5, \\infty)`."""
        region = region_of(relation)
        if region is not None and isinstance(other, (Row, Union, Many)):
            return compare(region.value)
        assignment = assignment_of(relation)
        return (
            compare(assignment.value) if assignment is not None else self._differ("a relation instead of a value, or the reverse")
        )

    def _relations(self, reference: Relation, answer: Relation) -> bool | None:
        wanted, given = assignment_of(reference), assignment_of(answer)
        if wanted is not None and given is not None and (wanted.name == given.name or not wanted.name or not given.name):
            return self.equal(wanted.value, given.value)
        wanted_region, given_region = region_of(reference), region_of(answer)
        if wanted_region is not None and given_region is not None and wanted_region.name == given_region.name:
            return self.equal(wanted_region.value, given_region.value)
        for candidate in (answer, Relation(answer.terms[::-1], tuple(FLIPPED.get(sign, "") for sign in answer.signs[::-1]))):
            if candidate.signs == reference.signs and all(map(_same_key, candidate.terms, reference.terms)):
                return True
        if len(reference.terms) != 2 or len(answer.terms) != 2:
            return self._differ("another relation")
        sides = [term.text for term in (*reference.terms, *answer.terms) if isinstance(term, Leaf)]
        signs = (reference.signs[0], answer.signs[0])
        if len(sides) < 4 or any(sign not in FLIPPED for sign in signs):
            return self._differ("another relation")
        if wanted is not None and given is not None and isinstance(wanted.value, Leaf) and wanted.value.number is not None:
            return self._differ("another name")
        return self._ask(Question("relation", (sides[0], signs[0], sides[1]), (sides[2], signs[1], sides[3])))

    def _lists(self, reference: Many, answer: Many) -> bool | None:
        wanted, given = named(reference.items), named(answer.items)
        if any(item.name for item in wanted) and any(item.name for item in given):
            return self._in_any_order(map(_as_relation, wanted), map(_as_relation, given))
        values, others = [item.value for item in wanted], [item.value for item in given]
        # "x = 1, y = 2" and "1, 2": without the names, the order is all that tells which is which.
        if len({item.name for item in (*wanted, *given) if item.name}) > 1:
            return self._in_order(values, others)
        return self._in_any_order(values, others)

    def _list_and_other(self, reference: Node, answer: Node) -> bool | None:
        """A list without braces and a tuple agree in order; one element is itself; `x < 1 or x > 5` is a union."""
        many, other = (reference, answer) if isinstance(reference, Many) else (answer, reference)
        assert isinstance(many, Many)
        swap = many is answer
        compare = (lambda a, b: self.equal(b, a)) if swap else self.equal
        if len(set(many.items)) == 1:
            return compare(many.items[0], other)
        if isinstance(other, Row) and not many.is_set and (other.opening, other.closing) == ("(", ")"):
            values = tuple(item.value for item in named(many.items))
            return self._in_order(other.items, values) if swap else self._in_order(values, other.items)
        regions = [region_of(item) for item in many.items if isinstance(item, Relation)]
        if isinstance(other, Union) and len(regions) == len(many.items) and all(regions):
            return compare(Union(tuple(region.value for region in regions if region is not None)), other)
        return self._differ("another kind of object")

    def _matrices(self, reference: Node, answer: Node) -> bool | None:
        wanted, given = _matrix_rows(reference, self.policy.vectors), _matrix_rows(answer, self.policy.vectors)
        if wanted is None or given is None or [len(row) for row in wanted] != [len(row) for row in given]:
            return self._differ("another shape")
        return self._in_order([cell for row in wanted for cell in row], [cell for row in given for cell in row])

    def _in_order(self, reference: Iterable[Node], answer: Iterable[Node]) -> bool | None:
        wanted, given = list(reference), list(answer)
        if len(wanted) != len(given):
            return self._differ(f"{len(given)} elements instead of {len(wanted)}")
        return _all(self.equal(w, g) for w, g in zip(wanted, given, strict=True))

    def _in_any_order(self, reference: Iterable[Node], answer: Iterable[Node]) -> bool | None:
        """Every element of one has an equal in the other. Repetitions do not count."""
        wanted, given = list(dict.fromkeys(reference)), list(dict.fromkeys(answer))
        if len(wanted) > _MAX_MATCHED or len(given) > _MAX_MATCHED:
            return self._in_order(wanted, given)
        matches = [[self.equal(w, g) for g in given] for w in wanted]
        columns = [[row[i] for row in matches] for i in range(len(given))]
        found = _all(_any(line) for line in (*matches, *columns))
        return found if found is not False else self._differ("other elements")


def numbers_equal(reference: Number, answer: Number, policy: Policy) -> bool:
    """Whether two exact numbers agree in value, unit and percent under a policy."""
    if not _units_agree(reference.unit, answer.unit, policy.units):
        return False
    return any(_close(w, g, policy.tolerance) for w, g in _percent_readings(reference, answer, policy.percent))


def _percent_readings(reference: Number, answer: Number, percent: Percent) -> list[tuple[Fraction, Fraction]]:
    as_values = tuple(n.value / 100 if n.is_percent else n.value for n in (reference, answer))
    as_numbers = (reference.value, answer.value)
    return {"value": [as_values], "number": [as_numbers], "either": [as_values, as_numbers]}[percent]


def _close(reference: Fraction, answer: Fraction, tolerance: float) -> bool:
    return abs(reference - answer) <= Fraction(tolerance) * abs(reference)


def _units_agree(reference: str, answer: str, units: Units) -> bool:
    if units == "ignored" or reference == answer:
        return True
    return not reference or (units == "optional" and not answer)


def _without_unit(leaf: Leaf) -> tuple[str, str]:
    """An expression and the name of the unit after it, "" when there is none."""
    match = _TRAILING_UNIT.match(leaf.text)
    unit = unit_of(match["unit"], False) if match else None
    if match is None or unit is None or unit[1] != 1:
        return leaf.text, ""
    return match["body"], unit[0]


def _as_relation(item: Assignment) -> Node:
    return Relation((Leaf(item.name), item.value), ("=",)) if item.name else item.value


def _key(text: str) -> str:
    """What two leaves must share to be the same text: no leading plus, no brackets around the letter of a choice."""
    key = literal_key(text).removeprefix("+")
    return key[1:-1] if re.fullmatch(r"\([A-Za-z]\)", key) else key


def _same_key(one: Node, other: Node) -> bool:
    return one == other or (isinstance(one, Leaf) and isinstance(other, Leaf) and _key(one.text) == _key(other.text))


def _matrix_rows(node: Node, vectors: bool) -> tuple[tuple[Node, ...], ...] | None:
    """The rows of a matrix. With `vectors`, a column, a row and a tuple are all one column."""
    if isinstance(node, Matrix):
        is_vector = len(node.rows) == 1 or len(node.rows[0]) == 1
        return tuple((cell,) for row in node.rows for cell in row) if vectors and is_vector else node.rows
    if vectors and isinstance(node, Row) and (node.opening, node.closing) == ("(", ")"):
        return tuple((item,) for item in node.items)
    return None


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    return False if False in known else None if None in known else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    return True if True in known else None if None in known else False
