"""What programs do when they are loaded, for the hacks of code_hacks.py: what should not matter, and what should not help.

Those that need walls would hurt a machine that runs them without.
"""

from __future__ import annotations

from verifiers.code_hack_bodies import parts

WRITE_ALL = "import os\nfor n in range(3, 64):\n    try: os.write(n, {})\n    except OSError: pass"

# Every one may stand before a right function, which stays right.
HARMLESS_PRELUDES = parts(r"""
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
HARMFUL_PRELUDES = parts(r"""
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
    "null byte": "x = '\0'",
    "surrogate": "x = '\ud800'",
}

NEEDS_WALLS = parts(r"""
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
