"""vLLM's own OpenAI-compatible server on a CPU, over a model folder, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.vllm_engine import engine_environment

START_S = 300.0


@contextlib.contextmanager
def vllm_server(model: Path, *options: str, name: str = "tiny") -> Iterator[str]:
    """The base URL of a server that answers for the model under `name`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` starts; the command itself does not run with the build for CPUs, which has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    environment = os.environ | engine_environment("vllm", "cpu") | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    log = model.parent / f"{model.name}-server.txt"
    with log.open("wb") as written:
        server = subprocess.Popen([*command, *options], env=environment, stdout=written, stderr=written, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
