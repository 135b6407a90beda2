"""A Docker daemon that a test may kill: beside the machine's own, and gone with its folder, mounts and containers afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class Daemon:
    """A Docker daemon of our own: another socket, another data folder, no network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/d.sock"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """After a kill the first start may fail over what was left, as a service manager's would; it tries again, as that does."""
        for _ in range(3):
            (self.folder / "pid").unlink(missing_ok=True)
            command = ["dockerd", "-H", self.url, "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
            command += ["-p", f"{self.folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            while self.process.poll() is None:
                if subprocess.run(["docker", "-H", self.url, "info"], capture_output=True, timeout=30).returncode == 0:
                    return
                time.sleep(0.2)
            self.end_the_rest()
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the daemon and what it started."""
        assert self.process is not None
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.end_the_rest()

    def end_the_rest(self) -> None:
        """The containerd it started, and the shims of containers, which have sessions of their own: whatever names our folder."""
        for pid in processes_of(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                is_dockers = words[0].rpartition(b"/")[2].startswith((b"dockerd", b"containerd"))
                if is_dockers and str(folder).encode() in b" ".join(words):
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def own_daemon(image: str) -> Iterator[Daemon]:
    """A running daemon that has `image`. Skips the test where none can be started."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("a daemon of our own needs dockerd and root")
    folder = Path(tempfile.mkdtemp(prefix="grpo-dockerd-", dir="/tmp"))  # a socket's path is short
    daemon = Daemon(folder)
    try:
        daemon.start()
        saved = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
        subprocess.run(["docker", "-H", daemon.url, "load"], input=saved, capture_output=True, check=True)
        yield daemon
    finally:
        daemon.stop()
        for mount in mounts_below(folder):  # a killed daemon leaves them
            subprocess.run(["umount", "-l", mount], check=True)
        shutil.rmtree(folder)


def mounts_below(folder: Path) -> list[str]:
    """The innermost first."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((place for place in places if place.startswith(f"{folder}/")), reverse=True)
