"""Whether an answer equals a reference, by structure: element by element, exact numbers at once, the rest as open questions.

Three-valued: True, False, or None while questions about expressions are open. Whoever compares asks them (in a killable worker) and
compares again with the replies known. Nothing here computes with expressions, so everything here ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from verifiers.math_policy import Policy, numbers_equal, rounding_margin, units_agree, without_unit
from verifiers.math_relation import FLIPPED, Assignment, assignment_of, named, region_of, regrouped
from verifiers.math_structure import Leaf, Many, Matrix, Node, Relation, Row, Union, is_word
from verifiers.math_text import literal_key

# What leaves the work undone: accepted only where the reference has it too.
_HEADS = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf|gcd|lcm|max|min|det|bmod|pmod|mod|lfloor|lceil|partial|nabla|dots|sup|inf|deg|arg)"
    r"(?![A-Za-z])|\\frac\s*\{\s*d\s*\}|\\frac\s*\{\s*d\s|!|\\begin|\?"
)
_TOWER = re.compile(r"\d\s*\^\s*\{[^{}]*\d\s*\^")
_CHOICE_NAME = re.compile("[A-J]")
_CHOICE = re.compile(r"(?:\((?P<bracketed>[A-J])\)|(?P<plain>[A-J])[.):])\s*(?P<content>\S.*)")
_OTHER_CHOICE = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J][.):]")
_MAX_MATCHED = 64
_MAX_REPEATED = 4


class Question(NamedTuple):
    """Are two expressions equal ("equal": one text on each side), or two relations ("relation": left side, sign, right side)?

    `margin` is how far apart two constants may be, as a fraction; "0" where they must be equal.
    """

    kind: Literal["equal", "relation"]
    reference: tuple[str, ...]
    answer: tuple[str, ...]
    margin: str = "0"


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
            return numbers_equal(reference, answer, self.policy) or self._differ("another number")
        if _CHOICE_NAME.fullmatch(wanted) and (choice := chosen(given)):
            return wanted == choice or self._differ("another choice")
        if is_word(reference.text) or is_word(answer.text):
            return (wanted.lower() == given.lower() and len(wanted) > 1) or self._differ("other words")
        if reference.number is not None and self.policy.evaluated:
            return self._differ("not evaluated to a number")
        missing = {head[0] for head in _HEADS.finditer(answer.text)} - {head[0] for head in _HEADS.finditer(reference.text)}
        if missing or (_TOWER.search(answer.text) and not _TOWER.search(reference.text)):
            return self._differ("not a closed form")
        (wanted, wanted_unit), (given, given_unit) = without_unit(reference), without_unit(answer)
        if not units_agree(wanted_unit, given_unit, self.policy.units):
            return self._differ("another unit")
        if wanted == given:
            return True
        return self._ask(Question("equal", (wanted,), (given,), str(rounding_margin(reference, answer, self.policy))))

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
        if self.policy.ordered and not (reference.is_set or answer.is_set):
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
        # "1/2 or 0.5" says one thing twice.
        if isinstance(other, Leaf) and not many.is_set and 0 < len(many.items) <= _MAX_REPEATED:
            return _all(compare(item, other) for item in many.items)
        if isinstance(other, Row) and not many.is_set and (other.opening, other.closing) == ("(", ")"):
            values = tuple(item.value for item in named(many.items))
            return self._in_order(other.items, values) if swap else self._in_order(values, other.items)
        regions = [region_of(item) for item in many.items if isinstance(item, Relation)]
        if isinstance(other, Union) and len(regions) == len(many.items) and all(regions):
            return compare(Union(tuple(region.value for region in regions if region is not None)), other)
        return self._differ("another kind of object")

    def _matrices(self, reference: Node, answer: Node) -> bool | None:
        if isinstance(reference, Leaf) or isinstance(answer, Leaf):
            return self._matrix_and_expression(reference, answer)
        wanted, given = _matrix_rows(reference, self.policy.vectors), _matrix_rows(answer, self.policy.vectors)
        if wanted is None or given is None or [len(row) for row in wanted] != [len(row) for row in given]:
            return self._differ("another shape")
        return self._in_order([cell for row in wanted for cell in row], [cell for row in given for cell in row])

    def _matrix_and_expression(self, reference: Node, answer: Node) -> bool | None:
        r"""A matrix and a product that makes one, such as `\frac{1}{2}` times a matrix; of several matrices only if so allowed."""
        texts = [_as_text(node) for node in (reference, answer)]
        if None in texts or any(r"\begin" not in str(text) for text in texts):
            return self._differ("another kind of object")
        if self.policy.evaluated and any(str(text).count(r"\begin") > 1 for text in texts):
            return self._differ("not evaluated to a matrix")
        return self._ask(Question("equal", (str(texts[0]),), (str(texts[1]),)))

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


def chosen(text: str) -> str | None:
    """The letter of `(B) 12` or `B. 12`, which names one choice and repeats what it says; None where several are named."""
    match = _CHOICE.fullmatch(text)
    if match is None or _OTHER_CHOICE.search(match["content"]):
        return None
    return match["bracketed"] or match["plain"]


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
    if isinstance(node, Row) and _is_bracketed(node) and all(map(_is_bracketed, node.items)):
        rows = tuple(item.items for item in node.items if isinstance(item, Row))
        return rows if len({len(row) for row in rows}) == 1 else None
    if vectors and isinstance(node, Row) and (node.opening, node.closing) == ("(", ")"):
        return tuple((item,) for item in node.items)
    return None


def _is_bracketed(node: Node) -> bool:
    return isinstance(node, Row) and node.opening + node.closing == "[]"


def _as_text(node: Node) -> str | None:
    """The text of a leaf, or of a matrix of leaves; None for anything else."""
    if isinstance(node, Leaf):
        return node.text
    if not isinstance(node, Matrix) or not all(isinstance(cell, Leaf) for row in node.rows for cell in row):
        return None
    rows = [" & ".join(cell.text for cell in row if isinstance(cell, Leaf)) for row in node.rows]
    return r"\begin{matrix}" + r"\cr ".join(rows) + r"\end{matrix}"


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    return False if False in known else None if None in known else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    return True if True in known else None if None in known else False
