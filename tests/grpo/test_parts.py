"""What the processes of a run are made of."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from grpo.config import load_config
from grpo.parts import make_verifiers
from grpo.placement import Seat
from tests.fakes import FakeVerifiers, is_right

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.toml"
IN_ITS_PROCESS = "import pickle, sys; factory, args = pickle.load(sys.stdin.buffer); factory(*args); print('torch' in sys.modules)"


class Sent:
    """In place of a cluster: keeps what would travel to an actor's process."""

    def __init__(self) -> None:
        self.bytes = b""

    async def start(self, factory: Any, *args: Any, **options: Any) -> FakeVerifiers:
        self.bytes = pickle.dumps((factory, args))
        return FakeVerifiers(is_right)


async def test_the_process_of_a_verifier_service_has_no_torch():
    config, cluster = load_config(QUICKSTART), Sent()
    await make_verifiers(config, cluster, seats=[Seat("verifiers", 0, 0)], env={}).start()  # type: ignore[arg-type]
    told = subprocess.run([sys.executable, "-c", IN_ITS_PROCESS], input=cluster.bytes, capture_output=True, check=True)
    assert told.stdout == b"False\n"
