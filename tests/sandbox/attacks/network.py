"""The network in any form, and sockets of anybody else on the machine."""

from tests.sandbox.attacks.attack import Attack, leaves, tries

ATTACKS: list[Attack] = [
    tries(
        "sockets_of_every_family_but_the_local_one",
        """
for family in range(64):
    for kind in (1, 2, 3, 5, 1 | 0o2000000):
        for protocol in (0, 1, 6, 17, 255):
            if family != socket.AF_UNIX:
                attempt((family, kind, protocol), lambda: os.close(syscall(41, family, kind, protocol)))
    if family != socket.AF_UNIX:
        pair = ctypes.create_string_buffer(8)
        attempt(("pair", family), lambda: syscall(53, family, 1, 0, pair))
for family in (1 << 32 | 2, -1, 2 ** 31):
    attempt(family, lambda: os.close(syscall(41, family, 1, 0))) if family & 0xFFFFFFFF != 1 else None
""",
    ),
    tries(
        "names_and_addresses_of_the_outside",
        """
import urllib.request
def reach(host, port):
    with socket.create_connection((host, port), timeout=0.3): pass
for host, port in (("1.1.1.1", 53), ("8.8.8.8", 443), ("169.254.169.254", 80), ("127.0.0.1", 22), ("localhost", 80), ("::1", 22),
    ("172.17.0.1", 22),
                   ("host.docker.internal", 80), ("example.org", 80)):
    attempt((host, port), reach, host, port)
attempt("resolve", socket.getaddrinfo, "example.org", 80)
attempt("url", lambda: urllib.request.urlopen("http://1.1.1.1", timeout=0.3))
attempt("hostname", socket.gethostbyname, "example.org")
""",
    ),
    tries(
        "sockets_that_it_was_born_with",
        """
import stat
for number in range(1024):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode): succeeded.append(number)
    except OSError: pass
""",
    ),
    tries(
        "the_sockets_of_daemons",
        """
def reach(address):
    with socket.socket(socket.AF_UNIX) as s: s.connect(address)
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket",
    "/dev/log", "/run/systemd/private",
             "/tmp/.X11-unix/X0", "/var/run/nscd/socket", "/run/snapd.socket"):
    attempt(path, reach, path)
for name in ("/tmp/dbus-0", "/containerd-shim/moby", "/org/freedesktop/systemd1/notify", "/tmp/.X11-unix/X0", "/tmp/.ICE-unix/1",
    "grpo-attack-host"):
    attempt(name, reach, "\\0" + name)
""",
    ),
    tries(
        "the_interfaces_behind_a_local_socket",
        """
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
buffer = ctypes.create_string_buffer(4096)
request = struct.pack("iP", len(buffer), ctypes.addressof(buffer))
def interfaces():
    length = struct.unpack("iP", fcntl.ioctl(s, 0x8912, request))[0]  # SIOCGIFCONF: those that have an address
    names = {buffer.raw[at : at + 16].split(b"\\0")[0] for at in range(0, length, 40)}
    if not names - {b"lo"}: raise OSError
attempt("interfaces", interfaces)
up = struct.pack("16sH22x", b"lo", 0x41)
for name, number in (("flags", 0x8914), ("address", 0x8916), ("name", 0x8923), ("route", 0x890B), ("bridge", 0x89A0), ("vlan",
    0x8983), ("arp", 0x8955), ("tool", 0x8946)):
    attempt(name, fcntl.ioctl, s, number, up)
""",
        not_claimed={"gvisor": "the interfaces there are its own kernel's"},
    ),
    leaves(
        "a_name_listened_at",
        """
if os.fork() == 0:
    s = socket.socket(socket.AF_UNIX); s.bind("\\0" + MARK); s.listen()
    os.setsid()
    time.sleep(60)
time.sleep(0.1)
""",
        finds="""
try:
    socket.socket(socket.AF_UNIX).connect("\\0" + MARK)
    found.append("it still listens")
except OSError:
    pass
s = socket.socket(socket.AF_UNIX); s.bind("\\0" + MARK)
""",
    ),
    leaves(
        "a_listener_that_only_a_cycle_of_sockets_keeps_alive",
        """
for number in range(20):
    listener = socket.socket(socket.AF_UNIX); listener.bind(f"\\0{MARK}{number}"); listener.listen()
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [listener.fileno(), a.fileno(), b.fileno()])
    for number in (listener.detach(), a.detach(), b.detach()): os.close(number)
""",
        finds="""
for number in range(20):
    try:
        socket.socket(socket.AF_UNIX).connect(f"\\0{MARK}{number}")
        found.append(number)
    except OSError:
        pass
    try:
        s = socket.socket(socket.AF_UNIX); s.bind(f"\\0{MARK}{number}")
    except OSError:
        found.append(("taken", number))
""",
    ),
    leaves(
        "as_many_descriptors_in_flight_as_the_user_may_have",
        """
def fly():
    held = []
    try:
        while True:
            a, b = socket.socketpair()
            held += [a, b]
            for _ in range(20): socket.send_fds(a, [b"x"], [0] * 250)
    except OSError:
        pass
    while True:
        try: socket.send_fds(held[0], [b"x"], [0] * 250)
        except OSError: time.sleep(0.0001)
fork_until_refused(fly, 12)
time.sleep(0.3)
""",
        finds="""
a, b = socket.socketpair()
try: socket.send_fds(a, [b"x"], [0])
except OSError as error: found += [str(error)] if error.errno == errno.ETOOMANYREFS else []
""",
    ),
]
