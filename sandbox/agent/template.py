"""The process that forks jobs, and has never read a frame: nothing of other programs is in what a job inherits."""

from __future__ import annotations

import os
import socket

from sandbox.agent import job, walls


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
