"""One job as the server sees it: started, watched by clocks and sizes, asked, ended, and accounted for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time

from sandbox.agent.streams import CHUNK, FLOOD, Capture, Frame, Gone, Stream
from sandbox.agent.surroundings import Surroundings
from sandbox.agent.template import NoTemplate, Template

MAX_LINE = (1 << 20) + 1
SLOW_KILL_S = 1.0
WATCH_EVERY_S = 0.02
MAX_PAUSE_S = 600.0
NUM_CORES = os.cpu_count() or 1


class Deaths:
    """Readable when a child of ours has ended. A descriptor of the process itself would do, but gVisor has none."""

    incoming = -1

    def watch(self) -> None:
        self.incoming, outgoing = os.pipe()
        for descriptor in (self.incoming, outgoing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(outgoing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def forget(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.incoming, 1000)


DEATHS = Deaths()


class WatchedJob:
    """One program from its order to its execution."""

    def __init__(self, request: Frame, stream: Stream, template: Template | NoTemplate, surroundings: Surroundings) -> None:
        self._id, self._stream, self._template, self._surroundings = request["id"], stream, template, surroundings
        limits = request["limits"]
        self._cpu_limit, self._wall_limit = limits["cpu_s"], limits["wall_s"]
        self._question_open = not request["asked"]  # a script has something to do all the time
        self._answer = bytearray()
        self._unsent = memoryview(b"")
        self._ending: tuple[str, str] | None = None
        self._started = time.monotonic()
        self._paused_at: float | None = None
        self._paused_s = 0.0
        self._cpu_used = 0.0
        self._cpu_before, self._oom_before = surroundings.cpu_s(), surroundings.oom_kills()
        self._start(request, limits["output_bytes"])

    def _start(self, request: Frame, output_bytes: int) -> None:
        """Order the job. Raises WallError when the kernel refuses it."""
        program = _sealed(request["program"].encode("utf-8", "surrogatepass"))
        stdin = _sealed(request["stdin"].encode("utf-8", "surrogatepass"))
        (out_r, out_w), (err_r, err_w), (question_r, question_w), (answer_r, answer_w), (fault_r, fault_w) = (
            os.pipe() for _ in range(5)
        )
        theirs = [program, stdin, out_w, err_w, question_r, answer_w, fault_w]
        try:
            self._pid = self._template.fork_job(theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._fault, self._questions, self._answers = fault_r, question_w, answer_r
        for descriptor in (fault_r, question_w, answer_r):
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
        for descriptor in (*streams, DEATHS.incoming, self._stream.incoming, self._answers):
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
                elif self._has_ended():
                    self._end("exited", "")
            self._check_clocks()

    def _has_ended(self) -> bool:
        """Whether it was the program's end, and not the template's, that woke us."""
        DEATHS.forget()
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _patience(self) -> float:
        """Seconds until a limit can have been reached: CPU time passes at most as fast as all cores together."""
        wall_left, cpu_left = self._wall_limit - self._wall_s(), self._cpu_limit - self._cpu_used
        return max(0.002, min(wall_left, cpu_left / NUM_CORES, WATCH_EVERY_S if self._surroundings.is_watched else 1.0))

    def _wall_s(self) -> float:
        """Seconds during which the program had something to do."""
        now = time.monotonic()
        return now - self._started - self._paused_s - (now - self._paused_at if self._paused_at is not None else 0.0)

    def _check_clocks(self) -> None:
        if self._paused_at is not None and time.monotonic() - self._paused_at > MAX_PAUSE_S:
            raise Gone(f"no question for {MAX_PAUSE_S:g} s")
        if self._ending is None and NUM_CORES * (time.monotonic() - self._started) > self._cpu_limit:  # else it cannot have
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
        _, self._wait_status, self._usage = os.wait4(self._pid, 0)
        return time.monotonic() - began

    def _execution(self) -> Frame:
        """Kill what is left of the job, read what it wrote last, and say what became of it."""
        wall_s = self._wall_s()
        kill_s = self._kill()
        for stream in (self._out, self._err):
            while stream.read() and not stream.is_flood:
                pass
        fault = os.read(self._fault, 1000) if select.select([self._fault], [], [], 0)[0] else b""
        self._close()
        self._template.clean()
        if fault:
            return {"id": self._id, "fault": fault.decode("utf-8", "replace"), "healthy": False}
        execution = self._ended() | {
            "stdout": self._out.base64,
            "stderr": self._err.base64,
            "stdout_truncated": self._out.truncated,
            "stderr_truncated": self._err.truncated,
            "wall_s": wall_s,
            "cpu_s": self._cpu_used,
            "peak_memory_mb": self._usage.ru_maxrss / 1024,
        }
        return {"id": self._id, "execution": execution, "healthy": kill_s < SLOW_KILL_S and self._surroundings.are_clean()}

    def _ended(self) -> Frame:
        """Ending, reason, exit code and signal."""
        assert self._ending is not None
        ending, reason = self._ending
        exit_code = os.WEXITSTATUS(self._wait_status) if os.WIFEXITED(self._wait_status) else None
        by_signal = os.WTERMSIG(self._wait_status) if os.WIFSIGNALED(self._wait_status) else None
        if self._surroundings.cpu_is_exact:
            self._cpu_used = self._surroundings.cpu_s() - self._cpu_before
        else:
            self._cpu_used = max(self._cpu_used, self._usage.ru_utime + self._usage.ru_stime)
        if ending == "exited" and exit_code is None:
            if self._surroundings.oom_kills() > self._oom_before:
                ending, reason = "memory", "the slot's memory was used up"
            elif self._cpu_used >= self._cpu_limit or by_signal == signal.SIGXCPU:
                ending, reason = "cpu_time", f"used more than {self._cpu_limit:g} s of CPU time"
            else:
                ending = "killed"
        elif ending == "exited" and exit_code == 1 and _last_line(self._err.text).startswith("MemoryError"):
            ending, reason = "memory", "it could not get more memory"
        return {
            "ending": ending,
            "reason": reason,
            "exit_code": exit_code if ending in ("exited", "memory") else None,
            "signal": by_signal if ending in ("killed", "memory") else None,
        }

    def _close(self) -> None:
        for descriptor in (self._fault, self._questions, self._answers, self._out.descriptor, self._err.descriptor):
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
