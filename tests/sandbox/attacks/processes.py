"""Processes, threads and signals: too many, too stubborn, or aimed at somebody else."""

from sandbox.types import Ending
from tests.sandbox.attacks.attack import PRELUDE, WAITS, Attack, leaves, tries, uses_up

EXITED, CPU, WALL, KILLED = Ending.EXITED, Ending.CPU_TIME, Ending.WALL_TIME, Ending.KILLED

ATTACKS: list[Attack] = [
    uses_up("fork_bomb", "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass"),
    uses_up("fork_bomb_of_sleepers", "fork_until_refused(lambda: time.sleep(60))\ntime.sleep(60)", limits=WAITS),
    uses_up(
        "fork_bomb_by_exec",
        '''
source = """
import os, sys
while True:
    try:
        if os.fork() == 0: os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[1]])
    except OSError: pass
"""
os.execv(sys.executable, [sys.executable, "-c", source, source])
''',
    ),
    uses_up(
        "fork_bomb_by_raw_clone_without_a_signal_to_the_parent",
        "while True:\n    libc.syscall(56, 0, 0, 0, 0, 0)",
    ),
    uses_up("fork_bomb_by_clone_parent", "while True:\n    libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0)"),
    uses_up(
        "thread_bomb",
        """
threading.stack_size(65536)
threads = []
while True:
    try:
        thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
        thread.start()
        threads.append(thread)
    except RuntimeError:
        assert len(threads) < 64, len(threads)
        time.sleep(0.1)
""",
        WALL,
        CPU,
        limits=WAITS,
    ),
    uses_up(
        "processes_that_share_the_work_of_burning_cpu",
        "fork_until_refused(lambda: sum(iter(int, 1)), 8)\nwhile True: pass",
        CPU,
    ),
    uses_up(
        "children_that_burn_cpu_and_are_never_accounted_for",
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def burn():
    end = time.process_time() + 0.05
    while time.process_time() < end: pass
while True:
    fork_until_refused(burn, 1)
    time.sleep(0.02)
""",
        CPU,
        WALL,
        limits=WAITS,
    ),
    uses_up(
        "a_chain_of_processes_each_of_which_outlives_its_parent",
        """
while True:
    if os.fork() > 0:
        if os.getppid() == 1: time.sleep(0.001)
        os._exit(0) if os.getpid() > 3 else time.sleep(60)
""",
        limits=WAITS,
    ),
    uses_up("an_endless_loop", "while True: pass", CPU),
    uses_up("an_endless_loop_in_c", "sum(iter(int, 1))", CPU),
    uses_up("a_number_too_large_to_compute", "10 ** 10 ** 10", CPU),
    uses_up("a_regular_expression_that_never_ends", "import re; re.match('(a+)+$', 'a' * 64 + 'b')", CPU),
    uses_up("an_endless_sleep", "time.sleep(1e6)", WALL, limits=WAITS),
    uses_up("waiting_for_input_that_never_comes", "r, w = os.pipe(); os.read(r, 1)", WALL, limits=WAITS),
    uses_up(
        "every_signal_ignored",
        """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: pass
""",
        CPU,
    ),
    uses_up("every_signal_blocked", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass", CPU),
    uses_up(
        "every_signal_answered_with_more_work",
        """
for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGXCPU, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
while True:
    try:
        while True: pass
    except BaseException:
        pass
""",
        CPU,
    ),
    uses_up("it_stops_itself", "os.kill(os.getpid(), signal.SIGSTOP)", WALL, EXITED, limits=WAITS),
    uses_up(
        "its_children_are_stopped_and_it_sleeps",
        "fork_until_refused(lambda: os.kill(os.getpid(), 19))\ntime.sleep(60)",
        limits=WAITS,
    ),
    uses_up(
        "dying_made_slow",
        """
fork_until_refused(lambda: sum(iter(int, 1)))
held = [mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(12)]
for m in held: m.write(bytes(1 << 22))
try:
    while True: os.open("/dev/null", os.O_RDONLY)
except OSError: pass
os.nice(19)  # its children keep the CPU that it would need to die
while True: pass
""",
    ),
    uses_up("a_vfork_that_never_returns", "libc.syscall(56, 0x4000 | 17, 0, 0, 0, 0)\ntime.sleep(60)", limits=WAITS),
    uses_up(
        "zombies",
        "fork_until_refused(lambda: None)\nbegan = time.time()\nwhile time.time() < began + 60: time.sleep(0.1)",
        limits=WAITS,
    ),
    leaves(
        "a_daemon_by_double_fork",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3): os.close(number)
        time.sleep(60)
    os._exit(0)
os.wait()
""",
    ),
    leaves(
        "daemons_that_ignore_everything_and_respawn",
        """
def stubborn():
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True:
        try:
            if os.fork() == 0: continue
        except OSError: pass
        time.sleep(0.01)
fork_until_refused(stubborn, 4)
time.sleep(0.05)
""",
    ),
    leaves("a_writer_that_outlives_the_program", "fork_until_refused(lambda: [os.write(1, b'x' * 999) for _ in iter(int, 1)], 2)"),
    leaves("sleepers_that_hold_the_pipes_open", "fork_until_refused(lambda: time.sleep(60), 8)"),
    leaves("an_orphan_made_with_clone_parent", "if libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:\n    time.sleep(60)"),
    Attack(
        "it_kills_everything_it_can",
        "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(0, signal.SIGKILL)",
        frozenset({EXITED, KILLED}),
    ),
    tries(
        "signals_to_processes_of_others",
        """
mine = {os.getpid(), os.getppid(), 1} if os.getppid() == 1 else {os.getpid(), os.getppid()}
for pid in (*range(1, 2000), 4096, 32768, 65536):
    if pid not in mine:
        attempt(pid, os.kill, pid, 0)
""",
    ),
    Attack(
        "the_first_process_of_its_world_attacked",
        PRELUDE
        + """
for first in {1, os.getppid()} - {0}:
    for number in range(1, 65):
        if number != signal.SIGKILL or first != os.getpid():
            try: os.kill(first, number)
            except OSError: pass
    try: signal.pidfd_send_signal(os.pidfd_open(first), signal.SIGSTOP)
    except OSError: pass
    try: os.setpriority(os.PRIO_PROCESS, first, 19)
    except OSError: pass
""",
        frozenset({EXITED, KILLED, WALL}),
    ),
    Attack(
        "limits_of_its_first_process_set_to_zero",
        """
import os, resource
for kind in range(16):
    try:
        resource.prlimit(os.getppid() or 1, kind, (0, 0))
    except (OSError, ValueError):
        pass
os._exit(7)
""",
        frozenset({EXITED, KILLED}),
    ),
    tries(
        "more_priority_than_others",
        """
attempt("nice", os.nice, -5)
attempt("priority", os.setpriority, os.PRIO_PROCESS, 0, -20)
attempt("fifo", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))
attempt("round robin", os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1))
attempt("io", syscall, 251, 1, 0, (1 << 13) | 0)
""",
        not_claimed={"gvisor": "its kernel shares out the container's time, and that alone"},
    ),
    tries(
        "debuggers",
        """
target = fork_until_refused(lambda: time.sleep(3), 1)[0]
for name, request in (("traceme", 0), ("attach", 16), ("seize", 0x4206)):
    attempt(name, syscall, 101, request, target, 0, 0)
    attempt(name + " first", syscall, 101, request, os.getppid(), 0, 0)
buffer = ctypes.create_string_buffer(8)
vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
for name, number in (("readv", 310), ("writev", 311)):
    attempt(name, syscall, number, target, vector, 1, vector, 1, 0)
attempt("pidfd_getfd", lambda: syscall(438, os.pidfd_open(target), 1, 0))
attempt("kcmp", syscall, 312, os.getpid(), target, 0, 0, 0)
attempt("process_madvise", lambda: syscall(440, os.pidfd_open(target), vector, 1, 4, 0))
os.kill(target, 9)
""",
    ),
    tries(
        "the_first_process_opened_through_proc",
        """
for name in ("mem", "maps", "environ", "fd", "fd/1", "map_files", "root/etc/passwd", "cwd", "ns/mnt", "stack", "syscall", "auxv",
    "io"):
    path = f"/proc/{os.getppid()}/{name}"
    if os.getppid() == 0: break  # it is the first
    attempt(name, os.listdir if name in ("fd", "map_files", "cwd") else os.readlink if name.startswith("ns") else open, path)
""",
        not_claimed={"gvisor": "its first process is its own, of its own user, and holds nothing but the program"},
    ),
]
