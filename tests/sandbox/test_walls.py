"""The system call filter, run by an interpreter of classic BPF; the container's profile; both from one table."""

import errno
import json
import re
import resource
import struct
from pathlib import Path

import pytest

from sandbox.agent import syscalls, walls
from sandbox.seccomp import container_profile

ALLOW, KILL, X86_64, I386 = 0x7FFF0000, 0x80000000, 0xC000003E, 0x40000003
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def refused(number: int) -> int:
    return 0x00050000 | number


def decide(program: bytes, call: int, *arguments: int, architecture: int = X86_64) -> int:
    """What a filter returns, by the rules of classic BPF for the instructions that ours uses (seccomp(2), bpf(4))."""
    words = struct.pack("=iIQ6Q", call, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    lines = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", words, value)
        elif code == 0x05:
            at += value
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += if_true if holds else if_false


PROGRAM = walls.filter_program()


def test_exactly_the_table_is_allowed():
    by_argument = {syscalls.SOCKET, syscalls.SOCKETPAIR, syscalls.IOCTL, syscalls.PRCTL}
    allowed = {number for number in range(600) if decide(PROGRAM, number) == ALLOW}
    assert allowed | by_argument == set(syscalls.ALLOWED.values()) | by_argument


@pytest.mark.parametrize(
    "name",
    [
        *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "mount", "umount2", "pivot_root", "chroot"),
        *("unshare", "setns", "mount_setattr", "move_mount", "open_tree", "fsopen", "bpf", "perf_event_open", "userfaultfd"),
        *("io_uring_setup", "io_uring_enter", "keyctl", "add_key", "request_key", "shmget", "semget", "msgget", "mq_open"),
        *("init_module", "kexec_load", "reboot", "swapon", "sethostname", "settimeofday", "clock_settime", "adjtimex", "acct"),
        *("quotactl", "syslog", "personality", "modify_ldt", "iopl", "ioperm", "name_to_handle_at", "open_by_handle_at"),
        *(
            "fanotify_init",
            "inotify_init1",
            "seccomp",
            "memfd_secret",
            "vmsplice",
            "process_madvise",
            "setxattr",
            "io_setup",
            "sync",
            "syncfs",
        ),
    ],
)
def test_what_a_judged_program_never_needs_is_refused(name):
    numbers = dict(re.findall(r"__NR_(\w+) (\d+)", HEADER.read_text())) if HEADER.exists() else {}
    if name not in numbers:
        pytest.skip(f"{HEADER} does not say the number of {name}")
    assert decide(PROGRAM, int(numbers[name])) == refused(errno.EPERM)


@pytest.mark.skipif(not HEADER.exists(), reason=f"{HEADER} is not installed")
def test_the_numbers_are_the_kernels():
    numbers = {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", HEADER.read_text())}
    assert {name: numbers.get(name) for name in syscalls.ALLOWED} == syscalls.ALLOWED


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_a_fork_is_allowed_and_a_namespace_is_not(flag):
    assert decide(PROGRAM, syscalls.CLONE, 17) == ALLOW
    assert decide(PROGRAM, syscalls.CLONE, 0x3D0F00) == ALLOW  # what glibc starts a thread with
    assert decide(PROGRAM, syscalls.CLONE, 17 | flag) == refused(errno.EPERM)


def test_clone3_does_not_exist_so_that_flags_can_be_read():
    assert decide(PROGRAM, syscalls.CLONE3) == refused(errno.ENOSYS)


@pytest.mark.parametrize("call", [syscalls.SOCKET, syscalls.SOCKETPAIR])
def test_sockets_are_local_ones(call):
    assert decide(PROGRAM, call, 1) == ALLOW
    for family in (0, 2, 10, 16, 17, 31, 38, 40):  # inet, inet6, netlink, packet, bluetooth, alg, vsock
        assert decide(PROGRAM, call, family) == refused(errno.EACCES)


@pytest.mark.parametrize(
    ("request_", "verdict"),
    [
        *((0x5401, ALLOW), (0x5413, ALLOW), (0x541B, ALLOW), (0x5451, ALLOW)),  # TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX
        *(
            (request, refused(errno.EPERM)) for request in (0x5412, 0x541C, 0x5423, 0, 0x40046602, 0xC0045516)
        ),  # TIOCSTI, TIOCSETD, ...
    ],
)
def test_only_harmless_requests_reach_a_driver(request_, verdict):
    assert decide(PROGRAM, syscalls.IOCTL, 0, request_) == verdict


def test_a_process_changes_only_itself():
    assert decide(PROGRAM, syscalls.PRCTL, 15) == ALLOW  # PR_SET_NAME
    for option in (22, 35, 62, 0x59616D61):  # PR_SET_SECCOMP, PR_SET_MM, PR_SCHED_CORE, PR_SET_PTRACER
        assert decide(PROGRAM, syscalls.PRCTL, option) == refused(errno.EPERM)


def test_core_dumps_stay_off():
    assert decide(PROGRAM, syscalls.SETRLIMIT, resource.RLIMIT_CORE) == refused(errno.EPERM)
    assert decide(PROGRAM, syscalls.PRLIMIT, 0, resource.RLIMIT_CORE) == refused(errno.EPERM)
    for kind in (resource.RLIMIT_STACK, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):
        assert decide(PROGRAM, syscalls.SETRLIMIT, kind) == decide(PROGRAM, syscalls.PRLIMIT, 0, kind) == ALLOW


def test_other_architectures_are_no_way_around():
    assert decide(PROGRAM, 1, architecture=I386) == KILL
    assert decide(PROGRAM, 0x40000000 | 1) == refused(errno.ENOSYS)


def test_memory_that_no_process_has_cannot_be_had_where_nobody_counts_it():
    jail, memfd = walls.filter_program(is_counted=False), syscalls.ALLOWED["memfd_create"]
    private, shared, shared_file, private_anonymous = 0x02, 0x21, 0x01, 0x22
    assert decide(PROGRAM, memfd) == decide(PROGRAM, syscalls.MMAP, 0, 0, 0, shared) == ALLOW
    assert decide(jail, memfd) == decide(jail, syscalls.MMAP, 0, 0, 0, shared) == refused(errno.EPERM)
    for flags in (private, shared_file, private_anonymous, 0x20000 | private_anonymous):
        assert decide(jail, syscalls.MMAP, 0, 0, 0, flags) == ALLOW
    assert decide(jail, syscalls.MMAP, 0, 0, 0, 0x8000 | shared) == refused(errno.EPERM)


@pytest.mark.parametrize("program", [PROGRAM, walls.filter_program(is_counted=False)])
def test_huge_pages_cannot_be_had(program):
    assert decide(program, syscalls.MMAP, 0, 0, 0, 0x40022) == refused(errno.EPERM)
    assert decide(program, syscalls.MEMFD_CREATE, 0, 4) == refused(errno.EPERM)
    assert decide(program, syscalls.MMAP, 0, 0, 0, 0x22) == ALLOW


def test_the_containers_profile_adds_only_what_the_server_needs():
    profile = json.loads(container_profile())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert allowed - set(syscalls.ALLOWED) == {"mount", "mount_setattr", "seccomp", "sendmsg"}
    (sockets,) = (rule for rule in profile["syscalls"] if "socket" in rule["names"])
    assert sockets["args"] == [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
