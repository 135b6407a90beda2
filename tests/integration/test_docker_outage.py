"""Docker goes away in the middle of a run whose rewards are programs: it waits, or stops with the cause and can be resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.tracking import read_metrics
from tests.integration.runs import curve, finish, prepare, run, start, wait_for_step, wait_until_gone
from tests.sandbox.own_daemon import Daemon

pytestmark = [pytest.mark.ray, pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(400)]

# Without an entry point the whole text is a program: an untrained model's noise is run too, and crashes.
SETTINGS = {
    "steps": 8,
    "tasks.prompt": "{question}",
    "tasks.reference": "reference",
    "learner.learning_rate": 1e-6,
    "checkpoints.every": 2,
    "rewards.digits.unit_tests.weight": 1.0,
}


@pytest.fixture
def workplace(tmp_path: Path, daemon: Daemon) -> Iterator[Path]:
    case = {"stdin": "", "stdout": "1"}
    rows = [{"question": f"{n} ", "reference": {"cases": [case]}} for n in range(100)]
    prepare(tmp_path, SETTINGS, rows)
    yield tmp_path
    wait_until_gone(tmp_path)


def judged(place: Path) -> list[tuple[float, float]]:
    """Of each step: how many programs ran and crashed, and what share of completions had no reward."""
    return [(line["verify/unit_tests_crash"], line["verify/unscored_fraction"]) for line in curve(place) if "reward/mean" in line]


def verdicts(place: Path, name: str = "tiny") -> list[dict[str, float]]:
    of_verdicts = ("step", "reward/", "outcome/", "verify/", "group/")
    return [{key: value for key, value in line.items() if key.startswith(of_verdicts)} for line in curve(place, name)]


def test_a_run_waits_for_docker_and_loses_nothing(workplace: Path, daemon: Daemon) -> None:
    run(workplace, "train", "tiny.toml", "--run-dir", "runs/undisturbed")
    process = start(workplace, "train", "tiny.toml")
    wait_for_step(workplace, 2, process)
    daemon.kill()
    time.sleep(8)
    reached = read_metrics(workplace / "runs/tiny/metrics.jsonl")[-1]["step"]
    assert process.poll() is None
    assert reached < 8, "it waits"
    daemon.start()
    output = finish(process)

    assert process.returncode == 0, output
    assert "Docker does not answer" in output, output
    assert verdicts(workplace) == verdicts(workplace, "undisturbed")
    assert all(crashed >= 12 for crashed, _ in judged(workplace)), "programs were run at every step"


def test_a_run_without_docker_stops_with_the_cause_and_resumes(workplace: Path, daemon: Daemon) -> None:
    process = start(workplace, "train", "tiny.toml")
    wait_for_step(workplace, 3, process)
    daemon.kill()
    output = finish(process, timeout_s=300)

    assert process.returncode != 0
    assert "could not be scored" in output, output
    assert "Docker does not answer" in output, output
    wait_until_gone(workplace)
    daemon.start()
    assert "resuming from step" in run(workplace, "train", "tiny.toml")
    assert all(unscored == 0 for _, unscored in judged(workplace))
