"""The trusted process of one slot: it takes programs from a stream, has each run behind the walls, and says what became of it.

Two processes. The *server* reads frames, keeps the clocks and reads the program's output; the *template*, a child made before the
first frame, forks every job. So a job's memory, inherited from the template, holds nothing of other programs, and the server is
neither its ancestor nor visible to it.

Frames, both ways: 4 bytes of length, big-endian, then JSON. One request is open at a time, and every reply repeats its `id`.

    -> {"id", "op": "run", "program": TEXT, "stdin": TEXT, "limits": {cpu_s, wall_s, output_bytes}, "asked": BOOL}
    -> {"id", "op": "ask", "question": LINE}      <- {"id", "answer": LINE}
    -> {"id", "op": "end"}                        <- {"id", "execution": {...}, "healthy": BOOL}
    -> {"id", "op": "ping"}                       <- {"id", "pong": {...}}
    <- {"id", "fault": TEXT}                      the job could not be run: ours, not the program's

`program` is handed on unread; output comes in base64. A job ends with `execution`, asked for or not.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sandbox.agent import walls
from sandbox.agent.streams import Gone, Stream
from sandbox.agent.surroundings import Surroundings
from sandbox.agent.template import NoTemplate, Template
from sandbox.agent.watched import DEATHS, WatchedJob


def serve(stream: Stream, template: Template | NoTemplate, *, surroundings: Surroundings, idle_s: float) -> None:
    """Answer one request after the other until nobody asks for `idle_s` seconds."""
    while True:
        request = stream.next(idle_s)
        if request["op"] == "run":
            try:
                current = WatchedJob(request, stream, template, surroundings)
            except walls.WallError as error:
                stream.send({"id": request["id"], "fault": str(error), "healthy": False})
                continue
            current.run()
        elif request["op"] == "ping":
            stream.send({"id": request["id"], "pong": {"healthy": surroundings.are_clean()}})
        # "end" for a job that has ended by itself: its execution is on its way.


class Options(NamedTuple):
    """What the command line says, as one JSON object.

    `preload`: modules to import once. `isolation`: what stands between a program and this server. `counters`: those below
    /sys/fs/cgroup are this slot's own. `memory_mb`: of all processes of a program, where no counters hold them. `idle_s`: without a
    request for so long, the server ends.
    """

    preload: Sequence[str] = ()
    isolation: str = walls.NAMESPACES
    counters: bool = False
    memory_mb: int = 512
    idle_s: float = 120.0


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if options.isolation != walls.NONE:
        walls.check_machine()
    for name in (*USUAL, *options.preload):
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a preloaded module started threads, and a fork of a process with threads may hang. Leave it out of preload.")
    stream = _take_stream()
    walls.hide_from_others()
    gc.collect()
    gc.freeze()  # what is shared with the jobs stays shared
    isolated = options.isolation == walls.NAMESPACES
    template = Template(is_counted=options.counters) if isolated else NoTemplate(options.isolation)
    DEATHS.watch()
    surroundings = Surroundings(template.pid, isolation=options.isolation, counters=options.counters, memory_mb=options.memory_mb)
    with contextlib.suppress(Gone, BrokenPipeError):
        serve(stream, template, surroundings=surroundings, idle_s=options.idle_s)


def _take_stream() -> Stream:
    """The frames' stream on descriptors of its own; what anything prints from here on goes to stderr."""
    stream = Stream(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return stream


# What many programs import: paid once per slot instead of once per program. More would make every fork slower.
USUAL = (
    *("bisect", "collections", "copy", "datetime", "functools", "heapq", "itertools", "json", "math", "random", "re", "string"),
    "typing",
)


if __name__ == "__main__":
    main()
