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

`program` is handed on unread. A job ends with `execution`, asked for or not.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from sandbox.agent import job, walls

MAX_FRAME = 64 << 20
MAX_LINE = (1 << 20) + 1
FLOOD = 16  # a stream is cut off after so many times what is kept of it
SLOW_KILL_S = 1.0
WATCH_EVERY_S = 0.02
MAX_PAUSE_S = 600.0
CHUNK = 1 << 16
NUM_CORES = os.cpu_count() or 1

Frame = dict[str, Any]


class Gone(Exception):
    """The other end of the stream closed, or said nothing for too long."""


class Stream:
    """Frames over two descriptors. `next` waits for a whole one; `ready` reads what there is without waiting."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self._outgoing = incoming, outgoing
        self._buffer = bytearray()

    def next(self, timeout_s: float) -> Frame:
        deadline = time.monotonic() + timeout_s
        while (frame := self.take()) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.incoming], [], [], left)[0]:
                raise Gone("nobody asked for anything")
            self.read()
        return frame

    def read(self) -> None:
        """Read once. Raises Gone at the end of the stream."""
        data = os.read(self.incoming, 1 << 20)
        if not data:
            raise Gone("the stream was closed")
        self._buffer += data

    def take(self) -> Frame | None:
        """The next frame of what was read, if it is whole."""
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._buffer)
        if length > MAX_FRAME:
            raise Gone(f"a frame of {length} bytes was announced")
        if len(self._buffer) < 4 + length:
            return None
        frame = json.loads(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return frame

    def send(self, frame: Frame) -> None:
        body = json.dumps(frame).encode()
        data = memoryview(struct.pack(">I", len(body)) + body)
        while data:
            data = data[os.write(self._outgoing, data) :]


class Template:
    """The process that forks jobs. It was made before the first frame was read."""

    def __init__(self, isolation: str, *, is_counted: bool) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _close_others(theirs.fileno())
                _serve_as_template(theirs, isolation, is_counted)
            finally:
                os._exit(1)
        theirs.close()

    def fork_job(self, descriptors: list[int]) -> int:
        """The process id of a job's first process, which is our child. Raises WallError when the kernel refuses it."""
        socket.send_fds(self._orders, [b"."], descriptors)
        reply = self._orders.recv(1000)
        if not reply or reply.startswith(b"!"):
            raise walls.WallError(0, reply[1:].decode() or "the template is gone")
        return int(reply)


def _serve_as_template(orders: socket.socket, isolation: str, is_counted: bool) -> None:
    """Fork a job for every order; an order is nothing but descriptors. Ends when the server does."""
    walls.die_with_parent()
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, 1, len(job.Descriptors.NAMES))
        if not data:
            return
        try:
            pid = walls.new_process(namespaces=isolation == walls.NAMESPACES)
        except walls.WallError as error:
            orders.send(f"!{error}".encode())
            pid = -1
        if pid == 0:
            orders.close()
            job.run_job(descriptors, isolation, is_counted=is_counted)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            orders.send(b"%d" % pid)


class NoTemplate:
    """Forks jobs from the server itself, for a server that runs only one: its memory holds no other program.

    gVisor needs it: there a process cannot have a child made for it by another.
    """

    pid = 0

    def fork_job(self, descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                _close_others(*descriptors)
                job.run_job(descriptors, walls.USER, is_counted=False)
            finally:
                os._exit(1)
        return pid


def _close_others(*kept: int) -> None:
    """Close every descriptor but these; the standard streams lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    low = 3
    for number in sorted(kept):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, 1024)


class Surroundings:
    """What is in this slot beside the job: its processes, its descriptors, its counters.

    `counters`: the container's own counters are the job's. Without, CPU time is summed over the processes that are seen; on a
    machine that is not ours alone not even that, and the job's own limit on CPU time stands alone.
    """

    def __init__(self, template_pid: int, *, isolation: str, counters: bool, memory_mb: int) -> None:
        self._is_ours = isolation != walls.NONE
        # Where the kernel does not hold all processes together to a limit, we look.
        self.is_watched = self._is_ours and not counters
        self._memory_kb = memory_mb << 10
        self._trusted = {1, os.getpid(), template_pid}
        self._cpu = _first_readable("/sys/fs/cgroup/cpuacct/cpuacct.usage", "/sys/fs/cgroup/cpu.stat") if counters else None
        self._oom = (
            _first_readable("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events") if counters else None
        )
        self._num_descriptors = len(os.listdir("/proc/self/fd"))

    @property
    def cpu_is_exact(self) -> bool:
        """Whether `cpu_s` includes processes that have ended."""
        return self._cpu is not None

    def cpu_s(self) -> float:
        """CPU seconds used here so far."""
        if self._cpu is None:
            return self._cpu_of_others() if self._is_ours else 0.0
        text = _read(self._cpu)
        return int(text) / 1e9 if self._cpu.endswith("usage") else int(text.split()[1]) / 1e6  # nanoseconds; usage_usec

    def oom_kills(self) -> int:
        """How often the kernel has ended a process here because the container's memory was used up."""
        if self._oom is None:
            return 0
        words = _read(self._oom).split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def memory_is_used_up(self) -> bool:
        """Whether the job's processes together have more than the slot's memory. Pages they share are counted once."""
        strangers = set(_processes()) - self._trusted
        resident = sum(_field_kb(f"/proc/{pid}/status", "VmRSS:") or 0 for pid in strangers)
        if resident <= self._memory_kb:
            return False
        proportional = [_field_kb(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in strangers]
        known = [kb for kb in proportional if kb is not None]
        return sum(known) > self._memory_kb if known else True

    def are_clean(self) -> bool:
        """Whether nothing is left of any job: no process but ours, no descriptor."""
        strangers = set(_processes()) - self._trusted if self._is_ours else set()
        return not strangers and len(os.listdir("/proc/self/fd")) == self._num_descriptors

    def _cpu_of_others(self) -> float:
        ticks = 0
        for pid in set(_processes()) - self._trusted:
            with contextlib.suppress(OSError, ValueError):
                fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))  # its own, and of the children it reaped
        return ticks / os.sysconf("SC_CLK_TCK")


