"""What several files of whole runs start from."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from sandbox.build import build
from sandbox.docker import connect
from tests.sandbox.own_daemon import Daemon, own_daemon


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A Docker daemon of this test, which it may kill, with the image of the sandbox."""
    client = connect()
    image = build(client, Console(file=io.StringIO())).image.name
    client.close()
    with own_daemon(image) as daemon:
        monkeypatch.setenv("DOCKER_HOST", daemon.url)
        yield daemon
