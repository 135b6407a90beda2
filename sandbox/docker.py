"""Containers with a fork server in each. The only file that imports the Docker SDK for running programs.

The SDK's calls block, so they run in threads; the attached stream is read by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from sandbox.config import SandboxConfig
from sandbox.errors import SandboxUnavailable
from sandbox.ownership import LABEL_CREATED, LABEL_OWNER, Owner
from sandbox.seccomp import container_profile

API_TIMEOUT_S = 30
WAIT_S = 5
USER_ID = 20000  # nobody on the host; no file in the image is its own
MAX_STDERR = 8192
CALLS_PER_CONNECTION = 32
FORK_SERVER = ("python3", "-P", "-s", "-B", "-m", "sandbox.agent.fork_server")
GVISOR_RUNTIME = "runsc"
GVISOR_DISK_MB = 16
# One thread for every library that would start more: a fork server may have only one.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": "/opt/grpo",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",  # an arena per thread would use up the address space that a jail limits
}


def connect(*, timeout_s: int = API_TIMEOUT_S) -> Any:
    """A client of the daemon that the environment names. Raises SandboxUnavailable when none answers."""
    with daemon_errors():
        import docker

        client = docker.from_env(timeout=timeout_s, max_pool_size=CALLS_PER_CONNECTION)
        client.ping()
        return client


@contextlib.contextmanager
def daemon_errors() -> Iterator[None]:
    """Turn everything by which a daemon shows that it is not there, or will not, into SandboxUnavailable."""
    try:
        import docker.errors
        import requests
    except ImportError as error:
        raise SandboxUnavailable(
            f"the Docker SDK for Python is not installed ({error}). Type: pip install docker; or choose another sandbox.level: "
            "grpo sandbox doctor names those that this machine has."
        ) from None
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise SandboxUnavailable(
            f"Docker {_complaint(error)}, or set sandbox.level to bubblewrap, which needs no Docker; grpo sandbox doctor says what "
            "this machine has."
        ) from error


NOT_THERE = ("Connection aborted", "ConnectionRefused", "NewConnectionError", "FileNotFoundError", "Name or service not known")


def _complaint(error: BaseException) -> str:
    """What is wrong with the daemon, and what to type."""
    address, text = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock", str(error)
    if "PermissionError" in text:
        return f"refuses you at {address}. Type: sudo usermod -aG docker $USER, and log in again"
    if any(words in text for words in NOT_THERE):
        return f"does not answer at {address}. Type: apt-get install docker.io, then systemctl start docker (or: dockerd &)"
    return f"did not do what was asked: {_first_line(error)}. See docker info and the daemon's log"


def _first_line(error: BaseException) -> str:
    import docker.errors

    if isinstance(error, docker.errors.APIError) and error.explanation:
        return str(error.explanation).strip().rstrip(".")
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class DockerHost:
    """Starts containers. One for each pool; its client is shared by the pool's threads."""

    def __init__(self, config: SandboxConfig, *, image: str, runtime: str | None = None) -> None:
        self._config, self._image, self._runtime = config, image, runtime
        self._client: Any = None

    async def start(self, name: str) -> ContainerWire:
        """A container whose fork server is starting. Raises SandboxUnavailable."""
        with daemon_errors():
            if self._client is None:
                self._client = await asyncio.to_thread(connect)
            container_id, stream = await asyncio.to_thread(self._start, name)
            return await ContainerWire.over(self._client.api, container_id, stream, name)

    def _start(self, name: str) -> tuple[str, socket.socket]:
        api = self._client.api
        gvisor = self._runtime == GVISOR_RUNTIME
        options = {"preload": self._config.preload, "memory_mb": self._config.memory_mb}
        options |= {"isolation": "user"} if gvisor else {"counters": True}
        container_id = api.create_container(
            self._image,
            [*FORK_SERVER, json.dumps(options)],
            user="0:0" if gvisor else f"{USER_ID}:{USER_ID}",
            environment=ENVIRONMENT,
            hostname="sandbox",
            stdin_open=True,
            labels={LABEL_OWNER: str(Owner.current()), LABEL_CREATED: str(int(time.time()))},
            host_config=self._host_config(api),
        )["Id"]
        try:
            # Before the start, so that nothing is missed, and the end of this stream is the end of the server.
            attached = api.attach_socket(container_id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            stream = _plain_socket(attached)
            api.start(container_id)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                api.remove_container(container_id, force=True)
            raise
        return container_id, stream

    def _host_config(self, api: Any) -> dict[str, Any]:
        from docker.types import LogConfig, Ulimit

        memory = self._config.memory_mb << 20
        security, more = ["no-new-privileges:true"], {}
        if self._runtime == GVISOR_RUNTIME:
            # Its own kernel is the wall. It takes no profile (the fork server still filters), and has no mounts per program: the
            # container is thrown away instead.
            own = f"rw,noexec,nosuid,nodev,mode=1777,size={GVISOR_DISK_MB}m"
            more = {"tmpfs": {"/tmp": own}, "cap_add": ["SETUID", "SETGID", "SETPCAP", "KILL"]}
        else:
            security.append(f"seccomp={container_profile()}")
        host_config = api.create_host_config(
            network_mode="none",
            dns=["127.0.0.1"],  # else the host's name servers stand in /etc/resolv.conf
            dns_search=["."],
            read_only=True,
            cap_drop=["ALL"],
            security_opt=security,
            ipc_mode="private",
            shm_size="1m",
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=10**9,
            pids_limit=512,
            ulimits=[Ulimit(name="core", soft=1, hard=1), Ulimit(name="nofile", soft=1024, hard=1024)],
            log_config=LogConfig(type="none"),
            auto_remove=self._runtime != GVISOR_RUNTIME,  # there we look at what ended it first
            runtime=self._runtime,
            **more,
        )
        # The kernel mounts a program's own /proc only where the container's is whole. A program never sees the container's.
        host_config["MaskedPaths"] = []
        host_config["ReadonlyPaths"] = []
        return host_config

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)


