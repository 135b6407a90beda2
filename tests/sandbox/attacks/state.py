"""What a program could leave in its surroundings for the next one to inherit."""

from tests.sandbox.attacks.attack import Attack, leaves, tries

ATTACKS: list[Attack] = [
    leaves(
        "everything_about_itself_changed",
        """
os.umask(0); os.nice(19); os.environ.clear(); os.environ["PYTHONPATH"] = "/tmp"; os.chdir("/dev/shm")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for kind in range(16):
    try: resource.setrlimit(kind, (0, 0))
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
libc.prctl(15, b"intruder", 0, 0, 0); libc.prctl(36, 1, 0, 0, 0); libc.prctl(1, 9, 0, 0, 0); libc.prctl(4, 0, 0, 0, 0)
""",
    ),
    leaves(
        "the_interpreter_turned_inside_out",
        """
import builtins, collections, functools, gc, json, linecache, random, re, string
for module in (builtins, json, random, re, string, collections, functools, math if "math" in globals() else json):
    for name in [n for n in vars(module) if not n.startswith("__")]:
        try: setattr(module, name, None)
        except (AttributeError, TypeError): pass
sys.modules.clear()
""",
        finds="import json, random, re; found += [] if json.loads('[1]') == [1] and re.match('a', 'a') else [1]",
    ),
    leaves(
        "hooks_everywhere",
        """
import atexit, gc, importlib, sys, threading, weakref
sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None); threading.settrace(lambda *a: None)
sys.addaudithook(lambda *a: None); gc.callbacks.append(print); atexit.register(print); sys.meta_path.insert(0, None)
sys.excepthook = sys.displayhook = print; sys.path_hooks.insert(0, print); os.register_at_fork(after_in_child=lambda: os._exit(9))
""",
        finds="import gc; found += [h for h in (sys.gettrace(), sys.getprofile()) if h] + gc.callbacks",
    ),
    leaves(
        "timers_that_go_off_later",
        """
import faulthandler
signal.setitimer(signal.ITIMER_REAL, 0.2); signal.setitimer(signal.ITIMER_PROF, 0.2); signal.alarm(1)
faulthandler.dump_traceback_later(1, exit=True)
timer = ctypes.c_void_p()
libc.syscall(222, 1, None, ctypes.byref(timer))
libc.syscall(223, timer, 0, struct.pack("4q", 0, 10 ** 8, 0, 10 ** 8), None)
""",
        finds="time.sleep(0.3)\nfound += [t for t in (signal.getitimer(0), signal.getitimer(2)) if any(t)]",
    ),
    leaves(
        "bytecode_in_the_cache",
        """
import importlib.util, py_compile
for name in ("colorsys", "calendar"):
    try:
        target = importlib.util.cache_from_source(importlib.util.find_spec(name).origin)
        open("/tmp/x.py", "w").write("print('poisoned')")
        py_compile.compile("/tmp/x.py", cfile=target)
    except OSError: pass
""",
        finds="import calendar, colorsys, io; found += [] if colorsys.__doc__ else ['poisoned']",
    ),
    leaves(
        "a_changed_random_seed",
        "import random; random.seed(7)",
        finds="import random; found += [1] if random.random() == 0.32383276483316237 else []",
    ),
    leaves("descriptors_left_open", "held = [os.open('/dev/null', 0) for _ in range(100)]\nheld += [os.pipe() for _ in range(5)]"),
    leaves("a_terminal_left_open", "import pty\ntry: pty.openpty()\nexcept OSError: pass"),
    tries(
        "who_ran_before_it",
        """
for name in ("wtmp", "utmp", "btmp", "lastlog"):
    for folder in ("/var/log", "/var/run", "/run"): attempt(name, open, f"{folder}/{name}")
times = os.times()
if times.children_user > 1: succeeded.append("children's time")
if resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 1: succeeded.append("children's memory")
if os.getpid() > 64: succeeded.append("a process id that counts")
""",
        not_claimed={"gvisor": "its kernel numbers and counts in ways of its own"},
    ),
]
