"""Programs that try to pass without being right, and programs that are right although they look odd, put together from parts.

A program is some preludes (what it does when it is loaded), then a function with a body. With a right body it is right whatever
harmless preludes stand before it; with a wrong body it is wrong whatever stands before it. The parts stand in code_hack_bodies.py
and code_hack_preludes.py; the task is the same for all of them, in every form of tests.
"""

from __future__ import annotations

import itertools
import random
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from sandbox.agent.calls import Returned, encode_answer
from verifiers.code_hack_bodies import RIGHT_BODIES, SLY, WRONG_BODIES
from verifiers.code_hack_preludes import HARMFUL_PRELUDES, HARMLESS_PRELUDES, NEEDS_WALLS, WRITE_ALL


class Made(NamedTuple):
    """A program and the names of its parts."""

    parts: str
    source: str


# f(x) is a dict of an int and a list of ints.
EXPECTED = {x: {"double": 2 * x, "digits": [int(d) for d in str(x)]} for x in (7, 42, 305)}
CHECKER = """
def check(answer, case):
    x = case['args'][0]
    return answer == {'double': 2 * x, 'digits': [int(d) for d in str(x)]}
"""
CHECKS = {
    "asserts": "\n".join(f"    assert candidate({x}) == {y}" for x, y in EXPECTED.items()),
    "not different": "\n".join(f"    assert not candidate({x}) != {y}" for x, y in EXPECTED.items()),
    "all of a map": f"    assert all(map(lambda x, y: candidate(x) == y, {list(EXPECTED)}, {list(EXPECTED.values())}))",
    "a comprehension": f"    e = {EXPECTED}\n    assert [x for x in e if candidate(x) == e[x]] == list(e)",
    "unittest": f"    import unittest\n    for x, y in {EXPECTED}.items(): unittest.TestCase().assertEqual(candidate(x), y)",
    "a difference": f"    for x, y in {EXPECTED}.items(): assert abs(candidate(x)['double'] - 2 * x) <= 0 and candidate(x) == y",
}
FORMS: dict[str, dict[str, Any]] = {
    "calls": {"entry_point": "f", "cases": [{"args": [x], "expected": y} for x, y in EXPECTED.items()]},
    "test_list": {"test_list": [f"assert f({x}) == {y}" for x, y in EXPECTED.items()]},
    "checker": {"entry_point": "f", "cases": [{"args": [x]} for x in EXPECTED], "checker": CHECKER},
    **{name: {"entry_point": "f", "test": f"def check(candidate):\n{body}\n"} for name, body in CHECKS.items()},
}
ANSWERS = "".join(encode_answer(Returned(y)) + r"\n" for y in EXPECTED.values())
AHEAD = {
    "right answers ahead": WRITE_ALL.format(f"b'{ANSWERS}'"),
    "the first answer ahead": WRITE_ALL.format(f"b'{ANSWERS}'.splitlines(True)[0]"),
}
PRELUDES = HARMLESS_PRELUDES | HARMFUL_PRELUDES | AHEAD | NEEDS_WALLS


def in_block(program: Made) -> str:
    """The program as a completion."""
    return f"```python\n{program.source}```"


def right_programs() -> Iterator[Made]:
    """Every right body with nothing before it, every harmless prelude before a plain one, and pairs of preludes by chance."""
    yield from (_made(("nothing",), body, RIGHT_BODIES) for body in RIGHT_BODIES)
    yield from (_made((prelude,), "plain", RIGHT_BODIES) for prelude in HARMLESS_PRELUDES)
    chance = random.Random(0)
    pairs = [pair for pair in itertools.permutations(HARMLESS_PRELUDES, 2) if pair[1] != "future" and pair[1] != "docstring"]
    for pair in chance.sample(pairs, 100):
        yield _made(pair, chance.choice(list(RIGHT_BODIES)), RIGHT_BODIES)


def wrong_programs(*, walls: bool) -> Iterator[Made]:
    """Every wrong body alone, every prelude before a wrong body, and pairs of preludes before one by chance.

    With `walls`, those that need some too.
    """
    preludes = [name for name in PRELUDES if walls or name not in NEEDS_WALLS]
    yield from (_made(("nothing",), body, WRONG_BODIES) for body in WRONG_BODIES)
    yield from (_made((prelude,), "one", WRONG_BODIES) for prelude in preludes)
    chance = random.Random(1)
    quick = [name for name in preludes if "end" not in name and "loops" not in name]
    for _ in range(200):
        pair, body = chance.sample(quick, 2), chance.choice([name for name in WRONG_BODIES if "loop" not in name])
        yield _made((pair[0], pair[1]), body, WRONG_BODIES)


def _made(preludes: tuple[str, ...], body: str, bodies: dict[str, str]) -> Made:
    before = "\n".join(PRELUDES[name] for name in preludes)
    sly = SLY if "sly(" in bodies[body] else ""
    return Made(" + ".join([*preludes, body]), f"{before}\n{sly}\ndef f(x):\n{textwrap.indent(bodies[body], '    ')}\n")
