"""Memory in every form that there is, also those that no process's size shows."""

from typing import Any

from sandbox.types import Ending
from tests.sandbox.attacks.attack import LIMITS, WAITS, Attack, tries, uses_up

MEMORY, EXITED, CPU, WALL, KILLED = Ending.MEMORY, Ending.EXITED, Ending.CPU_TIME, Ending.WALL_TIME, Ending.KILLED
ENDS = (MEMORY, EXITED, CPU, WALL, KILLED)
# What the host must not lose, whatever a program does: a slot's memory, and as much again for its server.
PAGES = "\ndef touch(m):\n    for offset in range(0, len(m), 4096): m[offset] = 1\n"


def ends(name: str, body: str, *endings: Ending, **more: Any) -> Attack:
    return uses_up(name, PAGES + body, *(endings or ENDS), **more)


ATTACKS: list[Attack] = [
    ends("lists_without_end", "a = []\nwhile True: a.append(bytearray(1 << 20))", MEMORY),
    ends("one_object_of_a_terabyte", "'x' * 10 ** 12", MEMORY),
    ends(
        "private_mappings",
        "a = []\nwhile True:\n    a.append(mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)); touch(a[-1])",
    ),
    ends("shared_mappings", "a = []\nwhile True:\n    a.append(mmap.mmap(-1, 1 << 22)); touch(a[-1])"),
    ends(
        "shared_mappings_that_no_size_shows",
        "a = []\nwhile True:\n    a.append(mmap.mmap(-1, 1 << 22)); touch(a[-1]); a[-1].madvise(mmap.MADV_DONTNEED)",
    ),
    ends(
        "mappings_of_dev_zero",
        """
a = []
zero = os.open("/dev/zero", os.O_RDWR)
while True:
    a.append(mmap.mmap(zero, 1 << 22)); touch(a[-1]); a[-1].madvise(mmap.MADV_DONTNEED)
""",
    ),
    ends(
        "memory_files",
        """
a = []
try:
    while True:
        a.append(os.memfd_create("x"))
        for _ in range(4): os.write(a[-1], bytes(1 << 20))
except OSError:
    time.sleep(0.2)
""",
    ),
    ends(
        "every_process_at_its_own_limit",
        """
def take():
    a = []
    try:
        while True: a.append(bytearray(1 << 20))
    except MemoryError:
        time.sleep(60)
fork_until_refused(take)
take()
""",
    ),
    ends(
        "memory_hidden_behind_a_process_name",
        """
def take():
    libc.prctl(15, b"VmRSS: 0 kB", 0, 0, 0)
    a = bytearray(40 << 20)
    touch(a)
    time.sleep(60)
libc.prctl(15, b"VmRSS: 0 kB", 0, 0, 0)
children = fork_until_refused(take, 12)
time.sleep(2)
def pages(pid):
    try: return int(open(f"/proc/{pid}/statm").read().split()[1])
    except OSError: return 0
if sum(map(pages, children)) > 256 << 8: os.write(1, b"more than the slot has")
""",
        prints="",
    ),
    ends(
        "both_file_systems_in_memory_filled_and_deleted_while_open",
        """
held = []
for folder in ("/tmp", "/dev/shm"):
    try:
        while True:
            held.append(os.open(f"{folder}/x{len(held)}", os.O_CREAT | os.O_RDWR))
            os.unlink(f"{folder}/x{len(held) - 1}")
            os.write(held[-1], bytes(1 << 20))
    except OSError:
        pass
time.sleep(0.2)
""",
    ),
    ends(
        "pipes_full_of_data",
        """
def fill():
    held = []
    try:
        while True:
            r, w = os.pipe()
            held.append((r, w))
            try: fcntl.fcntl(w, 1031, 1 << 20)
            except OSError: pass
            os.set_blocking(w, False)
            try:
                while True: os.write(w, bytes(65536))
            except BlockingIOError: pass
    except OSError:
        time.sleep(60)
fork_until_refused(fill)
fill()
""",
        limits=WAITS,
    ),
    ends(
        "sockets_full_of_data",
        """
def fill():
    held, total = [], 0
    try:
        while True:
            a, b = socket.socketpair()
            held.append((a, b))
            try: a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            except OSError: pass
            a.setblocking(False)
            try:
                while True: total += a.send(bytes(65536))
            except BlockingIOError: pass
            if total > 256 << 20: os.write(1, b"more than the slot has")
    except OSError:
        time.sleep(60)
fork_until_refused(fill, 3)
fill()
""",
        limits=LIMITS.model_copy(update={"cpu_s": 5.0, "wall_s": 8.0}),
        prints="",
    ),
    ends(
        "files_kept_alive_in_flight_between_two_sockets",
        """
try:
    for turn in range(60):
        a, b = socket.socketpair()
        a.setblocking(False)
        file = os.open(f"/tmp/{turn}", os.O_CREAT | os.O_RDWR)
        os.write(file, bytes(1 << 20))
        os.unlink(f"/tmp/{turn}")
        socket.send_fds(a, [b"x"], [file, a.fileno(), b.fileno()])
        for number in (file, a.detach(), b.detach()): os.close(number)
except OSError:
    pass
""",
    ),
    Attack(
        "memory_that_only_a_cycle_of_sockets_keeps_alive",
        """
import os, socket
a, b = socket.socketpair()
files = []
try:
    for _ in range(44):
        files.append(os.memfd_create("x"))
        for _ in range(4): os.write(files[-1], bytes(1 << 20))
except OSError:
    pass
socket.send_fds(a, [b"x"], [a.fileno(), b.fileno(), *files])
os._exit(0)
""",
        frozenset({EXITED, MEMORY, KILLED}),
        next_program="a = bytearray(50 << 20)\nfor offset in range(0, len(a), 4096): a[offset] = 1\nprint('enough')",
        next_prints="enough\n",
    ),
    ends(
        "page_tables_of_a_sparse_mapping",
        """
m = mmap.mmap(-1, 1 << 36, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
for offset in range(0, 1 << 36, 1 << 21): m[offset]
""",
    ),
    ends(
        "page_tables_of_a_file_mapped_a_thousand_times",
        """
file = open(sys.executable, "rb")
a = []
while True:
    a.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    for offset in range(0, len(a[-1]), 4096): a[-1][offset]
""",
    ),
    ends(
        "locks_on_every_other_byte",
        """
def lock():
    file = open(f"/tmp/{os.getpid()}", "w+b")
    for byte in range(0, 10 ** 9, 2): fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
fork_until_refused(lock)
lock()
""",
    ),
    ends(
        "mappings_cut_into_pieces",
        """
m = mmap.mmap(-1, 1 << 28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
start = ctypes.addressof(ctypes.c_char.from_buffer(m))
for offset in range(0, 1 << 28, 8192): libc.mprotect(ctypes.c_void_p(start + offset), 4096, 1)
""",
    ),
    ends(
        "names_that_do_not_exist_looked_up_without_end",
        "n = 0\nwhile True:\n    n += 1\n    os.path.exists(f'/usr/{n:0200d}')",
        CPU,
        WALL,
        MEMORY,
    ),
    ends(
        "kernel_objects_of_every_kind",
        """
import select
held = []
try:
    while True:
        held.append(select.epoll())
        held.append(socket.socket(socket.AF_UNIX))
        for other in held[:-2]: held[-2].register(other, select.EPOLLIN)
except OSError:
    pass
timer = ctypes.c_void_p()
for _ in range(100_000):
    if libc.syscall(222, 1, None, ctypes.byref(timer)) < 0: break
""",
    ),
    ends(
        "signals_queued_to_itself",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\nwhile True: libc.sigqueue(os.getpid(), 40, 0)",
        CPU,
        WALL,
    ),
    ends("a_stack_without_end", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()"),
    ends("a_stack_without_end_in_c", "a = []\nfor _ in range(10 ** 6): a = [a]\nrepr(a)"),
    ends("source_nested_too_deep_for_the_parser", "eval('(' * 10 ** 6)", *ENDS, Ending.OUTPUT),
    ends(
        "source_that_folds_into_a_giant_constant", "exec('x = ' + '(1,) * 99999' * 1)\nexec('((0,) * 9999 ' + '* 9999' * 3 + ')')"
    ),
    ends("a_decompression_bomb", "import zlib\nzlib.decompress(zlib.compress(bytes(1 << 25)) * 1, bufsize=1 << 33)"),
    ends(
        "arguments_larger_than_any_program_takes",
        "os.execv(sys.executable, [sys.executable, '-c', 'pass'] + ['x' * 131000] * 4000)",
    ),
    ends(
        "memory_held_at_the_brink",
        """
def hold():
    a = []
    try:
        while True: a.append(bytearray(1 << 18))
    except MemoryError:
        pass
    while True:
        for root, _, names in os.walk("/usr/lib"):
            for name in names:
                try: open(os.path.join(root, name), "rb").read(1 << 16)
                except (OSError, MemoryError): pass
fork_until_refused(hold, 3)
hold()
""",
    ),
    tries(
        "memory_that_cannot_be_taken_back",
        """
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(m))
attempt("mlock", lambda: syscall(149, start, 1 << 20))
attempt("mlock2", lambda: syscall(325, start, 1 << 20, 0))
attempt("mlockall", lambda: syscall(151, 3))
attempt("memfd_secret", lambda: syscall(447, 0))
attempt("huge pages", lambda: mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))
attempt("huge file", lambda: mmap.mmap(os.memfd_create("x", 4), 1 << 21))
""",
        not_claimed={"gvisor": "its kernel takes the calls and locks nothing of the host's"},
    ),
    tries(
        "a_lower_oom_score",
        """
for value in ("-1000", "0", "999"):
    for name in ("oom_score_adj", "oom_adj"):
        for pid in ("self", "1", str(os.getppid())):
            attempt((pid, name, value), lambda: os.write(os.open(f"/proc/{pid}/{name}", os.O_WRONLY), value.encode()))
""",
        not_claimed={"gvisor": "its kernel keeps the number and does nothing with it"},
    ),
    tries(
        "higher_limits",
        """
for kind in range(16):
    try: soft, hard = resource.getrlimit(kind)
    except OSError: continue  # not even that
    if hard != resource.RLIM_INFINITY:
        attempt(kind, resource.setrlimit, kind, (hard, hard + 1))
        attempt(("without end", kind), resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
    ),
]
