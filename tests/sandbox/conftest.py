"""What the tests with a daemon share: a client, and an image of this very code."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """A Docker client."""
    from sandbox.docker import connect

    client = connect()
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(client: Any) -> str:
    """The name of the image of this version, built when it is missing."""
    from rich.console import Console

    from sandbox.build import build

    return build(client, Console(file=io.StringIO())).image.name
