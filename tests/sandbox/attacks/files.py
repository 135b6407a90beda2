"""Files: too many, too large, too deep, somebody else's, or meant for the next program."""

from sandbox.types import Ending
from tests.sandbox.attacks.attack import WAITS, Attack, leaves, tries, uses_up

EXITED, CPU, WALL, MEMORY, OUTPUT = Ending.EXITED, Ending.CPU_TIME, Ending.WALL_TIME, Ending.MEMORY, Ending.OUTPUT
FILLS = (EXITED, CPU, WALL, MEMORY)

ATTACKS: list[Attack] = [
    uses_up(
        "the_disk_filled",
        """
for folder in ("/tmp", "/dev/shm"):
    number = 0
    try:
        while True:
            number += 1
            with open(f"{folder}/{number}", "wb") as file: file.write(bytes(1 << 20))
            assert number < 64, "more than it was given"
    except OSError as error:
        pass
""",
        *FILLS,
    ),
    uses_up(
        "every_inode_used",
        """
for folder in ("/tmp", "/dev/shm"):
    number = 0
    try:
        while True:
            number += 1
            os.mknod(f"{folder}/{number}")
            assert number < 100_000, "more than it was given"
    except OSError:
        pass
""",
        *FILLS,
    ),
    leaves(
        "folders_too_deep_to_walk",
        """
try:
    for _ in range(5000):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
except OSError:
    pass
""",
    ),
    leaves(
        "folders_that_may_not_be_entered",
        """
for n in range(50):
    os.makedirs(f"/tmp/a{n}/b/c")
    open(f"/tmp/a{n}/b/c/x", "w").close()
    os.chmod(f"/tmp/a{n}/b", 0)
    os.chmod(f"/tmp/a{n}", 0)
if os.stat("/tmp").st_uid == os.getuid(): os.chmod("/tmp", 0)
""",
    ),
    leaves(
        "names_that_are_hard_to_print",
        r"""
for name in (b"\n", b"\xff\xfe", b"-rf", b"a" * 255, b"\x1b[2J", "\u202e".encode(), b" "):
    open(b"/tmp/" + name, "w").close()
    os.symlink(b"/", b"/dev/shm/" + name) if os.access("/dev/shm", os.W_OK) else None
""",
    ),
    leaves("a_file_for_the_next", "open('/tmp/' + MARK, 'w').write('x')", finds="found += [n for n in os.listdir('/tmp')]"),
    leaves(
        "a_module_that_shadows_the_library",
        """
for name in ("json", "random", "sitecustomize", "usercustomize", "re", "collections"):
    open(f"/tmp/{name}.py", "w").write("print('shadowed')")
os.makedirs("/tmp/.local/lib/python3.11/site-packages", exist_ok=True)
open("/tmp/.local/lib/python3.11/site-packages/usercustomize.py", "w").write("print('shadowed')")
""",
        finds="import json, colorsys, calendar\nfound += [p for p in sys.path if p.startswith('/tmp')]",
    ),
    leaves(
        "a_pipe_and_a_socket_in_the_folder",
        "os.mkfifo('/tmp/fifo')\ns = socket.socket(socket.AF_UNIX); s.bind('/tmp/sock'); s.listen()",
    ),
    leaves(
        "locks_on_files_that_all_programs_share",
        "fork_until_refused(lambda: (fcntl.flock(open(os.__file__), fcntl.LOCK_EX), time.sleep(60)), 1)\ntime.sleep(0.1)",
        finds="""
try: fcntl.flock(open(os.__file__), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: found.append("locked")
""",
    ),
    tries(
        "writing_anywhere_else",
        """
for folder in ("/", "/usr", "/usr/lib", "/usr/bin", "/usr/local", "/etc", "/opt", "/opt/grpo", "/opt/grpo/sandbox/agent", "/lib",
    "/bin", "/var",
               "/var/tmp", "/run", "/home", "/root", "/proc", "/proc/self", "/sys", "/dev", "/dev/pts", "/dev/mqueue", "/mnt",
                   "/srv", "/boot",
               os.path.dirname(os.__file__), os.path.dirname(sys.executable)):
    attempt(folder, open, f"{folder}/{MARK}", "w")
    attempt(("folder", folder), os.mkdir, f"{folder}/{MARK}.d")
    attempt(("link", folder), os.symlink, "/", f"{folder}/{MARK}.l")
""",
    ),
    tries(
        "changing_what_all_programs_share",
        """
for path in (sys.executable, os.__file__, "/etc/passwd", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
    "/opt/grpo/sandbox/agent/job.py"):
    for name, call in {
        "write": lambda: open(path, "r+b"), "append": lambda: open(path, "ab"), "truncate": lambda: os.truncate(path, 0),
        "unlink": lambda: os.unlink(path), "rename": lambda: os.rename(path, path + "x"), "chmod": lambda: os.chmod(path, 0o4777),
        "chown": lambda: os.chown(path, os.getuid(), -1), "touch": lambda: os.utime(path), "link": lambda: os.link(path, "/tmp/x"),
        "exchange": lambda: syscall(316, -100, path.encode(), -100, b"/tmp/x", 2), "xattr": lambda: os.setxattr(path, "user.x",
            b"x"),
        "map": lambda: mmap.mmap(os.open(path, os.O_RDONLY), 4096)}.items():
        attempt((path, name), call)
""",
    ),
    tries(
        "symbolic_links_out_of_its_folder",
        """
for n, target in enumerate(("/etc/passwd", sys.executable, "/proc/1/mem", "/proc/self/root/etc/shadow",
    "/sys/kernel/uevent_helper")):
    os.symlink(target, f"/tmp/l{n}")
    attempt(target, open, f"/tmp/l{n}", "w")
for path in ("../../../../../../../../etc/shadow", "/proc/self/root/../../etc/shadow", "/proc/self/cwd/../../etc/shadow",
    "//etc/shadow"):
    attempt(path, open, path)
""",
    ),
    tries(
        "devices",
        """
for number, (name, major, minor) in enumerate((("mem", 1, 1), ("kmem", 1, 2), ("port", 1, 4), ("sda", 8, 0), ("vda", 254, 0),
    ("loop", 7, 0),
                                               ("tun", 10, 200), ("kvm", 10, 232), ("fuse", 10, 229), ("null", 1, 3))):
    for folder in ("/tmp", "/dev/shm", "/dev"):
        attempt((name, folder), os.mknod, f"{folder}/n{number}", 0o600 | 0o060000, os.makedev(major, minor))
        attempt((name, folder, "c"), os.mknod, f"{folder}/c{number}", 0o600 | 0o020000, os.makedev(major, minor))
for name in ("mem", "kmem", "port", "sda", "vda", "nvme0n1", "loop-control", "net/tun", "kvm", "fuse", "kmsg", "vhost-vsock",
    "vsock", "mapper/control",
             "nvidia0", "nvidiactl", "dri/card0", "snd/seq", "input/event0", "rtc", "uinput", "hwrng", "autofs", "btrfs-control",
                 "userfaultfd"):
    attempt(name, open, f"/dev/{name}", "rb")
""",
        not_claimed={"gvisor": "its devices are made by its own kernel"},
    ),
    tries(
        "programs_with_more_rights",
        """
found = []
for root, _, names in os.walk("/usr/bin"):
    for name in names:
        path = os.path.join(root, name)
        mode = os.lstat(path).st_mode
        if mode & 0o6000 and os.path.isfile(path): found.append(path)
for path in found:
    pid = os.fork()
    if pid == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3): os.dup2(null, number)
        try: os.execv(path, [path])
        finally: os._exit(0)
    time.sleep(0.01)
    try:
        status = open(f"/proc/{pid}/status").read().split()
        if status[status.index("Uid:") + 2] != str(os.getuid()): succeeded.append(path)
        os.kill(pid, 9)
    except (OSError, ValueError): pass
    os.waitpid(pid, 0)
""",
    ),
    tries(
        "its_own_files_executed_or_made_set_user_id",
        """
for folder in ("/tmp", "/dev/shm"):
    try:
        with open(sys.executable, "rb") as source, open(f"{folder}/p", "wb") as copy: copy.write(source.read(1 << 16))
        os.chmod(f"{folder}/p", 0o6755)
    except OSError:
        continue
    pid = os.fork()
    if pid == 0:
        try: os.execv(f"{folder}/p", ["p"])
        except PermissionError: os._exit(13)
        except OSError: os._exit(8)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 13: succeeded.append(folder)
    attempt(("map", folder), lambda: mmap.mmap(os.open(f"{folder}/p", os.O_RDONLY), 4096, flags=mmap.MAP_PRIVATE,
        prot=mmap.PROT_READ | mmap.PROT_EXEC))
""",
        not_claimed={"gvisor": "its /tmp goes with the container, and native code is no more there than Python"},
    ),
    uses_up(
        "files_far_larger_than_the_disk",
        """
for size in (1 << 30, 1 << 40, (1 << 63) - 1):
    file = os.open("/tmp/sparse", os.O_CREAT | os.O_RDWR)
    for call in (lambda: os.ftruncate(file, size), lambda: os.posix_fallocate(file, 0, size), lambda: os.pwrite(file, b"x",
        size - 1)):
        try: call()
        except (OSError, OverflowError): pass
    assert os.stat("/tmp/sparse").st_blocks < 1 << 14
""",
        EXITED,
        Ending.KILLED,
    ),
    tries(
        "files_of_the_host",
        """
for path in ("/etc/shadow", "/etc/gshadow", "/root/.ssh/id_rsa", "/root/.bash_history", "/var/run/docker.sock", "/run/docker.sock",
    "/run/containerd/containerd.sock",
             "/var/lib/docker", "/proc/kcore", "/proc/kallsyms", "/proc/kmsg", "/proc/sysrq-trigger", "/proc/config.gz",
                 "/proc/timer_list", "/proc/keys",
             "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/meminfo", "/proc/modules", "/proc/cmdline",
                 "/proc/net/tcp", "/proc/mounts2",
             "/sys/fs/cgroup", "/sys/kernel/debug", "/sys/firmware", "/sys/class/net", "/sys/devices/system/cpu/online",
                 "/var/log", "/home", "/boot", "/mnt"):
    attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))
""",
        not_claimed={"gvisor": "what it shows there is of its own kernel"},
    ),
    tries(
        "core_dumps",
        """
try: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a pipe in the host's core_pattern minds only a limit of 1
except (OSError, ValueError): pass
attempt("limit", resource.setrlimit, resource.RLIMIT_CORE, (0, 1 << 20))
for kind in ("segv", "abort"):
    pid = os.fork()
    if pid == 0:
        os.chdir("/tmp")
        ctypes.string_at(0) if kind == "segv" else os.abort()
    status = os.waitpid(pid, 0)[1]
    if os.WCOREDUMP(status): succeeded.append(kind)
if [n for n in os.listdir("/tmp") if "core" in n]: succeeded.append("file")
""",
    ),
    uses_up(
        "every_descriptor_used",
        """
def take():
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
            assert len(held) < 2000
    except OSError:
        time.sleep(60)
fork_until_refused(take)
take()
""",
        limits=WAITS,
    ),
    uses_up(
        "every_pseudo_terminal_used",
        """
def take():
    held = []
    try:
        while True: held.append(os.open("/dev/ptmx", os.O_RDWR))
    except OSError:
        time.sleep(60)
fork_until_refused(take)
take()
""",
        WALL,
        CPU,
        MEMORY,
        limits=WAITS,
    ),
    leaves("a_working_folder_that_is_gone", "os.mkdir('/tmp/x'); os.chdir('/tmp/x'); os.rmdir('/tmp/x')"),
    leaves("a_thousand_links_to_one_another", "os.chdir('/tmp')\nfor n in range(500): os.symlink(f'l{(n + 1) % 500}', f'l{n}')"),
]
