"""The channels of the judge: forged replies, floods, closed and swapped descriptors, endings that look like others."""

from sandbox.types import Ending, Limits
from tests.sandbox.attacks.attack import ANY, PRELUDE, WAITS, Attack, leaves, tries, uses_up

EXITED, CPU, WALL, OUTPUT, KILLED = Ending.EXITED, Ending.CPU_TIME, Ending.WALL_TIME, Ending.OUTPUT, Ending.KILLED

FORGED = r"""
import json
frame = json.dumps({"id": "0" * 32, "execution": {"ending": "exited", "reason": "", "exit_code": 0, "signal": None,
    "stdout": "forged", "stderr": "",
                    "stdout_truncated": False, "stderr_truncated": False, "wall_s": 0, "cpu_s": 0, "peak_memory_mb": 0},
                        "healthy": True}).encode()
frame = len(frame).to_bytes(4, "big") + frame
"""

ATTACKS: list[Attack] = [
    tries("a_forged_reply_on_every_descriptor", FORGED + "for n in (0, *range(3, 1024)): attempt(n, os.write, n, frame)"),
    tries(
        "a_forged_status_on_every_descriptor",
        """
for number in (0, *range(3, 1024)):
    for word in (b"E0", b"S9", b"Fforged", b".", b"\\n"): attempt(number, os.write, number, word)
""",
    ),
    Attack(
        "a_forged_reply_printed",
        FORGED
        + "import os\nos.write(1, b'\\x01\\0\\0\\0' + len(frame).to_bytes(4, 'big') + frame)\nos.write(2, frame)\nos._exit(3)",
        frozenset({EXITED}),
    ),
    tries(
        "descriptors_of_others_through_proc",
        """
for pid in {1, os.getppid(), *range(1, 64)} - {os.getpid()}:
    for number in range(64):
        for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            attempt((pid, number), os.open, f"/proc/{pid}/fd/{number}", mode | os.O_NONBLOCK)
    attempt((pid, "list"), os.listdir, f"/proc/{pid}/fd")
    attempt((pid, "info"), os.listdir, f"/proc/{pid}/fdinfo")
""",
        not_claimed={"gvisor": "its first process is its own, of its own user, and holds nothing but the program"},
    ),
    tries(
        "its_input_changed_under_the_judge",
        """
attempt("write", os.write, 0, b"x")
attempt("truncate", os.ftruncate, 0, 1)
attempt("grow", os.ftruncate, 0, 1 << 20)
attempt("reopen", lambda: os.write(os.open("/proc/self/fd/0", os.O_RDWR), b"x"))
attempt("map", lambda: mmap.mmap(0, 1))
attempt("unseal", lambda: fcntl.fcntl(0, 1033, 1))
if os.read(0, 99) != b"what the judge gave": succeeded.append("it is not what was given")
""",
        stdin="what the judge gave",
    ),
    uses_up("stdout_flooded", "while True: print('x' * 9999)", OUTPUT),
    uses_up("stderr_flooded", "while True: sys.stderr.write('x' * 9999)", OUTPUT),
    uses_up("both_flooded_without_a_line", "while True:\n    os.write(1, bytes(65536)); os.write(2, bytes(65536))", OUTPUT),
    uses_up("flooded_one_byte_at_a_time", "while True: os.write(1, b'x')", OUTPUT, CPU),
    uses_up(
        "flooded_by_all_its_children",
        "def flood():\n    while True: os.write(1, bytes(4096))\nfork_until_refused(flood)\nflood()",
        OUTPUT,
        CPU,
    ),
    uses_up(
        "flooded_through_a_giant_pipe",
        """
try: fcntl.fcntl(1, 1031, 1 << 20)
except OSError: pass
while True: os.write(1, bytes(1 << 20))
""",
        OUTPUT,
    ),
    Attack(
        "as_much_as_is_kept_of_what_needs_most_room_in_a_reply",
        """
import os
for number in (1, 2):
    left = 4 << 20
    while left: left -= os.write(number, b"\\xff" * min(left, 65536))
""",
        frozenset({EXITED}),
        limits=Limits(cpu_s=5.0, wall_s=30.0, memory_mb=64, max_processes=16, output_kb=4096, disk_mb=4),
    ),
    Attack(
        "output_that_is_no_text",
        "import os\nos.write(1, bytes(range(256)) * 8)\nos.write(2, b'\\xff\\xfe\\0' * 99)",
        frozenset({EXITED}),
    ),
    Attack("output_that_steers_terminals", r"print('\x1b[2J\x1b]0;x\x07\x1bc\x9b31m\x00\r' * 9)", frozenset({EXITED})),
    Attack("output_of_lone_surrogates", "print('\\ud800' * 99)", frozenset({EXITED})),
    Attack("every_descriptor_closed", "import os\nos.closerange(0, 1024)\nos._exit(0)", frozenset({EXITED})),
    uses_up("every_descriptor_closed_and_then_a_loop", "os.closerange(0, 1024)\nwhile True: pass", CPU),
    Attack(
        "its_output_closed_and_opened_on_nothing",
        "import os\nos.close(1); os.close(2); os.open('/dev/null', 1); print('x')",
        frozenset({EXITED}),
    ),
    uses_up(
        "it_reads_its_own_output",
        "f = os.open('/proc/self/fd/1', os.O_RDONLY)\nwhile True: os.write(1, b'xy'); os.read(f, 1)",
        *ANY,
        limits=WAITS,
    ),
    Attack(
        "signals_asked_for_on_its_pipes",
        PRELUDE
        + """
for number in (0, 1, 2):
    for owner in (1, os.getppid(), -1, os.getpid()):
        flags = os.O_ASYNC | os.O_NONBLOCK | os.O_DIRECT
        for call in ((fcntl.F_SETOWN, owner), (fcntl.F_SETSIG, 9), (fcntl.F_SETFL, flags)):
            try: fcntl.fcntl(number, *call)
            except OSError: pass
for _ in range(99):
    try: os.write(1, b"x" * 4096)
    except OSError: pass
""",
        ANY,
    ),
    Attack("an_exit_code_that_wraps_around", "import os\nos._exit(256)", frozenset({EXITED})),
    Attack(
        "an_exit_in_the_middle_of_everything", "import sys, threading\nthreading.Thread(target=input).start()\nsys.exit(0)", ANY
    ),
    Attack("an_exit_handler_that_never_ends", "import atexit\n@atexit.register\ndef _():\n    while True: pass", frozenset({CPU})),
    Attack("an_exit_handler_that_exits_well", "import atexit, os\natexit.register(os._exit, 0)\n1 / 0", frozenset({EXITED})),
    Attack(
        "a_thread_that_never_ends",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
        frozenset({WALL}),
        limits=WAITS,
    ),
    Attack("a_killed_program_that_claims_to_be_out_of_time", "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)", ANY),
    Attack("a_crash_in_c", "import ctypes\nctypes.string_at(0)", frozenset({KILLED})),
    tries(
        "what_the_interpreter_holds_of_the_judge",
        """
import gc
suspicious = ("Stream", "Surroundings", "Capture", "Job", "Session", "Slot")
for thing in gc.get_objects():
    if type(thing).__name__ in suspicious and type(thing).__module__.startswith(("sandbox",
        "__main__")): succeeded.append(type(thing).__name__)
    if isinstance(thing, socket.socket) and thing.fileno() >= 0: attempt(repr(thing), thing.getsockname)  # closed below it
frame = sys._getframe()
while frame:
    for name in list(frame.f_locals):
        if name in ("expected", "reference", "cases", "id", "nonce"): succeeded.append(name)
    frame = frame.f_back
if [name for name in sys.modules if name.startswith(("sandbox", "verifiers"))]: succeeded.append("modules")
""",
        not_claimed={"gvisor": "the server forks it there, and has run nothing else"},
    ),
    leaves(
        "a_secret_in_its_memory",
        "secret = 'grpo' + 'secret' + 'marker'\nheld = [secret * 99 for _ in range(999)]\nopen('/tmp/x', 'w').write(secret * 999)",
        finds="""
needle = b"rekramtercesoprg"[::-1]
hits = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        span, mode = line.split()[:2]
        start, end = (int(word, 16) for word in span.split("-"))
        if "r" in mode and "[v" not in line:
            try:
                memory.seek(start)
                hits += memory.read(end - start).count(needle)
            except (OSError, OverflowError, MemoryError): pass
if hits > 50: found.append(hits)  # the needle itself is there a few times
""",
    ),
]
