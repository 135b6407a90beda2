"""The same fork server in a bubblewrap jail: no Docker, one layer less. Also level none, the fork server with no walls at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from sandbox.config import SandboxConfig
from sandbox.docker import ENVIRONMENT, MAX_STDERR, USER_ID
from sandbox.errors import SandboxUnavailable

AGENT = Path(__file__).parent / "agent"
END_S = 5.0


class JailHost:
    """Starts jails. `walled=False` is level none."""

    def __init__(self, config: SandboxConfig, *, walled: bool) -> None:
        self._config, self._walled = config, walled

    async def start(self, name: str) -> JailWire:
        """A jail whose fork server is starting. Raises SandboxUnavailable."""
        command = [*(jail_command() if self._walled else ()), *self._server_command()]
        # Without walls a program's files are files of this machine; they go with the slot.
        folder = None if self._walled else tempfile.mkdtemp(prefix="grpo-trusted-")
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=asyncio.subprocess.PIPE,
                # Nothing of our environment: the jail's first process shows its own to all others.
                env=ENVIRONMENT | ({} if folder is None else {"PYTHONPATH": str(AGENT.parent.parent), "TMPDIR": folder}),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            _remove(folder)
            raise SandboxUnavailable(f"{command[0]} could not be started: {error}.") from None
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        return JailWire(process, reader, writer, name, folder)

    def _server_command(self) -> list[str]:
        preload = ("--preload", ",".join(self._config.preload)) if self._config.preload else ()
        walls = () if self._walled else ("--no-walls",)
        return [_interpreter(), "-P", "-s", "-B", "-m", "sandbox.agent.fork_server", *walls, *preload]

    async def close(self) -> None:
        """A jail ends with its wire."""


def _remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _interpreter() -> str:
    """The interpreter below ours: the one that a virtual environment was made from."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def jail_command() -> list[str]:
    """bubblewrap and its options. Raises SandboxUnavailable when it is not installed.

    The jail sees the interpreter, the system's libraries and nothing else of the host's files.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailable(
            "bubblewrap is not installed. Type: apt-get install bubblewrap (or your system's word for it), or use Docker: "
            "sandbox.level = warm."
        )
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
    command += ["--uid", str(USER_ID), "--gid", str(USER_ID)]
    for folder in ("/usr", "/lib", "/lib64", "/bin"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr"):
        command += ["--ro-bind", prefix, prefix]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    command += ["--dir", "/opt/grpo/sandbox", "--ro-bind", str(AGENT), "/opt/grpo/sandbox/agent"]
    command += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--dir", "/dev/shm", "--dir", "/sys"]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--"]


class JailWire:
    """The socket that is the server's stdin and stdout, and its process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        name: str,
        folder: str | None,
    ) -> None:
        self.name = f"{name} (process {process.pid})"
        self._process, self._reader, self._writer, self._folder = process, reader, writer, folder
        self._stderr = bytearray()
        self._listening = asyncio.create_task(self._listen())

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._process.wait()
        self._listening.cancel()
        _remove(self._folder)

    def last_words(self) -> str:
        return self._stderr.decode("utf-8", "replace")

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(MAX_STDERR):
            self._stderr += data
            del self._stderr[:-MAX_STDERR]
