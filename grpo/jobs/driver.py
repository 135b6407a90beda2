"""What a process knows of being the driver of a submitted job: its name, its log in the run folder, a request to stop it.

Ray keeps a job's log on the head node and forgets it with the cluster; the run folder keeps one of its own, `jobs/ID.log`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

JOB = "GRPO_JOB"  # in the environment of a submitted job: its id
STOP_REQUEST = "stop"


def identity() -> str:
    """Who works here, as a stop request names it: the id of the job, else the process."""
    return os.environ.get(JOB) or str(os.getpid())


def request_stop(run_folder: Path, whom: str) -> None:
    """Ask the run's driver to end after the step under way. Another driver than `whom` takes no notice."""
    beside = run_folder / f".{STOP_REQUEST}.partial"
    beside.write_text(whom)
    beside.replace(run_folder / STOP_REQUEST)


def takes_stop_request(run_folder: Path) -> bool:
    """Whether this process is asked to stop. A request is gone once it was read, also one that was meant for another."""
    request = run_folder / STOP_REQUEST
    try:
        whom = request.read_text().strip()
        request.unlink()
    except OSError:
        return False
    return whom == identity()


class _Both(io.TextIOBase):
    """Writes to a stream and to a file. A file that cannot be written is left out, with one word about it."""

    def __init__(self, stream: IO[str], file: IO[str]) -> None:
        self._stream, self._file = stream, file
        self._file_works = True

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        if self._file_works:
            try:
                self._file.write(text)
                self._file.flush()
            except OSError as error:
                self._file_works = False
                self._stream.write(f"\nthe job's log in the run folder ends here: {error.strerror}")
        return written

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


@contextlib.contextmanager
def kept_log(run_folder: Path) -> Iterator[None]:
    """In a submitted job: what is said meanwhile goes to `jobs/ID.log` too. Elsewhere nothing is changed."""
    if JOB not in os.environ:
        yield
        return
    path = run_folder / "jobs" / f"{identity()}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    try:
        with _also_to(file):
            yield
    finally:
        with contextlib.suppress(OSError):  # closing flushes, and of a full disk was told already
            file.close()


@contextlib.contextmanager
def _also_to(file: IO[str]) -> Iterator[None]:
    """Standard output and error, and what logs to it, go to the file too."""
    both = _Both(sys.stderr, file)
    with contextlib.ExitStack() as swapped:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(both)
                swapped.callback(handler.setStream, sys.stderr)
        swapped.enter_context(contextlib.redirect_stdout(_Both(sys.stdout, file)))
        swapped.enter_context(contextlib.redirect_stderr(both))
        yield


if __name__ == "__main__":  # a control job, started by `grpo stop` where the run folder can be reached
    request_stop(Path(sys.argv[1]), sys.argv[2])
