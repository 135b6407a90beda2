"""What runs inside a killable worker process: a loop that answers questions until its input ends. Needs nothing else of ours.

Started as `python -I deadline_child.py PROGRAM MEMORY_MB PARENT`. PROGRAM is a file of ours that defines `answer(question)`, both
ways plain JSON. A frame is four bytes of length, then JSON. The first in is for the program's `setup(setup)`, where it is not null;
the first out is `{"ready": true}`. Each answer tells our memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PAGE_MB = resource.getpagesize() / 2**20


def main() -> None:
    program, memory_mb, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    questions, answers = private_pipes()
    # After everything else, so that nothing of ours hides a module of the interpreter.
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    try:
        spec = importlib.util.spec_from_file_location("program", program)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        setup = receive(questions)
        if setup is not None:
            module.setup(setup)
    except BaseException as error:
        send(answers, {"ready": False, "fault": f"{type(error).__name__}: {error}"})
        raise
    send(answers, {"ready": True})
    while True:
        question = receive(questions)
        if question is None:
            return
        send(answers, reply(module.answer, question) | {"memory_mb": memory_in_use_mb()})


def reply(answer, question) -> dict:
    """What the program answers. Running out of memory or depth is the question's doing; anything else is ours."""
    try:
        return {"answer": answer(question)}
    except MemoryError:
        return {"exhausted": "memory"}
    except RecursionError:
        return {"exhausted": "depth"}
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"[:1000]}


def die_with(parent: int) -> None:
    """Ask the kernel to kill us when the parent dies; leave at once if it is dead already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    # A terminal's Ctrl-C is for the parent, which closes us in its own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def private_pipes() -> tuple[int, int]:
    """Our two ends of the conversation, moved away from 0 and 1, so that nothing a library prints can enter it."""
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    return questions, answers


def receive(pipe: int):
    """The next question, or None when the parent has gone."""
    header = read_exactly(pipe, 4)
    if len(header) < 4:
        return None
    body = read_exactly(pipe, struct.unpack(">I", header)[0])
    return json.loads(body) if body else None


def read_exactly(pipe: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(pipe, size - len(data))
        if not chunk:
            return b""
        data += chunk
    return data


def send(pipe: int, message: dict) -> None:
    body = json.dumps(message).encode()
    data = struct.pack(">I", len(body)) + body
    while data:
        data = data[os.write(pipe, data) :]


def memory_in_use_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE_MB


if __name__ == "__main__":
    main()
