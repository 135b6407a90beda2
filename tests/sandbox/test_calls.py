"""Plain data as text: everything plain survives, nothing else gets through, and no line hurts whoever reads it."""

from __future__ import annotations

import collections
import contextlib
import enum
import json
import math
import os
import random
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.agent import calls
from sandbox.agent.calls import Call, NotPlain, Raised, Returned, decode, decode_answer, decode_call, encode

ROOT = Path(__file__).parents[2]

any_text = st.text(st.characters(codec=None, categories=None))  # lone surrogates too
keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    keys | st.complex_numbers(allow_nan=False) | st.sets(keys, max_size=3) | st.integers(-(2**5000), 2**5000),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal and of equal types throughout; the sign of zero counts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return one == other and sorted(map(encode, one)) == sorted(map(encode, other))
    return one == other


@given(values)
@example("\ud800\udc00")  # two characters, which JSON would join into one
@example([1, 1.0, True, -0.0, "1", b"1", 2**64, -(2**64)])
@example({(1, 2): {1, 2}, frozenset({3}): [], None: 1j, 1.5: ()})
def test_plain_data_survives_with_its_types(value: Any):
    line = encode(value)
    assert "\n" not in line
    assert line.isascii()
    assert same(decode(line), value)


def test_floats_that_json_does_not_know_survive():
    nan, *infinities = decode(encode([math.nan, math.inf, -math.inf]))
    assert math.isnan(nan)
    assert infinities == [math.inf, -math.inf]


def test_equal_sets_give_equal_lines():
    assert encode({"a", "b", (1, 2)}) == encode({(1, 2), "b", "a"}) == '{"set":["a","b",{"tuple":[1,2]}]}'


# Only methods of the built-in types are called


def raising(*_: Any, **__: Any) -> Any:
    raise AssertionError("a method of the program's was called")


OVERRIDDEN = """
__eq__ __ne__ __lt__ __hash__ __repr__ __str__ __format__ __iter__ __len__ __getitem__ __bool__ __int__ __index__ __float__
__complex__ __pos__ __add__ __reduce__ __reduce_ex__ __getattribute__ __contains__ __bytes__ __sizeof__ items keys values get copy
hex encode bit_length isascii
"""
HOSTILE: dict[str, Any] = dict.fromkeys(OVERRIDDEN.split(), raising)


@pytest.mark.parametrize(
    "value", [7, -(2**70), 1.5, math.inf, "text", "\ud800", b"data", (1, 2), [1, [2]], {"a": 1}, {1, 2}, frozenset({3}), 2j]
)
def test_an_object_of_a_subclass_counts_as_what_it_holds(value: Any):
    hostile: Any = type("Hostile", (type(value),), HOSTILE)
    made: Any = hostile.__new__(hostile, *(() if isinstance(value, list | dict | set) else (value,)))
    if isinstance(value, list):
        list.extend(made, value)
    elif isinstance(value, dict | set):
        type(value).update(made, value)
    assert encode(made) == encode(value)


def test_common_subclasses_count_as_what_they_hold():
    class Color(enum.IntEnum):
        RED = 3

    Point = collections.namedtuple("Point", "x y")
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    value = [Color.RED, Point(1, 2), collections.Counter("aab"), ordered, collections.defaultdict(list, a=[1])]
    assert same(decode(encode(value)), [3, (1, 2), {"a": 2, "b": 1}, {"b": 1, "a": 2}, {"a": [1]}])


class AlwaysEqual:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def containing_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return {"a": value}


