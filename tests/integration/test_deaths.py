"""Sixty steps during which one part after another is killed: the run ends by itself, as well as one that was left alone.

It runs on a cluster of three nodes, of which the head has the driver and none of the parts; its programs run in Docker.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.runs import cluster_of, curve, finish, ours, prepare, start, wait_for_step, wait_until_gone
from tests.sandbox.own_daemon import Daemon

pytestmark = [pytest.mark.ray, pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

# The whole text is a program: an untrained model's noise is run too, and crashes.
SETTINGS = {
    "steps": 60,
    "tasks.held_out": 32,
    "tasks.prompt": "{question}",
    "tasks.reference": "reference",
    "sampling.max_tokens": 8,
    "learner.learning_rate": 3e-3,
    "evaluation.num_tasks": 32,
    "checkpoints.every": 5,
    "rewards.digits.unit_tests.weight": 0.01,
}


@pytest.fixture
def workplace(tmp_path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a config and the cluster that it names. Temporary files lie in `temporary`, Ray's own elsewhere."""
    case = {"stdin": "", "stdout": "1"}
    rows = [{"question": f"{a}+{b}=", "reference": {"cases": [case]}} for a in range(20) for b in range(10)]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # a cache, meant to stay
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster_of(tmp_path, 0, 2, 2) as address:
        prepare(tmp_path, SETTINGS | {"ray_address": address}, rows)
        yield tmp_path
    wait_until_gone(tmp_path)


def holder(place: Path, log: str) -> psutil.Process:
    """The process that writes this log of the run."""
    path = (place / "runs/tiny/logs" / log).resolve()
    return next(each for each in ours(place) if any(Path(file.path) == path for file in each.open_files()))


def kill_node_of(process: psutil.Process) -> None:
    """Its Ray daemon and whatever that has started: as when the machine is switched off."""
    raylet = next(each for each in process.parents() if each.name() == "raylet")
    for each in (raylet, *raylet.children(recursive=True)):
        each.kill()


def containers(daemon: Daemon) -> list[str]:
    listed = subprocess.run(["docker", "-H", daemon.url, "ps", "-aq"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def shared_memory(driver: int) -> list[str]:
    """What the run of this process has there."""
    return [entry.name for entry in Path("/dev/shm").iterdir() if f"-{driver}-" in entry.name]


def last(lines: list[dict[str, float]], name: str, count: int) -> float:
    return statistics.mean([line[name] for line in lines if name in line][-count:])


def test_a_run_whose_parts_are_killed_in_turn_ends_as_well_as_one_that_was_left_alone(workplace: Path, daemon: Daemon) -> None:
    alone = start(workplace, "train", "tiny.toml", "--run-dir", "runs/undisturbed")
    output = finish(alone, timeout_s=240)
    assert alone.returncode == 0, output

    process = start(workplace, "train", "tiny.toml")
    wait_for_step(workplace, 5, process)
    holder(workplace, "worker-0.log").kill()
    wait_for_step(workplace, 10, process)
    for worker in holder(workplace, "verifiers-0.log").children(recursive=True):
        worker.kill()
    wait_for_step(workplace, 15, process)
    subprocess.run(["docker", "-H", daemon.url, "kill", *containers(daemon)], check=True, capture_output=True)
    wait_for_step(workplace, 20, process)
    holder(workplace, "verifiers-1.log").kill()
    wait_for_step(workplace, 25, process)
    holder(workplace, "learner.log").kill()
    wait_for_step(workplace, 32, process)
    kill_node_of(holder(workplace, "learner.log"))
    output = finish(process, timeout_s=300)

    assert process.returncode == 0, output
    assert output.count("the process of learner died") >= 2, output
    assert "Starting again from step 2" in output, output
    assert "Starting again from step 3" in output, output
    assert [each for each in ours(workplace) if "ray::Host" in each.cmdline()] == []
    assert containers(daemon) == []
    assert shared_memory(process.pid) == []
    assert list((workplace / "temporary").iterdir()) == []
    disturbed, undisturbed = curve(workplace), curve(workplace, "undisturbed")
    assert [line["step"] for line in disturbed if "reward/mean" in line] == list(range(1, 61))
    assert all(line.get("verify/unscored_fraction", 0) == 0 for line in disturbed)
    for name, count in (("reward/mean", 10), ("group/accuracy", 10), ("eval/sampled_accuracy", 1)):
        assert last(disturbed, name, count) == pytest.approx(last(undisturbed, name, count), abs=0.15)
    assert max(line.get("fleet/lost_workers", 0) for line in disturbed) >= 1
    assert last(undisturbed, "reward/mean", 10) > 0.8  # from 0.06: there was something to lose
