"""A run that is killed again and again, at moments nobody chose, is the run that never was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from grpo.tracking import read_metrics
from tests.integration.runs import curve, finish, prepare, run, start, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_KILLS = 10
# One sequence at a time: what the hf engine rounds depends on who shares a batch, and so on when a request came.
SETTINGS = {
    "steps": 50,
    "groups_per_step": 2,
    "sampling.max_tokens": 8,
    "engine.max_num_seqs": 1,
    "learner.warmup_steps": 5,
    "learner.schedule": "cosine",
    "evaluation.every": 10,
    "checkpoints.every": 2,
    "checkpoints.keep": 2,
}


def newest_step(place: Path) -> int:
    lines = read_metrics(place / "runs/tiny/metrics.jsonl")
    return max((line["step"] for line in lines), default=0)


def is_writing_a_checkpoint(place: Path) -> bool:
    return any((place / "runs/tiny/checkpoints").glob(".step-*.partial"))


def kill_at_random(place: Path, process: subprocess.Popen[str], chance: random.Random, *, in_checkpoint: bool) -> bool:
    """Kill it some steps from here, at any moment of a step or while a checkpoint is written. Returns whether one was."""
    wanted, deadline = newest_step(place) + chance.randint(1, 3), time.monotonic() + 120
    while newest_step(place) < wanted:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if in_checkpoint:
        while not is_writing_a_checkpoint(place) and process.poll() is None:
            time.sleep(0.0005)
    else:
        time.sleep(chance.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    was_writing = is_writing_a_checkpoint(place)
    finish(process)
    return was_writing


def test_a_run_killed_at_ten_random_moments_equals_to_the_bit_one_that_never_was(tmp_path: Path) -> None:
    prepare(tmp_path, SETTINGS)
    run(tmp_path, "train", "tiny.toml", "--run-dir", "runs/undisturbed")

    seed = random.SystemRandom().randrange(10**6)
    print(f"the moments come from seed {seed}")
    chance, torn = random.Random(seed), 0
    for number in range(NUM_KILLS):
        process = start(tmp_path, "train", "tiny.toml")
        torn += kill_at_random(tmp_path, process, chance, in_checkpoint=number % 3 == 2)
    output = run(tmp_path, "train", "tiny.toml")
    wait_until_gone(tmp_path)

    assert torn, "no kill met a checkpoint that was being written"
    assert "resuming from step" in output
    assert curve(tmp_path) == curve(tmp_path, "undisturbed")
    killed, undisturbed = (load_file(tmp_path / "runs" / name / "model/model.safetensors") for name in ("tiny", "undisturbed"))
    assert killed.keys() == undisturbed.keys()
    assert all(killed[name].equal(tensor) for name, tensor in undisturbed.items())
    assert not list((tmp_path / "runs/tiny/checkpoints").glob(".*"))
