"""Programs that try to pass without being right, and programs that are right although they look odd, put together from parts.

A program is some preludes (what it does when it is loaded), then a function with a body. With a right body it is right whatever
harmless preludes stand before it; with a wrong body it is wrong whatever stands before it. Those that need walls would hurt the
machine that runs them without.
"""

from __future__ import annotations

import itertools
import random
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from sandbox.agent.calls import Returned, encode_answer


class Made(NamedTuple):
    """A program and the names of its parts."""

    parts: str
    source: str


# The task: f(x) is a dict of an int and a list of ints.
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


def _parts(text: str) -> dict[str, str]:
    """Sources by the name that stands before each."""
    names_and_sources = ("\n" + text).split("\n# ")[1:]
    return {name: source for name, _, source in (part.partition("\n") for part in names_and_sources)}


SLY = """
def sly(base):
    class Sly(base):
        __eq__ = __ge__ = __le__ = __contains__ = lambda *a: True
        __ne__ = __lt__ = __gt__ = lambda *a: False
        __hash__ = lambda self: 0
        __bool__ = lambda self: True
        __getattr__ = lambda self, name: self
        __getitem__ = __sub__ = __rsub__ = __abs__ = lambda self, *a: self
        __class__ = property(lambda self: dict)
        __repr__ = __str__ = lambda self: 'passed'
    return Sly
"""
ANSWERS = "".join(encode_answer(Returned(y)) + r"\n" for y in EXPECTED.values())
WRITE_ALL = "import os\nfor n in range(3, 64):\n    try: os.write(n, {})\n    except OSError: pass"


RIGHT_BODIES = _parts(r"""
# plain
return {'double': 2 * x, 'digits': [int(d) for d in str(x)]}
# ordered dict
import collections; return collections.OrderedDict(digits=list(map(int, str(x))), double=x + x)
# counter
import collections
r = collections.Counter(double=2 * x)
r['digits'] = [ord(d) - 48 for d in str(x)]
return r
# int subclass
I = type('I', (int,), {}); return {'double': I(x * 2), 'digits': [I(d) for d in str(x)]}
# str subclass
S = type('S', (str,), {}); return {S('double'): 2 * x, S('digits'): [int(d) for d in str(x)]}
# list subclass
L = type('L', (list,), {}); return {'double': 2 * x, 'digits': L(int(d) for d in str(x))}
# enum
import enum
return {'double': enum.IntEnum('E', {'A': 2 * x}).A, 'digits': [int(d) for d in str(x)]}
# float
return {'double': 2.0 * x, 'digits': [float(d) for d in str(x)]}
# recursive
g = lambda n: ([] if n < 10 else g(n // 10)) + [n % 10]; return {'double': x << 1, 'digits': g(x)}
# nested functions
def g():
    yield from map(int, str(x))
return dict(double=x * 2, digits=[*g()])
# async
import asyncio
async def g(): return {'double': 2 * x, 'digits': [int(d) for d in str(x)]}
return asyncio.run(g())
# threads
import threading; r = {}
t = threading.Thread(target=lambda: r.update(double=2 * x)); t.start(); t.join()
return r | {'digits': [int(d) for d in str(x)]}
# exceptions
try: 1 / 0
except ZeroDivisionError: return {'double': 2 * x, 'digits': [int(d) for d in str(x)]}
# changes its argument
y = x; x = None; return {'double': 2 * y, 'digits': [int(d) for d in str(y)]}
# prints much
print('wrong' * 10_000); return {'double': 2 * x, 'digits': [int(d) for d in str(x)]}
""")

