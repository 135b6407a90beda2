"""Who forks jobs: a template that has never read a frame, so that a job inherits nothing of others; or the server itself."""

from __future__ import annotations

import os
import signal
import socket

from sandbox.agent import job, walls


class Template:
    """A process made before the first frame was read. The jobs it forks are the server's children."""

    def __init__(self, *, is_counted: bool) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _close_others(theirs.fileno())
                _serve_as_template(theirs, is_counted)
            finally:
                os._exit(1)
        theirs.close()

    def fork_job(self, descriptors: list[int]) -> int:
        """The process id of a job. Raises WallError when the kernel refuses it."""
        socket.send_fds(self._orders, [b"."], descriptors)
        reply = self._orders.recv(1000)
        if not reply or reply.startswith(b"!"):
            raise walls.WallError(0, reply[1:].decode() or "the template is gone")
        return int(reply)

    def clean(self) -> None:
        """A job's files were in mounts of its own."""


def _serve_as_template(orders: socket.socket, is_counted: bool) -> None:
    """Fork a job for every order; an order is nothing but descriptors. Ends when the server does."""
    walls.die_with_parent()
    job.reset_signals()
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, 1, len(job.Descriptors.NAMES))
        if not data:
            return
        try:
            pid = walls.new_process()
        except walls.WallError as error:
            orders.send(f"!{error}".encode())
            pid = -1
        if pid == 0:
            job.run_job(descriptors, walls.NAMESPACES, is_counted=is_counted)
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            orders.send(b"%d" % pid)


class NoTemplate:
    """The server forks. For gVisor, where a server runs only one program and no process can make a child for another; and for
    trusted programs, whose files are files of this machine."""

    pid = 0

    def __init__(self, isolation: str) -> None:
        self._isolation = isolation
        self._folder = job.FOLDER

    def fork_job(self, descriptors: list[int]) -> int:
        """The process id of a job."""
        if self._isolation == walls.NONE:
            import tempfile

            self._folder = tempfile.mkdtemp()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                job.reset_signals()
                _close_others(*descriptors)
                job.run_job(descriptors, self._isolation, is_counted=False, folder=self._folder)
            finally:
                os._exit(1)
        return pid

    def clean(self) -> None:
        """Remove the files of the job that has ended."""
        if self._isolation == walls.NONE:
            import shutil

            shutil.rmtree(self._folder, ignore_errors=True)


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
