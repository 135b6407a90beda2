"""One program's own processes: the first of its namespaces, which waits, and the one that runs the source.

Both descend from the template, which has never read a frame, so nothing of another program is in their memory. What runs here is
untrusted from `exec` on; nothing that this file says afterwards is believed by the server.
"""

from __future__ import annotations

import atexit
import gc
import json
import linecache
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import types
from typing import Any, NoReturn

from sandbox.agent import calls, walls

OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDER = "/tmp"  # the program's own, when there are walls
FILE_NAME = "program.py"
STATUS = 32  # above the standard streams and what is passed; the number is free in the template
SETUP_FAILED = b"F"  # beside E (exited) and S (signal) on the status descriptor


class Descriptors:
    """What the server passes for one job, in this order."""

    NAMES = ("program", "stdin", "stdout", "stderr", "questions", "answers", "status")

    def __init__(self, numbers: list[int]) -> None:
        self.program, self.stdin, self.stdout, self.stderr, self.questions, self.answers, self.status = numbers


def run_job(given: list[int], isolation: str, *, is_counted: bool) -> NoReturn:
    """The first process of the job's namespaces. When it ends, the kernel ends all others in them.

    `is_counted`: the kernel holds all the job's memory to a limit, not only each process's.
    """
    descriptors = Descriptors(given)
    try:
        walls.show_to_others()  # else the files below /proc/self belong to root
        if isolation != walls.USER:  # there the container ends with the server, and gVisor takes the template for the parent
            walls.die_with_parent()
        os.setsid()
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        settings = json.loads(_read_all(descriptors.program))
        if isolation == walls.NAMESPACES:
            walls.map_user()
            walls.private_mounts(disk_mb=settings["disk_mb"])
        walls.hide_from_others()
        folder = tempfile.mkdtemp() if isolation == walls.NONE else FOLDER
        main = os.fork()
        if main == 0:
            _run_program(settings, descriptors, folder=folder, isolation=isolation, is_counted=is_counted)
        for number in (descriptors.stdin, descriptors.stdout, descriptors.stderr, descriptors.questions, descriptors.answers):
            os.close(number)
        _give_up(isolation, is_counted)
        _wait_for(main, descriptors.status)
        if isolation == walls.NONE:
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException as error:
        _report_fault(descriptors.status, error)
    os._exit(0)


def _wait_for(main: int, status: int) -> None:
    """Reap until the main process has ended, and say how."""
    while True:
        pid, code = os.wait()
        if pid == main:
            word = b"E%d" % os.WEXITSTATUS(code) if os.WIFEXITED(code) else b"S%d" % os.WTERMSIG(code)
            os.write(status, word)
            return


def _run_program(settings: dict[str, Any], descriptors: Descriptors, *, folder: str, isolation: str, is_counted: bool) -> NoReturn:
    """The process that runs the source, once nothing is left to give up."""
    try:
        for number, place in ((descriptors.stdin, 0), (descriptors.stdout, 1), (descriptors.stderr, 2)):
            os.dup2(number, place)
        questions, answers = (os.dup2(n, place) for n, place in ((descriptors.questions, 3), (descriptors.answers, 4)))
        os.dup2(descriptors.status, STATUS, inheritable=False)
        os.closerange(5, STATUS)
        os.closerange(STATUS + 1, 1024)
        os.chdir(folder)
        for name, text in settings["files"].items():
            _write_file(name, bytes.fromhex(text))
        walls.limit(
            cpu_s=settings["cpu_s"],
            memory_mb=settings["memory_mb"],
            max_processes=settings["max_processes"],
            disk_mb=settings["disk_mb"],
            own_bytes=_own_bytes(data_only=isolation != walls.USER),
            all_known=isolation != walls.USER,
        )
        _give_up(isolation, is_counted)
        walls.show_to_others()
    except BaseException as error:
        _report_fault(STATUS, error)
        os._exit(1)
    os.close(STATUS)
    _become(settings["source"], settings["entry_point"], questions, answers)


def _give_up(isolation: str, is_counted: bool) -> None:
    if isolation != walls.NONE:
        user = walls.PROGRAM_USER if isolation == walls.USER else None
        walls.give_up_privileges(user=user, memory_files=is_counted)


def _report_fault(status: int, error: BaseException) -> None:
    """What goes wrong before the source runs is ours, not the program's."""
    os.write(status, SETUP_FAILED + f"{type(error).__name__}: {error}".encode()[:500])


def _become(source: str, entry_point: str | None, questions: int, answers: int) -> NoReturn:
    """Run the source as Python would run a file, in this interpreter."""
    if entry_point is None:
        os.close(questions)
        os.close(answers)
    module = types.ModuleType("__main__" if entry_point is None else "solution")
    module.__file__ = FILE_NAME
    sys.modules[module.__name__] = module
    sys.argv = [FILE_NAME]
    sys.path.remove(OUR_FOLDER)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sandbox"]:
        del sys.modules[name]
    sys.stdin = sys.__stdin__ = _text(0, "r", "surrogateescape")
    sys.stdout = sys.__stdout__ = _text(1, "w", "surrogateescape")
    sys.stderr = sys.__stderr__ = _text(2, "w", "backslashreplace")
    linecache.cache[FILE_NAME] = (len(source), None, source.splitlines(keepends=True), FILE_NAME)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    gc.unfreeze()
    code = 0
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
        if entry_point is not None:
            calls.serve(module.__dict__, entry_point, questions, answers)
    except SystemExit as stop:
        code = _exit_code(stop.code)
    except BaseException as error:
        traceback = error.__traceback__.tb_next if error.__traceback__ else None  # without this frame of ours
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        code = 1
    _end(code)


def _end(code: int) -> NoReturn:
    """As the interpreter does at its end: threads, exit handlers, buffers."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except SystemExit as stop:
        code = _exit_code(stop.code)
    except BaseException:
        code = code or 120  # what CPython exits with when the last flush fails
    os._exit(code)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 255
    print(code, file=sys.stderr)
    return 1


def _text(descriptor: int, mode: str, errors: str) -> Any:
    return open(descriptor, mode, encoding="utf-8", errors=errors, buffering=1 if descriptor == 2 else -1, closefd=False)


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def _write_file(name: str, content: bytes) -> None:
    folder = os.path.dirname(name)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(name, "xb") as file:
        file.write(content)


def _own_bytes(*, data_only: bool) -> int:
    """What RLIMIT_DATA (or RLIMIT_AS) counts of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5 if data_only else 0]) * resource.getpagesize()
