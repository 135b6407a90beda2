"""Runs as a person starts them: `grpo train` in a folder, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from grpo.tiny_model import make_tiny_model
from grpo.tracking import read_metrics

ROOT = Path(__file__).parents[2]
GRPO = (sys.executable, "-m", "grpo.cli")
# A run of seconds. Its reward is one that an untrained model gets now and then; its model is there already, or the run would
# import what makes one.
TINY = {
    "steps": 6,
    "groups_per_step": 4,
    "group_size": 4,
    "model.path": "model",
    "tasks.source": "tasks.jsonl",
    "tasks.held_out": 8,
    "tasks.rewards": "digits",
    "sampling.max_tokens": 12,
    "engine.kind": "hf",
    "engine.max_model_len": 64,
    "learner.learning_rate": 1e-3,
    "evaluation.every": 0,
    "evaluation.num_tasks": 4,
    "rewards.digits.format.options.pattern": r"[\s\S]*[0-4][\s\S]*",
}
SUMS = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]
MARK = "GRPO_TEST_RUN"  # in the environment of every process a test starts, and so of all their children


def prepare(place: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = SUMS) -> None:
    """Write tiny.toml, which is TINY with these settings, its model and its tasks."""
    make_tiny_model(place / "model", seed=0)
    (place / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "tiny.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (TINY | settings).items()))


def workplace_of(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = SUMS) -> Callable[..., Iterator[Path]]:
    """A fixture: a folder with what `prepare` writes. Afterwards nothing that ran there is alive."""

    @pytest.fixture
    def workplace(tmp_path: Path) -> Iterator[Path]:
        prepare(tmp_path, settings, rows)
        yield tmp_path
        wait_until_gone(tmp_path)

    return workplace


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GRPO, *arguments],
        cwd=place,
        env=os.environ | {MARK: str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, timeout_s: float = 150) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    return output


def run(place: Path, *arguments: str) -> str:
    process = start(place, *arguments)
    output = finish(process)
    assert process.returncode == 0, output
    return output


def ours(place: Path) -> list[psutil.Process]:
    """Living processes that a test in this folder started, directly or not."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(place) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_gone(place: Path, *, timeout_s: float = 90) -> None:
    """Ray's agents are the last to go when their cluster was killed: they spend up to 60 s telling it of its death."""
    deadline = time.monotonic() + timeout_s
    while (left := ours(place)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = [" ".join(process.cmdline())[:120] for process in left if process.is_running()]
    for process in left:
        process.kill()
    assert not names, f"still alive: {names}"


@contextlib.contextmanager
def cluster_of(place: Path, *cpus: int) -> Iterator[str]:
    """A Ray cluster of nodes with so many CPUs, the head first, in processes of this test: its address. See local_cluster.py.

    Set RAY_AUTH_MODE to disabled before.
    """
    rays = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # a socket's path is short
    log = place / "cluster.log"
    holder = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("local_cluster.py"), *map(str, cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        env=os.environ | {MARK: str(place), "RAY_TMPDIR": rays},
        text=True,
    )
    try:
        assert holder.stdout is not None
        line = next((line for line in holder.stdout if line.startswith("READY ")), "")
        assert line, log.read_text()
        yield line.split()[1]
    finally:
        holder.communicate(timeout=60)
        shutil.rmtree(rays, ignore_errors=True)


def wait_for_step(place: Path, step: int, process: subprocess.Popen[str], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"ended early: {finish(process)}")
        if any(line["step"] >= step and "reward/mean" in line for line in read_metrics(place / "runs/tiny/metrics.jsonl")):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached within {timeout_s} s")


def curve(place: Path, name: str = "tiny") -> list[dict[str, float]]:
    """The metrics of a run without those that measure time."""
    lines = read_metrics(place / "runs" / name / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not measures_time(key)} for line in lines]


def measures_time(metric: str) -> bool:
    return metric.startswith(("time/", "speed/")) or (metric.startswith("verify/") and metric.endswith("_s"))
