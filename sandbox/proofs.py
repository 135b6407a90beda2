"""A handful of attacks by which `grpo sandbox doctor` proves a level where it stands. The full suite is tests/sandbox/attacks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sandbox.protocol import Sandbox
from sandbox.types import Ending, Execution, Limits, Program

LIMITS = Limits(cpu_s=1.0, memory_mb=64, max_processes=16, output_kb=16, disk_mb=4)


@dataclass(frozen=True, slots=True)
class Proof:
    """A claim, a program that attacks it, and what its execution must be; then, if given, what the next program must print."""

    claim: str
    program: str
    holds: Callable[[Execution], bool]
    next_program: str = ""
    next_prints: str = ""


class Outcome(NamedTuple):
    """Whether a claim held, and what was seen where it did not."""

    claim: str
    held: bool
    seen: str


def refused(execution: Execution) -> bool:
    """The program printed which of its attempts succeeded, and none did."""
    return execution.ok and execution.stdout == "[]\n"


def ended_by(*endings: Ending) -> Callable[[Execution], bool]:
    return lambda execution: execution.ending in endings


ATTEMPTS = """
import os, socket
succeeded = []
def attempt(name, call, *args):
    try:
        call(*args)
        succeeded.append(name)
    except (OSError, ValueError):
        pass
"""
PRINT = "print(succeeded)\n"

NETWORK = """
def reach(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(0.5)
        s.connect(address)
attempt("TCP", reach, socket.AF_INET, socket.SOCK_STREAM, ("1.1.1.1", 53))
attempt("UDP", reach, socket.AF_INET, socket.SOCK_DGRAM, ("1.1.1.1", 53))
attempt("IPv6", reach, socket.AF_INET6, socket.SOCK_DGRAM, ("2606:4700::1111", 53))
attempt("cloud metadata", reach, socket.AF_INET, socket.SOCK_STREAM, ("169.254.169.254", 80))
attempt("names", socket.getaddrinfo, "example.org", 80)
"""
WRITES = """
for folder in ("/", "/usr", "/usr/lib", "/etc", "/opt/grpo", "/proc/sys/kernel", "/sys", "/dev", "/var", "/home", "/root"):
    attempt(folder, open, folder + "/intruder", "w")
"""
PROCESSES = """
mine = {os.getppid(), os.getpid()}  # the first process of its own world, and itself
for pid in set(range(1, 400)) - mine:
    attempt(f"signal {pid}", os.kill, pid, 0)
    attempt(f"memory of {pid}", open, f"/proc/{pid}/mem", "rb")
attempt("sysrq", os.open, "/proc/sysrq-trigger", os.O_WRONLY)
attempt("become root", os.setuid, 0)
attempt("host name", socket.sethostname, "intruder")
"""
LEAVES = """
import os, socket, time
for folder in ("/tmp", "/dev/shm"):
    if os.access(folder, os.W_OK):
        open(folder + "/left", "w").close()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("\\0left")
        listening.listen()
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(0.1)
"""
FINDS = """
import os, socket
left = [folder for folder in ("/tmp", "/dev/shm") if os.path.exists(folder + "/left")]
left += sorted({pid for pid in os.listdir("/proc") if pid.isdigit()} - {"1", str(os.getppid()), str(os.getpid())})
try:
    socket.socket(socket.AF_UNIX).connect("\\0left")
    left.append("socket")
except OSError:
    pass
print(left)
"""


def proofs(canary: Path) -> Sequence[Proof]:
    """The claims, quickest first. `canary` is a file of the host that anybody may read."""
    reads = f"paths = ({str(canary)!r}, '/proc/1/root{canary}', '/etc/shadow', '/var/run/docker.sock')\n"
    return (
        Proof("a program runs", "print(sum(int(line) for line in ['20', '22']))", lambda e: e.ok and e.stdout == "42\n"),
        Proof("no network", ATTEMPTS + NETWORK + PRINT, refused),
        Proof("no file of the host", ATTEMPTS + reads + "for path in paths:\n    attempt(path, open, path)\n" + PRINT, refused),
        Proof("no writing outside its /tmp", ATTEMPTS + WRITES + PRINT, refused),
        Proof("no other process, no other user", ATTEMPTS + PROCESSES + PRINT, refused),
        Proof("nothing is left for the next program", LEAVES, ended_by(Ending.EXITED), FINDS, "[]\n"),
        Proof("an endless loop ends", "while True: pass", ended_by(Ending.CPU_TIME)),
        Proof("memory ends", "a = []\nwhile True: a.append(bytearray(1 << 24))", ended_by(Ending.MEMORY)),
        Proof("output ends", "while True: print('x' * 9999)", ended_by(Ending.OUTPUT)),
        Proof(
            "a fork bomb ends",
            "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
            lambda e: not e.ok,
            "print(6 * 7)",
            "42\n",
        ),
    )


async def prove(sandbox: Sandbox) -> list[Outcome]:
    """Run every proof, one after the other. Raises SandboxUnavailable or SandboxLost when the level does not work at all."""
    with tempfile.TemporaryDirectory(prefix="grpo-doctor-") as folder:
        canary = Path(folder, "canary")
        canary.write_text("read")
        Path(folder).chmod(0o755)
        return [await _outcome(sandbox, proof) for proof in proofs(canary)]


async def _outcome(sandbox: Sandbox, proof: Proof) -> Outcome:
    execution = await sandbox.run(Program(proof.program), limits=LIMITS)
    if not proof.holds(execution):
        return Outcome(proof.claim, False, _seen(execution))
    if proof.next_program:
        execution = await sandbox.run(Program(proof.next_program), limits=LIMITS)
        if execution.stdout != proof.next_prints:
            return Outcome(proof.claim, False, f"the next program: {_seen(execution)}")
    return Outcome(proof.claim, True, "")


def _seen(execution: Execution) -> str:
    words = (execution.stdout + execution.stderr).strip().splitlines()
    return f"{execution.ending.value} {execution.reason} {words[-1] if words else ''}".strip()[:200]
