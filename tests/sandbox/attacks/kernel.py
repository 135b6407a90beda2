"""System calls that no judged program needs, and what they would open: namespaces, mounts, modules, clocks, keys."""

from sandbox.agent.syscalls import ALLOWED
from sandbox.types import Ending, Limits
from tests.sandbox.attacks.attack import Attack, tries, uses_up

ATTACKS: list[Attack] = [
    tries(
        "every_system_call_there_is",
        f"""
allowed = set({sorted(ALLOWED.values())})
for number in set(range(700)) - allowed - {{335,
    336}}:  # uretprobe and uprobe pass every filter, and end who calls them from elsewhere
    for args in ((-1,) * 6, (0,) * 6, (os.getpid(), 0, 0, 0, 0, 0)):
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
        if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
            succeeded.append((number, args[0], result, ctypes.get_errno()))
for number in range(0x40000000, 0x40000000 + 600, 41):
    pid = os.fork()
    if pid == 0: os._exit(1 if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(-1),) * 6) == -1 else 0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0: succeeded.append(("x32", number))
""",
        limits=Limits(cpu_s=3.0, wall_s=15.0, memory_mb=64, max_processes=16, output_kb=16, disk_mb=4),
    ),
    uses_up(
        "system_calls_of_a_32_bit_program",
        """
# mov eax, 20 (getpid); int 0x80; ret
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print("got", call())
raise SystemExit("it came back")
""",
        Ending.KILLED,
        not_claimed={"gvisor": "its kernel takes the call for one of its own, by the same filter"},
    ),
    tries(
        "namespaces",
        """
flags = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000, "time": 0x80}
for name, flag in flags.items():
    attempt(("unshare", name), syscall, 272, flag)
    if name != "time":
        def clone():
            pid = syscall(56, flag | 17, 0, 0, 0, 0)
            if pid == 0: os._exit(0)
            os.waitpid(pid, 0)
        attempt(("clone", name), clone)
    arguments = struct.pack("11Q", flag, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    attempt(("clone3", name), lambda: os._exit(0) if syscall(435, arguments, len(arguments)) == 0 else None)
for name in ("mnt", "user", "pid", "net", "ipc", "uts", "cgroup", "time"):
    for pid in ("self", "1"):
        attempt(("setns", pid, name), lambda: syscall(308, os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), 0))
attempt("setns by pidfd", lambda: syscall(308, os.pidfd_open(os.getpid()), 0x20000))
""",
    ),
    tries(
        "mounts",
        """
attempt("tmpfs", lambda: syscall(165, b"x", b"/tmp", b"tmpfs", 0, None))
attempt("proc", lambda: syscall(165, b"x", b"/tmp", b"proc", 0, None))
attempt("bind", lambda: syscall(165, b"/usr", b"/tmp", None, 4096, None))
attempt("remount", lambda: syscall(165, None, b"/", None, 32, None))
attempt("remount proc", lambda: syscall(165, None, b"/proc", None, 32 | 4096, None))
for path in (b"/proc", b"/sys", b"/tmp", b"/dev/shm", b"/dev"):
    attempt(("umount", path), lambda: syscall(166, path, 2))
for name, number in (("open_tree", 428), ("move_mount", 429), ("fsopen", 430), ("fsconfig", 431), ("fsmount", 432), ("fspick",
    433), ("mount_setattr", 442),
                     ("pivot_root", 155), ("chroot", 161), ("statmount", 457), ("listmount", 458), ("open_tree_attr", 467),
                         ("swapon", 167), ("quotactl", 179)):
    attempt(name, syscall, number, b"/tmp", b"/tmp", 0, 0, 0)
""",
    ),
    tries(
        "keys",
        """
for ring in (-1, -2, -3, -4, -5):
    attempt(("add", ring), syscall, 248, b"user", b"grpo-attack", b"x", 1, ring)
    attempt(("search", ring), syscall, 250, 10, ring, b"user", b"grpo-attack", 0)
    attempt(("read", ring), syscall, 250, 11, ring, 0, 0, 0)
attempt("join", syscall, 250, 1, None, 0, 0, 0)
attempt("request", syscall, 249, b"user", b"grpo-attack", None, -3)
""",
    ),
    tries(
        "rings_probes_and_watchers",
        """
parameters = ctypes.create_string_buffer(120)
for name, number, args in (("io_uring_setup", 425, (8, parameters)), ("io_uring_enter", 426, (0, 0, 0, 0, 0)),
    ("io_uring_register", 427, (0, 0, 0, 0)),
                           ("bpf", 321, (5, parameters, 120)), ("perf_event_open", 298, (parameters, 0, -1, -1, 0)),
                               ("userfaultfd", 323, (1,)),
                           ("fanotify_init", 300, (0, 0)), ("inotify_init1", 294, (0,)), ("aio_setup", 206, (1, parameters)),
                               ("landlock", 444, (0, 0, 1)),
                           ("watch_queue", 293, (parameters, 0o200)), ("name_to_handle", 303, (-100, b"/", parameters, parameters,
                               0)),
                           ("open_by_handle", 304, (-100, parameters, 0)), ("lookup_dcookie", 212, (0, 0, 0)), ("vmsplice", 278,
                               (1, 0, 0, 0)),
                           ("splice", 275, (0, 0, 1, 0, 0, 0)), ("tee", 276, (0, 1, 0, 0)), ("remap_file_pages", 216, (0, 0, 0, 0,
                               0)),
                           ("migrate_pages", 256, (0, 0, 0, 0)), ("move_pages", 279, (0, 0, 0, 0, 0, 0)), ("cachestat", 451, (0, 0,
                               0, 0))):
    attempt(name, syscall, number, *args)
""",
    ),
    tries(
        "the_machine_itself",
        """
for name, number, args in (("reboot", 169, (0xFEE1DEAD, 672274793, 0x1234567)), ("kexec_load", 246, (0, 0, 0, 0)), ("kexec_file",
    320, (0, 0, 0, 0, 0)),
                           ("init_module", 175, (b"", 0, b"")), ("finit_module", 313, (0, b"", 0)), ("delete_module", 176, (b"x",
                               0)), ("syslog", 103, (3, 0, 0)),
                           ("acct", 163, (b"/tmp/a",)), ("iopl", 172, (3,)), ("ioperm", 173, (0, 1024, 1)), ("vhangup", 153, ()),
                               ("modify_ldt", 154, (0, 0, 0)),
                           ("ustat", 136, (1, 0)), ("sysfs", 139, (3,)), ("_sysctl", 156, (0,)), ("uselib", 134, (b"/x",)),
                               ("nfsservctl", 180, (0, 0, 0)),
                           ("set_mempolicy", 238, (0, 0, 0)), ("mbind", 237, (0, 0, 0, 0, 0, 0)), ("lsm_list", 461, (0, 0, 0))):
    attempt(name, syscall, number, *args)
""",
    ),
    tries(
        "clocks_and_names",
        """
attempt("settimeofday", syscall, 164, struct.pack("QQ", 0, 0), None)
attempt("clock_settime", syscall, 227, 0, struct.pack("QQ", 0, 0))
attempt("adjtimex", syscall, 159, ctypes.create_string_buffer(struct.pack("I", 1) + bytes(300)))
attempt("clock_adjtime", syscall, 305, 0, ctypes.create_string_buffer(struct.pack("I", 1) + bytes(300)))
attempt("hostname", socket.sethostname, "grpo-attack")
attempt("domainname", syscall, 171, b"grpo-attack", 11)
attempt("personality", syscall, 135, 0x0040000)
""",
    ),
    tries(
        "becoming_somebody",
        """
me = os.getuid()
for user in (0, 1, 65534, 20001):
    if user == me: continue
    attempt(("setuid", user), os.setuid, user)
    attempt(("setgid", user), os.setgid, user)
    attempt(("setresuid", user), os.setresuid, user, user, user)
    attempt(("setreuid", user), os.setreuid, -1, user)
    attempt(("setgroups", user), os.setgroups, [user])
    libc.setfsuid(user)
    if libc.setfsuid(-1) == user: succeeded.append(("setfsuid", user))
attempt("capset", syscall, 126, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0xFFFFFFFF] * 6))
attempt("capset one", syscall, 126, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", 1 << 21, 1 << 21, 0, 0, 0, 0))
for capability in range(41):
    attempt(("ambient", capability), lambda: syscall(157, 47, 2, capability, 0, 0))
for name in ("uid_map", "gid_map", "setgroups", "projid_map"):
    attempt(name, lambda: os.write(os.open(f"/proc/self/{name}", os.O_WRONLY), b"0 0 1"))
status = open("/proc/self/status").read().split()
for name in ("CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"):
    if name in status and int(status[status.index(name) + 1], 16): succeeded.append(name)
if "NoNewPrivs:" in status and status[status.index("NoNewPrivs:") + 1] != "1": succeeded.append("new privileges")
""",
    ),
    tries(
        "the_filter_taken_off_or_listened_to",
        """
prog = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
fprog = struct.pack("HxxxxxxP", 1, ctypes.addressof(prog))
attempt("listener", lambda: syscall(317, 1, 8, fprog))
attempt("sync", lambda: syscall(317, 1, 1, fprog))
attempt("no new privileges", lambda: syscall(157, 38, 0, 0, 0, 0))
attempt("strict off", lambda: syscall(157, 22, 0, 0, 0, 0))
for option in (34, 35, 55, 57):
    attempt(("prctl", option), lambda: syscall(157, option, 1, 1, 1, 1))
attempt("mm", lambda: syscall(157, 35, 8, 0x10000, 0, 0))
pid = os.fork()
if pid == 0:  # a filter of its own that allows everything changes nothing
    libc.syscall(157, 22, 2, fprog, 0, 0)
    os._exit(0 if libc.syscall(272, 0x10000000) == 0 else 1)
if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0: succeeded.append("a second filter")
""",
    ),
    tries(
        "messages_and_memory_shared_by_key",
        """
for key in (0, 1, 0x1234):
    attempt(("shm", key), syscall, 29, key, 4096, 0o1666)
    attempt(("sem", key), syscall, 64, key, 1, 0o1666)
    attempt(("msg", key), syscall, 68, key, 0o1666)
attempt("mq", syscall, 240, b"grpo-attack", 0o102, 0o666, None)
attempt("mq file", lambda: open("/dev/mqueue/grpo-attack", "w"))
""",
    ),
    tries(
        "terminals",
        """
import pty
try:
    ours, theirs = os.openpty()
except OSError:
    ours = theirs = -1
if ours >= 0:
    for discipline in range(1, 31):
        attempt(("line discipline", discipline), fcntl.ioctl, ours, 0x5423, struct.pack("i", discipline))
        attempt(("line discipline of the other end", discipline), fcntl.ioctl, theirs, 0x5423, struct.pack("i", discipline))
    attempt("push", fcntl.ioctl, theirs, 0x5412, b"x")
    attempt("push in 64 bits", lambda: syscall(16, theirs, (1 << 32) | 0x5412, b"x"))
    attempt("console", fcntl.ioctl, theirs, 0x541D)
    attempt("linux", fcntl.ioctl, theirs, 0x541C, b"\\3")
attempt("tty", open, "/dev/tty", "r+b")
attempt("console", open, "/dev/console", "wb")
attempt("tty0", open, "/dev/tty0", "wb")
""",
    ),
    tries(
        "modules_loaded_by_what_a_file_begins_with",
        """
before = os.sysconf("SC_CLK_TCK")
for n in range(20):
    file = os.memfd_create(f"{n}")
    os.write(file, bytes([n + 1, 255, 254, n]) + bytes(200))
    pid = os.fork()
    if pid == 0:
        try: os.execv(f"/proc/self/fd/{file}", ["x"])
        except OSError: os._exit(9)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 9: succeeded.append(n)
""",
        not_claimed={"bubblewrap": "memory files are not had there", "gvisor": "memory files are not had there"},
    ),
    tries(
        "all_file_systems_of_the_machine_flushed",
        "for name, number, args in (('sync', 162, ()), ('syncfs', 306, (0,))): attempt(name, syscall, number, *args)",
    ),
]
