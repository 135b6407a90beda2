"""Runs as a person starts them: `grpo train` in a folder, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from grpo.tracking import read_metrics

ROOT = Path(__file__).parents[2]
GRPO = (sys.executable, "-m", "grpo.cli")
MARK = "GRPO_TEST_RUN"  # in the environment of every process a test starts, and so of all their children


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


def wait_until_gone(place: Path, *, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while (left := ours(place)) and time.monotonic() < deadline:
        time.sleep(0.2)
    names = [" ".join(process.cmdline())[:120] for process in left if process.is_running()]
    for process in left:
        process.kill()
    assert not names, f"still alive: {names}"


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
