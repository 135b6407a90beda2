"""kill -9 in the middle of a batch: of the driver, of a fork server, of a container, of the Docker daemon.

Every program is judged or run again; none is lost silently, none is taken for a failure of its own; nothing is left after the next
start. The daemon that is killed here is one of our own, beside the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import pool as pool_module
from sandbox.cleaning import sweep
from sandbox.config import SandboxConfig
from sandbox.docker import connect
from sandbox.errors import SandboxUnavailable
from sandbox.ownership import LABEL_OWNER, Owner
from sandbox.pool import open_sandbox
from sandbox.types import Limits, Program
from tests.sandbox.own_daemon import own_daemon

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]

WARM = SandboxConfig(slots=2, memory_mb=128)


def containers_of(client, owner: Owner | None = None) -> list[dict]:
    found = client.api.containers(all=True, filters={"label": LABEL_OWNER})
    return [c for c in found if owner is None or c["Labels"][LABEL_OWNER] == str(owner)]


async def batch(sandbox, count: int, *, seconds: float) -> list:
    """Programs that each take a while and print their own number."""
    programs = [Program(f"import time; time.sleep({seconds}); print({number})") for number in range(count)]
    return await asyncio.gather(*(sandbox.run(program) for program in programs))


def assert_all_right(executions) -> None:
    assert [execution.stdout for execution in executions] == [f"{number}\n" for number in range(len(executions))]
    assert all(execution.ok for execution in executions)


def processes_in(client, container_id: str) -> list[int]:
    """Host process ids, the fork server first, then its template, then the job's."""
    rows = client.api.top(container_id)["Processes"]
    return sorted(int(row[1]) for row in rows)


@pytest.mark.parametrize("victim", ["server", "template", "container"])
async def test_what_is_killed_in_mid_batch_costs_no_program(image, victim):
    client, sandbox = connect(), open_sandbox(WARM)
    chance = random.Random(victim)
    try:
        await batch(sandbox, 2, seconds=0)  # on a busy machine the first kill would meet a sandbox that never worked
        running = asyncio.create_task(batch(sandbox, 60, seconds=0.1))
        for _ in range(3):
            await asyncio.sleep(chance.uniform(0.5, 1.0))
            container = chance.choice(containers_of(client, Owner.current()))["Id"]
            with contextlib.suppress(Exception):  # it may have been replaced just now
                if victim == "container":
                    client.api.kill(container)
                else:
                    os.kill(processes_in(client, container)[0 if victim == "server" else 1], signal.SIGKILL)
        assert_all_right(await running)
        assert sandbox.metrics()["sandbox/lost"] >= 1
    finally:
        await sandbox.close()
    assert containers_of(client, Owner.current()) == []


DRIVER = """
import asyncio, sys
from sandbox.config import SandboxConfig
from sandbox.pool import open_sandbox
from sandbox.types import Program
async def main():
    sandbox = open_sandbox(SandboxConfig(slots=2, memory_mb=128))
    print("ready", (await sandbox.run(Program("print(1)"))).ok, flush=True)
    await asyncio.gather(*(sandbox.run(Program("import time; time.sleep(2)")) for _ in range(20)))
asyncio.run(main())
"""


def test_nothing_is_left_of_a_killed_driver(image):
    client = connect()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready True\n"
    time.sleep(0.5)
    mine = [c for c in containers_of(client) if f":{driver.pid}:" in c["Labels"][LABEL_OWNER]]
    assert len(mine) == 2
    driver.kill()
    driver.wait()
    sweep(client)  # what every start does; most have ended with their streams already
    deadline = time.monotonic() + 20  # Docker may still be removing one by itself
    while left := {c["Id"] for c in containers_of(client)} & {c["Id"] for c in mine}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_sweep_touches_nobody_elses_containers(image):
    client, other = connect(), subprocess.Popen(["sleep", "60"])
    command = ["python3", "-c", "import time; time.sleep(60)"]
    ticks = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
    here = Owner.current()
    owners = {
        "alive": here._replace(pid=other.pid, start_ticks=int(ticks)),
        "reused id": here._replace(pid=other.pid, start_ticks=int(ticks) - 1),
        "dead": here._replace(pid=2**22 + 1),
        "elsewhere": here._replace(pid_namespace="1", pid=2**22 + 1),
        "another boot": here._replace(boot_id="another", pid=2**22 + 1),
    }
    made = {}
    for name, owner in owners.items():
        made[name] = client.api.create_container(
            image, command, labels={LABEL_OWNER: str(owner), "grpo.created": str(int(time.time()))}
        )["Id"]
    made["not ours"] = client.api.create_container(image, command)["Id"]
    try:
        swept = {container.container_id for container in sweep(client)}
        assert swept & set(made.values()) == {made["reused id"], made["dead"]}
        aged = {container.container_id for container in sweep(client, max_age_s=-1)}
        assert aged & set(made.values()) == {made["elsewhere"], made["another boot"]}
    finally:
        other.kill()
        other.wait()
        for name in ("alive", "not ours"):
            client.api.remove_container(made[name], force=True)


@pytest.fixture
def daemon(image, monkeypatch):
    with own_daemon(image) as daemon:
        monkeypatch.setenv("DOCKER_HOST", daemon.url)
        yield daemon


async def test_a_daemon_that_is_killed_and_comes_back_costs_no_program(daemon):
    sandbox = open_sandbox(WARM)
    try:
        running = asyncio.create_task(batch(sandbox, 80, seconds=0.1))
        await asyncio.sleep(1.5)
        await asyncio.to_thread(daemon.kill)
        await asyncio.sleep(1)
        assert not running.done()
        await asyncio.to_thread(daemon.start)
        assert_all_right(await running)
    finally:
        await sandbox.close()
    client = connect()
    sweep(client)
    deadline = time.monotonic() + 20
    while containers_of(client) and time.monotonic() < deadline:  # a busy daemon takes a while to remove what was thrown away
        await asyncio.sleep(0.2)
    assert containers_of(client) == []


async def test_a_daemon_that_stays_away_is_unavailable_and_never_a_verdict(daemon, monkeypatch):
    monkeypatch.setattr(pool_module, "PATIENCE_S", 2.0)
    sandbox = pool_module.Pool(lambda: pool_module._host(WARM), num_slots=2, name="warm", patience_s=2.0)
    try:
        assert (await sandbox.run(Program("print(1)"))).ok
        running = asyncio.create_task(outcomes(sandbox, 30))
        await asyncio.sleep(0.7)
        await asyncio.to_thread(daemon.kill)
        done = await running
        assert all(isinstance(one, SandboxUnavailable) or one.ok for one in done)
        assert any(isinstance(one, SandboxUnavailable) for one in done)
        assert "systemctl start docker" in str(next(one for one in done if isinstance(one, SandboxUnavailable)))
        await asyncio.to_thread(daemon.start)
        assert (await sandbox.run(Program("print(1)"))).ok
    finally:
        await sandbox.close()


async def outcomes(sandbox, count: int) -> list:
    work = (sandbox.run(Program("import time; time.sleep(0.1)"), limits=Limits()) for _ in range(count))
    return await asyncio.gather(*work, return_exceptions=True)