def shared(levels: int) -> Any:
    """A value of 2**levels leaves that takes no memory."""
    value: Any = [1]
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (AlwaysEqual(), "AlwaysEqual is no plain data"),
        ([AlwaysEqual()], "AlwaysEqual is no plain data"),
        ((i for i in range(3)), "generator is no plain data"),
        ({}.keys(), "dict_keys is no plain data"),
        (bytearray(b"a"), "bytearray is no plain data"),
        (AlwaysEqual, "type is no plain data"),
        (nested(calls.MAX_DEPTH + 1), "nested more than 64 levels deep"),
        (containing_itself(), "contains itself"),
        (shared(40), "larger than 1,048,576 bytes"),
        ("x" * calls.MAX_LINE, "larger than 1,048,576 bytes"),
        ("\x00" * (calls.MAX_LINE // 2), "larger than 1,048,576 bytes"),  # six characters each
        (2**calls.MAX_INT_BITS, "an integer has 65,537 bits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_refused_with_a_sentence(value: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        encode(value)


def test_the_deepest_data_that_is_taken_comes_back():
    deepest = nested(calls.MAX_DEPTH)
    assert decode(encode(deepest)) == deepest
    assert decode_call(calls.encode_call((deepest,), {"a": deepest})) == Call((deepest,), {"a": deepest})
    assert decode_answer(calls.encode_answer(Returned(deepest))) == Returned(deepest)


# Lines that a program may write


def colliding(count: int) -> str:
    """Numbers that all have the hash 0: a set of them costs quadratic time."""
    return json.dumps({"set": [{"int": format(i * (2**61 - 1), "x")} for i in range(1, count)]})


LINES = [
    "",
    "nul",
    "[1,",
    "1 2",
    "NaN",
    "[Infinity]",
    "1e999",
    "1" * 21,
    "0." + "1" * 100_000,
    '"é"',
    '"a\nb"',
    "{}",
    '{"tuple":[1],"set":[2]}',
    '{"list":[1]}',
    '{"tuple":1}',
    '{"set":[[1]]}',
    '{"set":[1,1.0]}',
    '{"dict":[[1,2],[true,3]]}',
    '{"dict":[[1]]}',
    '{"dict":{"tuple":[]}}',
    '{"dict":[[[],1]]}',
    '{"bytes":"zz"}',
    '{"bytes":"a b0"}',
    '{"bytes":7}',
    '{"str":"ff"}',
    '{"int":"0x10"}',
    '{"int":"1_0"}',
    '{"int":"' + "f" * 100_000 + '"}',
    '{"float":"1.5"}',
    '{"float":1.5}',
    '{"complex":[1,2]}',
    '{"complex":[1.0]}',
    '{"tuple":{"tuple":{"tuple":[]}}}',
    "[" * 68 + "]" * 68,
    "[" * 100_000,
    '{"tuple":[' * 100_000,
    "[" * 400_000 + "]" * 400_000,
    "[" + "1," * calls.MAX_LINE + "1]",
    colliding(20_000),
    json.dumps({"dict": [[json.loads(colliding(2000)), 1]]}),
    json.dumps({"set": [{"frozenset": [{"tuple": [{"int": format(i * (2**61 - 1), "x")}]}]} for i in range(1, 5000)]}),
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:24] or "empty")
@pytest.mark.parametrize("read", [decode, decode_call, decode_answer])
def test_no_line_does_more_than_raise_a_sentence(line: str, read: Any):
    started = time.process_time()
    with pytest.raises(ValueError, match=r"\w"):
        read(line)
    assert time.process_time() - started < 0.5


@given(st.text(string.printable) | st.lists(st.sampled_from('[]{}",:0123456789.eE-+ tuplesdicfronz'), max_size=40).map("".join))
def test_any_text_is_a_value_or_a_value_error(text: str):
    for read in (decode, decode_call, decode_answer):
        with contextlib.suppress(ValueError):
            read(text)


def test_a_damaged_line_is_a_value_or_a_value_error():
    chance = random.Random(0)
    line = encode({"a": [(1, 2.5), {3, "x"}, frozenset({b"1"}), 2j], (1,): 2**80})
    for _ in range(20_000):
        at = chance.randrange(len(line))
        with contextlib.suppress(ValueError):
            decode(line[:at] + chance.choice(string.printable) + line[at + chance.randrange(2) :])


@pytest.mark.parametrize(
    "line",
    ["[]", "[1,2]", '["Returned"]', '["Returned",1,2]', '["Raised","a","b"]', '["Raised","a","b",1]', '["NotPlain",1]', '["x",1]'],
)
def test_what_is_no_answer_is_refused(line: str):
    with pytest.raises(ValueError, match="no answer"):
        decode_answer(line)


def test_what_is_no_question_is_refused():
    with pytest.raises(ValueError, match="a question is a list of arguments and a table of named ones"):
        decode_call(encode([[1], {1: 2}]))


# The loop inside the sandbox

SERVE = """
import sys
from sandbox.agent import answering
namespace = {}
exec(sys.stdin.read(), namespace)
answering.serve(namespace, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


class Served:
    """A program in a process of its own, and what it answered and left."""

    def __init__(self, source: str, *questions: tuple[Any, ...], entry_point: str = "f") -> None:
        incoming, ask = os.pipe()
        listen, outgoing = os.pipe()
        for arguments in questions:
            os.write(ask, calls.encode_call(arguments, {}).encode() + b"\n")
        os.close(ask)
        command = [sys.executable, "-c", SERVE, entry_point, str(incoming), str(outgoing)]
        done = subprocess.run(
            command,
            input=source,
            text=True,
            capture_output=True,
            pass_fds=(incoming, outgoing),
            cwd=Path(__file__).parents[2],
            check=False,
        )
        os.close(incoming)
        os.close(outgoing)
        with open(listen) as lines:
            self.answers = [decode_answer(line) for line in lines.read().splitlines()]
        self.exit_code, self.stderr, self.stdout = done.returncode, done.stderr, done.stdout


def test_each_question_gets_one_answer_and_the_end_of_questions_ends_the_loop():
    served = Served("def f(x, y=1):\n    print('noise')\n    return (x, y)", (1,), ("a", 2))
    assert served.answers == [Returned((1, 1)), Returned(("a", 2))]
    assert (served.exit_code, served.stdout) == (0, "noise\nnoise\n")


def test_arguments_that_a_function_changes_are_its_own():
    assert Served("def f(x):\n    x.append(1)\n    return len(x)", ([],), ([],)).answers == [Returned(1), Returned(1)]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("raise ValueError('no')", Raised("ValueError", "ValueError", "no")),
        ("raise KeyError('k')", Raised("KeyError", "KeyError", "'k'")),
        ("class Odd(LookupError): pass\n    raise Odd('x' * 999)", Raised("Odd", "LookupError", "x" * 200)),
        ("import sys; sys.exit('passed')", Raised("SystemExit", "SystemExit", "passed")),
        ("raise KeyboardInterrupt", Raised("KeyboardInterrupt", "KeyboardInterrupt", "")),
        ("return f(x)", Raised("RecursionError", "RecursionError", "maximum recursion depth exceeded in comparison")),
        ("return (i for i in x)", NotPlain("generator is no plain data")),
        ("class E(Exception):\n        def __str__(self): raise SystemExit\n    raise E", Raised("E", "Exception", "")),
        (
            "class M(type):\n        __name__ = property(lambda self: 1 / 0)\n        def mro(self): return type.mro(self)\n"
            "    class E(ValueError, metaclass=M): pass\n    raise E('t')",
            Raised("E", "ValueError", "t"),
        ),
    ],
)
def test_a_call_that_returns_nothing_plain_says_what_it_did_and_the_next_goes_on(body: str, answer: calls.Answer):
    source = f"def f(x):\n    if x == [2]: return 'next'\n    {body}"
    assert Served(source, ([1],), ([2],)).answers == [answer, Returned("next")]


def test_a_method_is_called_on_an_instance_of_its_own():
    source = "class Solution:\n    def __init__(self): self.seen = []\n    def f(self, x): return self.seen.append(x) or self.seen"
    assert Served(source, (1,), (2,), entry_point="Solution.f").answers == [Returned([1]), Returned([2])]


@pytest.mark.parametrize(
    ("source", "entry_point"), [("", "f"), ("f = 3", "f"), ("class Solution: pass", "Solution.f"), ("g = 1", "g.f")]
)
def test_a_program_without_the_function_says_so_and_ends_with_1(source: str, entry_point: str):
    served = Served(source, (1,), entry_point=entry_point)
    assert served.answers == []
    assert (served.exit_code, served.stderr) == (1, f"the program defines no function {entry_point}\n")
