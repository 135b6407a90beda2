"""The same fork server in a bubblewrap jail: no Docker, one layer less. Also level none, the fork server with no walls at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from sandbox.config import SandboxConfig
from sandbox.docker import ENVIRONMENT, FORK_SERVER, MAX_STDERR, USER_ID
from sandbox.errors import SandboxUnavailable
from sandbox.ownership import owned_folder, sweep_folders

AGENT = Path(__file__).parent / "agent"
END_S = 5.0
TRUSTED = "grpo-trusted-"


class JailHost:
    """Starts jails. `walled=False` is level none."""

    def __init__(self, config: SandboxConfig, *, walled: bool) -> None:
        self._config, self._walled = config, walled
        if not walled:
            sweep_folders(TRUSTED)

    async def start(self, name: str) -> JailWire:
        """A jail whose fork server is starting. Raises SandboxUnavailable."""
        # Without walls a program's files are files of this machine; they go with the slot.
        folder = None if self._walled else str(owned_folder(TRUSTED))
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as opened, theirs:
            command, descriptors = self._command(opened)
            # Root starts a jail as a user that owns nothing: root inside a namespace is still root to the files outside.
            nobody = USER_ID if self._walled and os.geteuid() == 0 else None
            words = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the jail
            try:
                # Not the event loop's own way to start a process: uvloop's, which Ray's actors have, cannot change the user.
                process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=words,
                    pass_fds=descriptors,
                    # Nothing of our environment: the jail's first process shows its own to all others.
                    env=ENVIRONMENT | ({} if folder is None else {"PYTHONPATH": str(AGENT.parent.parent), "TMPDIR": folder}),
                    start_new_session=True,
                    user=nobody,
                    group=nobody,
                    extra_groups=None if nobody is None else [],
                )
            except OSError as error:
                ours.close()
                words.close()
                _remove(folder)
                raise SandboxUnavailable(f"{command[0]} could not be started: {error}.") from None
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        except BaseException:
            process.kill()
            process.wait()
            _remove(folder)
            raise
        return JailWire(process, reader, writer, words, name, folder)

    def _command(self, opened: contextlib.ExitStack) -> tuple[list[str], list[int]]:
        """The words, and the descriptors they speak of, which stay open as long as `opened`."""
        options = {"preload": self._config.preload, "memory_mb": self._config.memory_mb}
        if not self._walled:
            return [_own_interpreter(), *FORK_SERVER[1:], json.dumps(options | {"isolation": "none"})], []
        files = {opened.enter_context(path.open("rb")).fileno(): path.name for path in sorted(AGENT.glob("*.py"))}
        interpreter = jail_interpreter()
        agent = [word for number, name in files.items() for word in ("--file", str(number), f"/opt/grpo/sandbox/agent/{name}")]
        return [*jail_options(interpreter), *agent, *READ_ONLY, interpreter, *FORK_SERVER[1:], json.dumps(options)], list(files)

    async def close(self) -> None:
        """A jail ends with its wire."""


def _remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _own_interpreter() -> str:
    """The interpreter below ours: the one that a virtual environment was made from."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def jail_interpreter() -> str:
    """A Python that whoever runs the jail may read. Raises SandboxUnavailable when there is none."""
    for path in (_own_interpreter(), "/usr/bin/python3"):
        if os.geteuid() != 0 or _is_public(Path(os.path.realpath(path))):
            return os.path.realpath(path)
    raise SandboxUnavailable(
        f"{_own_interpreter()} can be read by root alone, and programs do not run as root in a jail. Type: apt-get install "
        "python3; or start grpo as another user."
    )


def _is_public(path: Path) -> bool:
    try:
        return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))
    except OSError:
        return False


def jail_options(interpreter: str) -> list[str]:
    """bubblewrap and what it shows of the host: the interpreter, the system's libraries, nothing else.

    Raises SandboxUnavailable when it is not installed.
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
    prefix = str(Path(interpreter).parent.parent)
    if prefix != "/usr":
        command += ["--ro-bind", prefix, prefix]
    for path in ("/etc/ld.so.cache", "/etc/alternatives"):
        command += ["--ro-bind-try", path, path]
    return [*command, "--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--dir", "/dev/shm", "--dir", "/sys"]


READ_ONLY = ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--")


class JailWire:
    """The socket that is the server's stdin and stdout, its process, and the file with what it writes to stderr."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        words: IO[bytes],
        name: str,
        folder: str | None,
    ) -> None:
        self.name = f"{name} (process {process.pid})"
        self._process, self._reader, self._writer, self._words, self._folder = process, reader, writer, words, folder

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, END_S)
        self._words.close()
        _remove(self._folder)

    def last_words(self) -> str:
        if self._words.closed:
            return ""
        self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, self._words.tell() - MAX_STDERR))
        return self._words.read().decode("utf-8", "replace")

    async def ran_out_of_memory(self) -> bool:
        return False  # a jail is looked after by its server
