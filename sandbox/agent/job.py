"""The process that one program runs in: it gives up everything, takes its streams and limits, and becomes the program.

It descends from the template, which has never read a frame, so nothing of another program is in its memory. It is the first process
of its namespaces: when it ends, the kernel ends all others in them. What runs here is untrusted from `exec` on.
"""

from __future__ import annotations

import atexit
import json
import linecache
import os
import resource
import signal
import sys
import threading
import types
from typing import Any, NoReturn

from sandbox.agent import answering, walls

FOLDER = "/tmp"  # the program's own, when there are walls
FILE_NAME = "program.py"
OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAULT = 32  # where setup complains, above the standard streams and what is passed; closed before the program runs


class Descriptors:
    """What the server passes for one job, in this order."""

    NAMES = ("program", "stdin", "stdout", "stderr", "questions", "answers", "fault")

    def __init__(self, numbers: list[int]) -> None:
        self.program, self.stdin, self.stdout, self.stderr, self.questions, self.answers, self.fault = numbers


def reset_signals() -> None:
    """What a program expects, once for all that are forked from here: nothing is handled, and pipes break with an exception."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def run_job(given: list[int], isolation: str, *, is_counted: bool, folder: str = FOLDER) -> NoReturn:
    """Become a program. What goes wrong before its first line is ours, and is said on the descriptor for faults.

    `is_counted`: the kernel holds all the job's memory to a limit, not only each process's.
    """
    descriptors = Descriptors(given)
    try:
        walls.show_to_others()  # else the files below /proc/self belong to root
        if isolation != walls.USER:  # there the container ends with the server
            walls.die_with_parent()
        os.setsid()
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        with open(descriptors.program, "rb") as file:
            settings = json.loads(file.read())
        if isolation == walls.NAMESPACES:
            walls.map_user()
            walls.private_mounts(disk_mb=settings["disk_mb"], is_counted=is_counted)
        _limit(settings, only_data=is_counted or isolation == walls.NONE, all_known=isolation != walls.USER)
        if isolation != walls.NONE:
            user = walls.PROGRAM_USER if isolation == walls.USER else None
            walls.give_up_privileges(user=user, is_counted=is_counted)
        _take_streams(descriptors)
        os.chdir(folder)
        for name, text in settings["files"].items():
            _write_file(name, bytes.fromhex(text))
        walls.show_to_others()
    except BaseException as error:
        os.write(descriptors.fault, f"{type(error).__name__}: {error}".encode()[:500])
        os._exit(1)
    os.close(FAULT)
    _become(settings["source"], settings["entry_point"], questions=3, answers=4)


def _take_streams(descriptors: Descriptors) -> None:
    """The standard streams, questions on 3, answers on 4, and nothing else but the descriptor for faults."""
    numbers = (descriptors.stdin, descriptors.stdout, descriptors.stderr, descriptors.questions, descriptors.answers)
    for place, number in enumerate(numbers):
        os.dup2(number, place)
    descriptors.fault = os.dup2(descriptors.fault, FAULT, inheritable=False)
    os.closerange(5, FAULT)
    os.closerange(FAULT + 1, 1024)


def _limit(settings: dict[str, Any], *, only_data: bool, all_known: bool) -> None:
    with open("/proc/self/statm") as file:
        pages = file.read().split()
    walls.limit(
        cpu_s=settings["cpu_s"],
        memory_mb=settings["memory_mb"],
        max_processes=settings["max_processes"],
        disk_mb=settings["disk_mb"],
        own_bytes=int(pages[5 if only_data else 0]) * resource.getpagesize(),
        only_data=only_data,
        all_known=all_known,
    )


def _become(source: str, entry_point: str | None, *, questions: int, answers: int) -> NoReturn:
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
    code = 0
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
        if entry_point is not None:
            answering.serve(module.__dict__, entry_point, questions, answers)
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
        sys.stderr.flush()
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


def _write_file(name: str, content: bytes) -> None:
    folder = os.path.dirname(name)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(name, "xb") as file:
        file.write(content)
