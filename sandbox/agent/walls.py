"""What a program loses before it runs: every namespace but the network's, every capability, and all system calls but the allowed.

The order matters and is the callers': `new_process` (namespaces), `map_user`, `private_mounts`, `limit`, `give_up_privileges`.
Sources: user_namespaces(7), pid_namespaces(7), mount_setattr(2), seccomp(2), capabilities(7), proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct

import sandbox.agent.syscalls as syscalls

libc = ctypes.CDLL(None, use_errno=True)

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    *(0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000),
)
CLONE_PARENT = 0x8000
SYS_CAPSET, SYS_SECCOMP, SYS_MOUNT_SETATTR = 126, 317, 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1
INODES_PER_MB = 256

# Between a program and the fork server: namespaces of its own; another user, where the whole container is thrown away afterwards
# (gVisor, whose kernel is the wall and knows no mounts per process); nothing, for trusted programs.
NAMESPACES, USER, NONE = ISOLATIONS = ("namespaces", "user", "none")
PROGRAM_USER = 20000
SERVER_USER = os.getuid(), os.getgid()  # asked before there is a namespace in which nobody is anybody


class WallError(OSError):
    """The kernel refused a wall, so no program may run."""


def new_process() -> int:
    """Like os.fork, but in namespaces of its own, and as a child of the caller's parent, which then waits for it. 0 in the child.

    The network namespace is the container's, which has none of the host's interfaces: new sockets but AF_UNIX are filtered, and a
    network namespace of its own would cost a program as much as all the others together.
    """
    flags = CLONE_PARENT | signal.SIGCHLD | NEW_USER | NEW_PID | NEW_NS | NEW_IPC | NEW_UTS
    pid = libc.syscall(syscalls.CLONE, flags, 0, 0, 0, 0)
    if pid < 0:
        raise _refused("clone")
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid


def map_user() -> None:
    """The server's user is the same inside, and nobody else exists."""
    user, group = SERVER_USER
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def private_mounts(*, disk_mb: int, is_counted: bool) -> None:
    """Everything read-only, but an own /tmp and /dev/shm; /proc shows this namespace's processes and nothing of the machine.

    Unless `is_counted`, /dev/zero is empty: to map it is to have memory that is part of no process's size.
    """
    _check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "make mounts private")
    read_only = struct.pack("4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, len(read_only)), "make mounts read-only")
    own = f"size={disk_mb}m,nr_inodes={INODES_PER_MB * disk_mb},mode=1777".encode()
    for place in (b"/tmp", b"/dev/shm"):
        _check(libc.mount(b"tmpfs", place, b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, own), f"mount {place.decode()}")
    if not is_counted:
        _check(libc.mount(b"/dev/null", b"/dev/zero", None, MS_BIND, None), "cover /dev/zero")
    locked = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY
    _check(libc.mount(b"tmpfs", b"/sys", b"tmpfs", locked, b"size=4k,nr_inodes=2,mode=555"), "hide /sys")
    _check(libc.mount(b"proc", b"/proc", b"proc", locked, b"subset=pid"), "mount /proc")


def limit(
    *, cpu_s: float, memory_mb: int, max_processes: int, disk_mb: int, own_bytes: int, only_data: bool, all_known: bool
) -> None:
    """Limits of this process and its children. `own_bytes` of data were there before the program.

    `only_data`: what is shared or read from files does not count, because the container counts it.
    Those on CPU and processes stand behind the server's own clock and the container's own count. A kernel that does not know them
    all (gVisor) is excused when `all_known` is false.
    """
    mib = 1 << 20
    for name, value in {
        "CPU": int(cpu_s) + 2,
        "DATA" if only_data else "AS": memory_mb * mib + own_bytes,
        "FSIZE": disk_mb * mib,
        "NPROC": max_processes,
        "NOFILE": 128,
        "STACK": 64 * mib,
        "CORE": 1,  # 0 would still feed a core_pattern that is a pipe; 1 feeds nothing (core(5))
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 256,
        "RTPRIO": 0,
    }.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except ValueError:
            if all_known:
                raise


def give_up_privileges(*, user: int | None = None, is_counted: bool = True) -> None:
    """No capability now or after any exec, and from here on only the allowed system calls. Becomes `user` on the way, if given.

    `is_counted`: the kernel holds all the job's memory to a limit, not only each process's.
    """
    libc.prctl(PR_CAP_AMBIENT, 4, 0, 0, 0)  # there are none; gVisor does not know the call
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if ctypes.get_errno() != errno.EINVAL:
        raise _refused("drop the bounding set")
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _check(libc.syscall(SYS_CAPSET, struct.pack("Ii", 0x20080522, 0), bytes(24)), "drop capabilities")
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
    system_calls = _FILTER if is_counted else _FILTER_IN_JAILS
    _check(libc.syscall(SYS_SECCOMP, 1, 0, ctypes.byref(system_calls)), "load the system call filter")


def hide_from_others() -> None:
    """No process of the same user may look into this one, or trace it; its files below /proc belong to root."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def show_to_others() -> None:
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, JUMP, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE = 0, 4  # offsets in what a filter looks at; the arguments' follow

AF_UNIX = 1
# A terminal's size, bytes to read, close-on-exec, blocking: nothing that a driver would act upon.
HARMLESS_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Names, death signals, dumpability, timer slack, capabilities (to read), subreapers, huge pages off, names of memory regions.
HARMLESS_PRCTLS = (1, 2, 3, 4, 15, 16, 21, 23, 29, 30, 36, 37, 39, 41, 42, 0x53564D41)
MAP_SHARED_ANONYMOUS, MAP_HUGETLB, MFD_HUGETLB = 0x21, 0x40000, 0x4
SOCKET_BUFFERS = socket.SO_SNDBUF, socket.SO_RCVBUF


def filter_program(*, is_counted: bool = True) -> bytes:
    """The filter as classic BPF: an allowed call returns at its own line, everything else falls through to EPERM.

    A program of another architecture (32-bit calls) is killed; x32 and clone3 do not exist (ENOSYS: glibc then uses clone, whose
    flags can be read). Unless `is_counted`, memory that is part of no process's size cannot be had: files in memory, shared pages
    without a file, which stay when a process gives up its view of them, and sockets' buffers beyond the usual.
    """
    lines: list[bytes] = []
    decided: set[int] = set()

    def add(code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        lines.append(struct.pack("HBBI", code, if_true, if_false, value))

    def look_at(
        call: int, argument: int, tests: list[tuple[int, int]], *, then: int, otherwise: int | None, mask: int | None = None
    ) -> None:
        """For one call: `then` if any test (instruction, value) on the argument's low half holds, else `otherwise`, or go on."""
        load = [(LOAD, 16 + 8 * argument), *([(AND, mask)] if mask is not None else [])]
        end = [(LOAD, NUMBER), (JUMP, 1)] if otherwise is None else [(RETURN, otherwise)]
        add(EQUAL, call, 0, len(load) + len(tests) + len(end) + 1)
        if otherwise is not None:
            decided.add(call)
        for code, value in load:
            add(code, value)
        for left, (code, value) in enumerate(tests):
            add(code, value, len(tests) - 1 - left + len(end), 0)
        for code, value in end:
            add(code, value)
        add(RETURN, then)

    refused = REFUSE | errno.EPERM
    add(LOAD, ARCHITECTURE)
    add(EQUAL, 0xC000003E, 1, 0)  # AUDIT_ARCH_X86_64
    add(RETURN, KILL)
    add(LOAD, NUMBER)
    add(AT_LEAST, 0x40000000, 0, 1)
    add(RETURN, REFUSE | errno.ENOSYS)
    add(EQUAL, syscalls.CLONE3, 0, 1)
    add(RETURN, REFUSE | errno.ENOSYS)
    namespaces = NEW_NS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PID | NEW_NET
    look_at(syscalls.CLONE, 0, [(ANY_BIT, namespaces)], then=refused, otherwise=ALLOW)
    for call in (syscalls.SOCKET, syscalls.SOCKETPAIR):
        look_at(call, 0, [(EQUAL, AF_UNIX)], then=ALLOW, otherwise=REFUSE | errno.EACCES)
    look_at(syscalls.IOCTL, 1, [(EQUAL, request) for request in HARMLESS_IOCTLS], then=ALLOW, otherwise=refused)
    look_at(syscalls.PRCTL, 0, [(EQUAL, option) for option in HARMLESS_PRCTLS], then=ALLOW, otherwise=refused)
    look_at(syscalls.SETRLIMIT, 0, [(EQUAL, resource.RLIMIT_CORE)], then=refused, otherwise=ALLOW)
    look_at(syscalls.PRLIMIT, 1, [(EQUAL, resource.RLIMIT_CORE)], then=refused, otherwise=ALLOW)
    # Huge pages are in no limit of the container's: another controller holds them.
    look_at(syscalls.MMAP, 3, [(ANY_BIT, MAP_HUGETLB)], then=refused, otherwise=None)
    if not is_counted:
        bits = MAP_SHARED_ANONYMOUS
        look_at(syscalls.MMAP, 3, [(EQUAL, bits)], then=refused, otherwise=None, mask=bits)
        look_at(syscalls.SETSOCKOPT, 2, [(EQUAL, option) for option in SOCKET_BUFFERS], then=refused, otherwise=ALLOW)
    look_at(syscalls.MEMFD_CREATE, 1, [(ANY_BIT, MFD_HUGETLB)], then=refused, otherwise=ALLOW if is_counted else refused)
    for call in sorted(set(syscalls.ALLOWED.values()) - decided):
        add(EQUAL, call, 0, 1)
        add(RETURN, ALLOW)
    add(RETURN, refused)
    return b"".join(lines)


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def _loadable(program: bytes) -> _Filter:
    buffer = ctypes.create_string_buffer(program, len(program))
    loadable = _Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    loadable.buffer = buffer  # kept alive
    return loadable


_FILTER = _loadable(filter_program())
_FILTER_IN_JAILS = _loadable(filter_program(is_counted=False))


def check_machine() -> None:
    """The filter's numbers are those of one architecture. Raises WallError on another."""
    if platform.machine() != "x86_64":
        raise WallError(errno.ENOTSUP, f"system calls are filtered by their numbers on x86_64; this is {platform.machine()}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise _refused(what)


def _refused(what: str) -> WallError:
    number = ctypes.get_errno()
    return WallError(number, f"{what}: {os.strerror(number)}")