def _plain_socket(attached: Any) -> socket.socket:
    """The socket below an attached stream. Raises SandboxUnavailable for what the event loop cannot read."""
    stream = getattr(attached, "_sock", attached)
    if not isinstance(stream, socket.socket) or hasattr(stream, "cipher"):
        raise SandboxUnavailable(
            f"programs are spoken to through unix:// or tcp://, and DOCKER_HOST gives a {type(stream).__name__}. Forward the "
            "daemon's socket to this machine, e.g. ssh -L /tmp/docker.sock:/var/run/docker.sock HOST, and set "
            "DOCKER_HOST=unix:///tmp/docker.sock."
        )
    # The SDK's object would close the connection when it is collected.
    return stream.dup()


class ContainerWire:
    """The attached streams of one container: Docker's frames of 8 bytes and a payload, stdout 1 and stderr 2."""

    def __init__(self, api: Any, container_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self.name = f"{name} ({container_id[:12]})"
        self.container_id = container_id
        self._api, self._reader, self._writer = api, reader, writer
        self._stdout, self._stderr = bytearray(), bytearray()
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def over(cls, api: Any, container_id: str, stream: socket.socket, name: str) -> ContainerWire:
        stream.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=stream, limit=1 << 22)
        return cls(api, container_id, reader, writer, name)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self, size: int) -> bytes:
        while len(self._stdout) < size:
            kind, length = struct.unpack(">BxxxI", await self._reader.readexactly(8))
            payload = await self._reader.readexactly(length)
            if kind == 1:
                self._stdout += payload
            else:
                self._stderr += payload
                del self._stderr[:-MAX_STDERR]
        data = bytes(self._stdout[:size])
        del self._stdout[:size]
        return data

    async def close(self) -> None:
        if self._closing is None:
            # First: Docker waits for whoever should read a container's output before it lets the container go.
            self._writer.transport.abort()
            self._closing = asyncio.ensure_future(asyncio.to_thread(self._remove))
        await asyncio.shield(self._closing)

    def last_words(self) -> str:
        return self._stderr.decode("utf-8", "replace")

    async def ran_out_of_memory(self) -> bool:
        return await asyncio.to_thread(self._ran_out_of_memory)

    def _ran_out_of_memory(self) -> bool:
        import docker.errors
        import requests

        with contextlib.suppress(docker.errors.DockerException, requests.RequestException, OSError):
            self._api.wait(self.container_id, timeout=WAIT_S)
            return self._api.inspect_container(self.container_id)["State"]["OOMKilled"]
        return False

    def _remove(self) -> None:
        import docker.errors
        import requests

        # Gone already, going by itself, or the daemon is away: then the server ends with its stream, and the next start sweeps.
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException, OSError):
            self._api.remove_container(self.container_id, force=True)
