"""The watchdog over real actors: one that hangs is killed and named, and every process says where it stood."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.cluster import Cluster
from grpo.watchdog import PhaseOverdue, Watchdog
from tests.fakes import make_task
from verifiers.service_pool import ServiceLost

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(180)]


def sleeper() -> Any:
    """A class in a function travels by value: an actor cannot import this file."""

    class Sleeper:
        async def judge(self, task: Any, seconds: float) -> str:
            self.hang_here(seconds)
            return task.id

        async def update(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

        def hang_here(self, seconds: float) -> None:
            time.sleep(seconds)  # the whole process: it answers nothing meanwhile

        async def close(self) -> None:
            """Holds nothing."""

    return Sleeper


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def dog(tmp_path: Path, told: list[str]) -> Watchdog:
    return Watchdog(deadline_s=20, folder=tmp_path / "stalls", tell=lambda title, text: told.append(text))


@pytest.fixture
def cluster(tmp_path: Path, dog: Watchdog) -> Iterator[Cluster]:
    made = Cluster("local", logs=tmp_path / "logs", watchdog=dog)
    yield made
    made.shutdown()


async def test_a_part_that_hangs_is_killed_and_one_that_cannot_be_replaced_ends_the_run(
    tmp_path: Path, cluster: Cluster, dog: Watchdog, told: list[str]
) -> None:
    async def run() -> None:
        with dog.guard():
            service = await cluster.start(sleeper(), name="verifiers-0", lost=ServiceLost)
            learner = await cluster.start(sleeper(), name="learner")
            dog._deadline_s = 1.0  # the actors have started
            assert await service.judge(make_task("t1"), 0.0) == "t1"
            with pytest.raises(ServiceLost, match="the process of verifiers-0 died"):
                await service.judge(make_task("t7"), 120.0)
            assert told[0].startswith("verify of task t7 on verifiers-0 has taken ")
            await learner.update(120.0)

    with pytest.raises(PhaseOverdue, match=r"update on learner has taken \d+ s and may take 2 s"):
        await run()
    verify, update = sorted((tmp_path / "stalls").iterdir())
    parts = verify.read_text().split("\n== ")
    assert [part.split("\n", 1)[0] for part in parts[1:]] == ["driver", "verifiers-0", "learner"]
    assert "hang_here" in parts[2]
    assert "most recent call first" in parts[3]
    assert "update on learner" in update.read_text()