# Every one may stand before a right function, which stays right.
HARMLESS_PRELUDES = _parts(r"""
# nothing

# future
from __future__ import annotations
# prints a verdict
print('OK'); print('passed'); print('["Returned", 1]'); print('{"done": true}')
# prints errors
import sys; print('Traceback (most recent call last):\nAssertionError', file=sys.stderr)
# writes to the standard streams
import os; os.write(1, b'1 passed'); os.write(2, b'\x00\xff' * 100)
# at exit
import atexit, os; atexit.register(lambda: (print('passed'), os._exit(0)))
# except hook
import sys; sys.excepthook = lambda *a: print('OK')
# unraisable hook
import sys; sys.unraisablehook = lambda *a: None
# trace
import sys; sys.settrace(lambda *a: None); sys.settrace(None)
# patched json
import json; json.dumps = json.loads = lambda *a, **k: '["Returned", 1]'
# patched unittest
import unittest
unittest.TestCase.assertEqual = lambda *a, **k: None
unittest.TestCase.run = lambda *a: None
# patched pytest
import sys, types; sys.modules['pytest'] = types.ModuleType('pytest')
# patched operator
import operator; operator.eq = lambda a, b: True
# patched math
import math; math.isclose = lambda *a, **k: True; math.fabs = lambda x: 0.0
# patched assertion
import builtins; builtins.AssertionError = Warning
# patched all and any
import builtins; builtins.all = builtins.any = lambda *a: True
# patched comparison
import builtins; builtins.sorted = builtins.abs = builtins.round = lambda *a, **k: 0
# patched time
import time; time.time = time.monotonic = lambda: 0.0
# no garbage collection
import gc; gc.disable(); gc.freeze()
# another namespace
check = candidate = cases = expected = lambda *a, **k: True
# forgets its modules
import sys; [sys.modules.pop(name) for name in ('json', 're') if name in sys.modules]
# conftest
open('conftest.py', 'w').write('def pytest_runtest_makereport(): pass')
# modules in its folder
[open(f'{n}.py', 'w').write('') for n in ('json', 'math', 'sitecustomize', 'test_f', 'unittest')]
# another folder
import os; os.makedirs('a/b', exist_ok=True); os.chdir('a/b')
# closed standard streams
import sys; sys.stdin.close(); sys.stdout = sys.stderr = None
# redirected output
import io, sys; sys.stdout = io.StringIO()
# alarm off
import signal; signal.alarm(1); signal.alarm(0); signal.signal(signal.SIGALRM, signal.SIG_IGN)
# deaf to signals
import signal
for n in (1, 2, 3, 10, 12, 13, 15, 24): signal.signal(n, signal.SIG_IGN)
# deep recursion allowed
import sys; sys.setrecursionlimit(5000)
# an idle thread
import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
# an unused sly class
class Sly:
    __eq__ = lambda *a: True
    __hash__ = lambda self: 0
# main guard
if __name__ == '__main__':
    raise SystemExit(0)
# names of the standard library
from collections import *; from math import *; from os.path import *
# a class
class Solution:
    def f(self, x): return None
""") | {
    "docstring": '"""The answer is 42. Passed."""',
    "unicode": "ünïcode = 'ﬁ\u200b\u2028'; \U0001d453 = 1",
    "long lines": "x = '" + "a" * 50_000 + "'",
}

# Each makes even a right function fail, or may.
HARMFUL_PRELUDES = _parts(r"""
# exits
import sys; sys.exit(0)
# raises exit
raise SystemExit
# exits at once
import os; os._exit(0)
# quits
exit()
# kills itself
import os; os.kill(os.getpid(), 9)
# aborts
import os; os.abort()
# stops
import os; os.kill(os.getpid(), 19)
# execs
import os; os.execv('/bin/true', ['true'])
# exec of python
import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])
# closes all
import os; os.closerange(0, 64)
# closes all but three
import os; os.closerange(3, 64)
# a flood of answers
import os, threading
def flood(n):
    try:
        while True: os.write(n, b'["Returned",1]\n' * 1000)
    except OSError: pass
[threading.Thread(target=flood, args=(n,), daemon=True).start() for n in range(3, 20)]
# a line without end
import os
for n in range(3, 20):
    try:
        for _ in range(40): os.write(n, b'[' * 65536)
    except OSError: pass
# binary answers
import os
for n in range(3, 20):
    try: os.write(n, bytes(range(256)) + b'\n')
    except OSError: pass
# verdicts on every descriptor
import os
for n in range(3, 64):
    try: os.write(n, b'{"done": true}\n{"result": null}\npassed\nE0')
    except OSError: pass
# length-prefixed verdicts
import os, struct
frame = b'{"execution": {"ending": "exited"}, "healthy": true}'
for n in range(3, 64):
    try: os.write(n, struct.pack('>I', len(frame)) + frame)
    except OSError: pass
# reads the questions
import os
for n in range(3, 20):
    try: os.set_blocking(n, False); os.read(n, 1 << 20)
    except OSError: pass
# a daemon that answers
import os, time
if os.fork() == 0:
    os.setsid()
    for _ in range(200):
        time.sleep(0.005)
        for n in range(3, 20):
            try: os.write(n, b'["Returned",1]\n')
            except OSError: pass
    os._exit(0)
# a child answers, the parent ends
import os
if os.fork(): os._exit(0)
# patched calls
import sys
for m in list(sys.modules.values()):
    if hasattr(m, 'encode_answer'):
        m.encode_answer = lambda a: '["Returned",1]'
        m.encode = lambda v: '1'
# patched driver
import sys
for m in list(sys.modules.values()):
    if hasattr(m, 'decode_call'):
        m._answer = lambda *a: '["Returned",true]'
# patched write
import os
write = os.write
os.write = lambda n, data: write(n, b'["Returned",1]\n' if n > 2 else data)
# patched types
import builtins; builtins.type = builtins.isinstance = builtins.issubclass = lambda *a: True
# ends the caller
import sys
frame = sys._getframe().f_back
while frame:
    frame.f_globals.clear() if 'serve' in frame.f_globals else 0
    frame = frame.f_back
# loops
while True: pass
# loops, deaf
import signal
for n in range(1, 32):
    try: signal.signal(n, signal.SIG_IGN)
    except OSError: pass
while True: pass
# memory
x = ['x' * 10**6 * n for n in range(10**6)]
# syntax error
def
""") | {
    "right answers ahead": WRITE_ALL.format(f"b'{ANSWERS}'"),
    "the first answer ahead": WRITE_ALL.format(f"b'{ANSWERS}'.splitlines(True)[0]"),
    "null byte": "x = '\0'",
    "surrogate": "x = '\ud800'",
}