def _field_kb(path: str, name: str) -> int | None:
    """A line such as `VmRSS:  1234 kB`. None when the process is gone or the kernel does not say."""
    try:
        words = _read(path).split()
        return int(words[words.index(name) + 1])
    except (OSError, ValueError):
        return None


def _first_readable(*paths: str) -> str | None:
    return next((path for path in paths if os.access(path, os.R_OK)), None)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


class Capture:
    """One output stream of a program: its beginning is kept, the rest counted, a flood noticed."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self.descriptor, self._limit = descriptor, limit
        self.kept = bytearray()
        self.total = 0
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Read once. False at the end, or when nothing is there."""
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.kept += data[: max(0, self._limit - len(self.kept))]
        return bool(data)

    @property
    def is_flood(self) -> bool:
        return self.total > FLOOD * self._limit

    @property
    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")

    @property
    def truncated(self) -> bool:
        return self.total > len(self.kept)


class Job:
    """One program from its order to its execution."""

    def __init__(self, request: Frame, stream: Stream, template: Template | NoTemplate, surroundings: Surroundings) -> None:
        self._id, self._stream, self._surroundings = request["id"], stream, surroundings
        limits = request["limits"]
        self._cpu_limit, self._wall_limit = limits["cpu_s"], limits["wall_s"]
        self._asked = request["asked"]
        self._question_open = not self._asked  # a script has something to do all the time
        self._answer = bytearray()
        self._unsent = memoryview(b"")
        self._ending: tuple[str, str] | None = None
        self._started = time.monotonic()
        self._paused_at: float | None = None
        self._paused_s = 0.0
        self._cpu_used = 0.0
        self._cpu_before, self._oom_before = surroundings.cpu_s(), surroundings.oom_kills()
        self._start(request, template, limits["output_bytes"])

    def _start(self, request: Frame, template: Template | NoTemplate, output_bytes: int) -> None:
        """Order the job. Raises WallError when the kernel refuses it."""
        program = _sealed(request["program"].encode("utf-8", "surrogatepass"))
        stdin = _sealed(request["stdin"].encode("utf-8", "surrogatepass"))
        (out_r, out_w), (err_r, err_w), (question_r, question_w), (answer_r, answer_w), (status_r, status_w) = (
            os.pipe() for _ in range(5)
        )
        theirs = [program, stdin, out_w, err_w, question_r, answer_w, status_w]
        try:
            self._pid = template.fork_job(theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._status, self._questions, self._answers = status_r, question_w, answer_r
        for descriptor in (status_r, question_w, answer_r):
            os.set_blocking(descriptor, False)
        self._out, self._err = Capture(out_r, output_bytes), Capture(err_r, output_bytes)

    def run(self) -> None:
        """Until the program has ended, by itself or not, then kill what is left of it and reply."""
        try:
            self._watch()
        except Gone:
            self._kill()
            raise
        reply = self._execution()
        self._stream.send(reply)

    def _watch(self) -> None:
        """Listen to the program, to the other end and to the clocks until the job has an ending."""
        poll = select.poll()
        streams = {stream.descriptor: stream for stream in (self._out, self._err)}
        for descriptor in (*streams, self._status, self._stream.incoming, self._answers):
            poll.register(descriptor, select.POLLIN)
        self._hear()  # the first question may have come with the program
        while self._ending is None:
            if self._unsent:
                poll.register(self._questions, select.POLLOUT)
            for descriptor, _ in poll.poll(1000 * self._patience()):
                if descriptor in streams:
                    if not streams[descriptor].read():
                        poll.unregister(descriptor)
                    if streams[descriptor].is_flood:
                        self._end("output", f"wrote more than {FLOOD} times what is kept")
                elif descriptor == self._answers:
                    if not self._read_answer():
                        poll.unregister(descriptor)
                elif descriptor == self._questions:
                    self._send_question()
                    if not self._unsent:
                        poll.unregister(descriptor)
                elif descriptor == self._stream.incoming:
                    self._stream.read()
                    self._hear()
                else:  # its first process has said how the program ended, or is gone
                    self._end("exited", "")
            self._check_clocks()

    def _patience(self) -> float:
        """Seconds until a limit can have been reached: CPU time passes at most as fast as all cores together."""
        wall_left = self._wall_limit - self._wall_s()
        cpu_left = self._cpu_limit - (self._surroundings.cpu_s() - self._cpu_before)
        return max(0.002, min(wall_left, cpu_left / NUM_CORES, WATCH_EVERY_S if self._surroundings.is_watched else 1.0))

    def _wall_s(self) -> float:
        """Seconds during which the program had something to do."""
        now = time.monotonic()
        return now - self._started - self._paused_s - (now - self._paused_at if self._paused_at is not None else 0.0)

    def _check_clocks(self) -> None:
        if self._paused_at is not None and time.monotonic() - self._paused_at > MAX_PAUSE_S:
            raise Gone(f"no question for {MAX_PAUSE_S:g} s")
        self._cpu_used = max(self._cpu_used, self._surroundings.cpu_s() - self._cpu_before)
        if self._ending is None and self._cpu_used > self._cpu_limit:
            self._end("cpu_time", f"used more than {self._cpu_limit:g} s of CPU time")
        if self._ending is None and self._surroundings.is_watched and self._surroundings.memory_is_used_up():
            self._end("memory", "the slot's memory was used up")
        if self._ending is None and self._wall_s() > self._wall_limit:
            self._end("wall_time", f"not done after {self._wall_limit:g} s")

    def _hear(self) -> None:
        """What the other end has said while the program runs."""
        while self._ending is None and (frame := self._stream.take()) is not None:
            if frame["id"] != self._id:
                raise Gone(f"asked about {frame['id']!r} while {self._id!r} was running")
            if frame["op"] == "end":
                self._end("dismissed", "")
            elif frame["op"] == "ask":
                self._ask(frame["question"])

    def _ask(self, question: str) -> None:
        self._read_answer()
        if self._answer:
            self._end("protocol", "answered before it was asked")
            return
        self._question_open = True
        if self._paused_at is not None:
            self._paused_s += time.monotonic() - self._paused_at
            self._paused_at = None
        self._unsent = memoryview(question.encode("utf-8", "surrogatepass") + b"\n")

    def _send_question(self) -> None:
        """As much as the pipe takes; a program that has stopped reading gets no more."""
        try:
            self._unsent = self._unsent[os.write(self._questions, self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent = memoryview(b"")

    def _read_answer(self) -> bool:
        """Read once; reply when a line is whole. False at the end, or when nothing is there."""
        try:
            data = os.read(self._answers, CHUNK)
        except BlockingIOError:
            return True
        self._answer += data
        if not data:
            return False
        line, newline, rest = self._answer.partition(b"\n")
        if len(self._answer) > MAX_LINE:
            self._end("protocol", f"an answer had more than {MAX_LINE - 1} bytes")
        elif newline and (rest or not self._question_open):
            self._end("protocol", "answered more than it was asked")
        elif newline:
            self._question_open = False
            self._answer.clear()
            self._paused_at = time.monotonic()
            self._stream.send({"id": self._id, "answer": line.decode("utf-8", "replace")})
        return True

    def _end(self, ending: str, reason: str) -> None:
        if self._ending is None:
            self._ending = (ending, reason)

    def _kill(self) -> float:
        """End every process of the job and reap the first. Seconds that it took."""
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        # Returns when all processes of its namespaces are gone; should it take for ever, the other end stops waiting for us.
        _, _, self._usage = os.wait4(self._pid, 0)
        return time.monotonic() - began

    def _execution(self) -> Frame:
        assert self._ending is not None
        ending, reason = self._ending
        wall_s = self._wall_s()
        kill_s = self._kill()
        for stream in (self._out, self._err):
            while stream.read() and not stream.is_flood:
                pass
        status = b""
        with contextlib.suppress(BlockingIOError):
            status = os.read(self._status, 1000)
        oom = self._surroundings.oom_kills() > self._oom_before
        cpu_s = self._cpu_used
        if self._surroundings.cpu_is_exact:
            cpu_s = self._surroundings.cpu_s() - self._cpu_before
        else:
            cpu_s = max(cpu_s, self._usage.ru_utime + self._usage.ru_stime)
        self._close()
        if status.startswith(job.SETUP_FAILED):
            return {"id": self._id, "fault": status[1:].decode("utf-8", "replace"), "healthy": False}
        exit_code, by_signal = None, None
        if status[:1] == b"E":
            exit_code = int(status[1:])
        elif status[:1] == b"S":
            by_signal = int(status[1:])
        if ending == "exited" and oom and exit_code is None:
            ending, reason = "memory", "the slot's memory was used up"
        elif ending == "exited" and exit_code == 1 and _last_line(self._err.text).startswith("MemoryError"):
            ending, reason = "memory", "it could not get more memory"
        elif ending == "exited" and exit_code is None:
            if cpu_s >= self._cpu_limit or by_signal == signal.SIGXCPU:
                ending, reason = "cpu_time", f"used more than {self._cpu_limit:g} s of CPU time"
            else:
                ending, reason = "killed", ""
        usage = self._usage
        execution = {
            "ending": ending,
            "reason": reason,
            "exit_code": exit_code if ending in ("exited", "memory") else None,
            "signal": by_signal if ending in ("killed", "memory") else None,
            "stdout": self._out.text,
            "stderr": self._err.text,
            "stdout_truncated": self._out.truncated,
            "stderr_truncated": self._err.truncated,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "peak_memory_mb": usage.ru_maxrss / 1024,
        }
        return {"id": self._id, "execution": execution, "healthy": kill_s < SLOW_KILL_S and self._surroundings.are_clean()}

    def _close(self) -> None:
        for descriptor in (self._status, self._questions, self._answers, self._out.descriptor, self._err.descriptor):
            os.close(descriptor)


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]


def _sealed(content: bytes) -> int:
    """A descriptor from which `content` is read, and into which nobody writes any more."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    data = memoryview(content)
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, 1033, 0x000F)  # F_ADD_SEALS: no more seals, no shrinking, growing or writing
    return descriptor


def serve(stream: Stream, template: Template | NoTemplate, *, surroundings: Surroundings, idle_s: float) -> None:
    """Answer one request after the other until nobody asks for `idle_s` seconds."""
    while True:
        request = stream.next(idle_s)
        if request["op"] == "run":
            try:
                current = Job(request, stream, template, surroundings)
            except walls.WallError as error:
                stream.send({"id": request["id"], "fault": str(error), "healthy": False})
                continue
            current.run()
        elif request["op"] == "ping":
            stream.send({"id": request["id"], "pong": {"python": sys.version.split()[0], "healthy": surroundings.are_clean()}})
        # "end" for a job that has ended by itself: its execution is on its way.


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preload", default="", help="modules to import once, comma-separated")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds without a request after which the server ends")
    parser.add_argument("--isolation", choices=walls.ISOLATIONS, default=walls.NAMESPACES, help="between a program and this server")
    parser.add_argument("--counters", action="store_true", help="the counters below /sys/fs/cgroup are this slot's own")
    parser.add_argument("--memory-mb", type=int, default=512, help="of all processes of a program, where no counters hold them")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if arguments.isolation != walls.NONE:
        walls.check_machine()
    for name in (*USUAL, *filter(None, arguments.preload.split(","))):
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a preloaded module started threads, and a fork of a process with threads may hang. Leave it out of preload.")
    stream = _take_stream()
    walls.hide_from_others()
    gc.collect()
    gc.freeze()
    template = NoTemplate() if arguments.isolation == walls.USER else Template(arguments.isolation, is_counted=arguments.counters)
    surroundings = Surroundings(
        template.pid, isolation=arguments.isolation, counters=arguments.counters, memory_mb=arguments.memory_mb
    )
    with contextlib.suppress(Gone, BrokenPipeError):
        serve(stream, template, surroundings=surroundings, idle_s=arguments.idle)


def _take_stream() -> Stream:
    """The frames' stream on descriptors of its own; what anything prints from here on goes to stderr."""
    stream = Stream(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return stream


# What most programs import: paid once per slot instead of once per program.
USUAL = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "json", "math"),
    *("operator", "random", "re", "statistics", "string", "typing", "dataclasses", "enum", "abc", "io", "contextlib", "traceback"),
)


if __name__ == "__main__":
    main()