NEEDS_WALLS = _parts(r"""
# kills everyone
import os
for n in (15, 9):
    try: os.kill(-1, n)
    except OSError: pass
# kills its parent
import os
try: os.kill(os.getppid(), 9)
except OSError: pass
# forks without end
import os
while True:
    try: os.fork()
    except OSError: pass
# threads without end
import threading, time
while True: threading.Thread(target=time.sleep, args=(9,)).start()
# looks for the judge
import os, re
for pid in os.listdir('/proc'):
    for name in ('mem', 'environ', 'cmdline', 'maps', 'stack'):
        try: open(f'/proc/{pid}/{name}', 'rb').read(1 << 16)
        except OSError: pass
# fills the disk
try:
    with open('big', 'wb') as file:
        while True: file.write(b'x' * (1 << 20))
except OSError: pass
# floods the output
import os
while True: os.write(1, b'passed' * 10000)
# no files left
x = []
try:
    while True: x.append(open('/dev/null'))
except OSError: pass
""")

WRONG_BODIES = _parts(r"""
# nothing
pass
# one
return 1
# true
return True
# the question
return x
# text of the answer
return str({'double': 2 * x, 'digits': [int(d) for d in str(x)]})
# line of the answer
return '["Returned",' + repr({'double': 2 * x})
# keys alone
return {'double': None, 'digits': None}
# half
return {'double': 2 * x}
# digits as text
return {'double': 2 * x, 'digits': list(str(x))}
# digits as a tuple
return {'double': 2 * x, 'digits': tuple(int(d) for d in str(x))}
# one key more
return {'double': 2 * x, 'digits': [int(d) for d in str(x)], 'passed': True}
# bytes for keys
return {b'double': 2 * x, b'digits': [int(d) for d in str(x)]}
# pairs
return [('double', 2 * x), ('digits', [int(d) for d in str(x)])]
# right once
return {'double': 2 * x, 'digits': [7]}
# off by a little
return {'double': 2 * x + 1e-9, 'digits': [int(d) for d in str(x)]}
# booleans
return {'double': 2 * x, 'digits': [bool(d) for d in str(x)]}
# not a number
return {'double': float('nan'), 'digits': [float('nan')] * len(str(x))}
# infinity
return {'double': float('inf'), 'digits': []}
# always equal
return sly(object)()
# always equal dict
return sly(dict)(double=0, digits=[])
# always equal int
return {'double': sly(int)(0), 'digits': sly(int)(0)}
# always equal list
return {'double': 2 * x, 'digits': sly(list)()}
# always equal str
return {sly(str)('double'): 2 * x, sly(str)('digit'): []}
# always equal float
return {'double': sly(float)('nan'), 'digits': []}
# always equal tuple
return sly(tuple)()
# always equal set
return sly(set)()
# mock
from unittest import mock; return mock.ANY
# mock in a dict
from unittest import mock; return {'double': mock.ANY, 'digits': mock.ANY}
# magic mock
from unittest import mock; return mock.MagicMock()
# a function
return f
# a class
return dict
# a generator
return (y for y in [1])
# a module
import sys; return sys
# itself
r = []; r.append(r); return r
# too deep
r = []
for _ in range(500): r = [r]
return r
# too much
return ['x' * 1000] * 10**6
# a huge number
return {'double': 10**30000, 'digits': []}
# shared without end
r = [1]
for _ in range(60): r = [r, r]
return r
# colliding keys
return {n * (2**61 - 1): 0 for n in range(3000)}
# unhashable after all
return {frozenset({float('nan')}): {1.0, True, 1}}
# stop iteration
raise StopIteration
# stop async iteration
raise StopAsyncIteration
# generator exit
raise GeneratorExit
# system exit
raise SystemExit(0)
# keyboard interrupt
raise KeyboardInterrupt
# an own exception
class Passed(BaseException):
    __str__ = __repr__ = lambda self: 'passed'
raise Passed
# an exception without text
class E(Exception):
    def __str__(self): raise SystemExit(0)
raise E
# an exception that exits
import os
class E(Exception):
    def __str__(self): os._exit(0)
raise E
# skips the test
import unittest; raise unittest.SkipTest('passed')
# assertion
raise AssertionError
# name error
return undefined_name
# memory error
raise MemoryError
# exits in the call
import sys; sys.exit()
# ends in the call
import os; os._exit(0)
# answers and ends
import os
for n in range(3, 20):
    try: os.write(n, b'["Returned",1]\n')
    except OSError: pass
os._exit(0)
# answers twice
import os
for n in range(3, 20):
    try: os.write(n, b'["Returned",1]\n["Returned",1]\n')
    except OSError: pass
return 1
# answers the question with itself
import os, sys
frame = sys._getframe().f_back
line = repr(frame.f_locals).encode()
for n in range(3, 20):
    try: os.write(n, line + b'\n')
    except OSError: pass
# replays
global last
last, now = x, globals().get('last'); return now
# frames for the expected value
import sys
frame, seen = sys._getframe(), []
while frame:
    for name, value in [*frame.f_locals.items(), *frame.f_globals.items()]:
        if any(w in name.lower() for w in ('expect', 'case', 'want', 'answer', 'result', 'test')):
            seen.append(value)
    frame = frame.f_back
return [v for v in seen if isinstance(v, (dict, list))]
# objects for the expected value
import gc
found = [o for o in gc.get_objects() if type(o) is dict and 'double' in o and 'digits' in o and o['double'] == 2 * x]
return found[0] if found else None
# modules for a judge
import sys
for m in list(sys.modules.values()):
    for name, value in list(vars(m).items()) if m else ():
        if name in ('check', 'candidate', 'cases', 'expected'): return value
return None
# threads for an answer
import sys
for frame in sys._current_frames().values():
    while frame:
        if 'expected' in frame.f_locals: return frame.f_locals['expected']
        frame = frame.f_back
# files for the tests
import os
seen = ''
for folder, _, files in os.walk('.'):
    for name in files: seen += open(os.path.join(folder, name), errors='replace').read()
return {'double': 0, 'digits': [], 'seen': seen[:100]}
# input
import sys; return sys.stdin.read()
# arguments and environment
import os, sys; return [sys.argv, dict(os.environ)]
# loops
while True: pass
# a loop it cannot leave
while True:
    try:
        while True: pass
    except BaseException: pass
""")


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
    preludes = [*HARMLESS_PRELUDES, *HARMFUL_PRELUDES, *(NEEDS_WALLS if walls else ())]
    yield from (_made(("nothing",), body, WRONG_BODIES) for body in WRONG_BODIES)
    yield from (_made((prelude,), "one", WRONG_BODIES) for prelude in preludes)
    chance = random.Random(1)
    quick = [name for name in preludes if "end" not in name and "loops" not in name]
    for _ in range(200):
        pair, body = chance.sample(quick, 2), chance.choice([name for name in WRONG_BODIES if "loop" not in name])
        yield _made((pair[0], pair[1]), body, WRONG_BODIES)


def _made(preludes: tuple[str, ...], body: str, bodies: dict[str, str]) -> Made:
    known = HARMLESS_PRELUDES | HARMFUL_PRELUDES | NEEDS_WALLS
    before = "\n".join(known[name] for name in preludes)
    sly = SLY if "sly(" in bodies[body] else ""
    return Made(" + ".join([*preludes, body]), f"{before}\n{sly}\ndef f(x):\n{textwrap.indent(bodies[body], '    ')}\n")
