"""Objectives through Ray, as a person would run them: what travels between processes, and a run that is stopped and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.tracking import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = (
    "steps=4",
    "groups_per_step=4",
    "group_size=4",
    "tasks.held_out=8",
    "sampling.max_tokens=24",
    "evaluation.every=0",
    "evaluation.num_tasks=4",
    "engine.kind=hf",
    "model.start_from=",
)
LUCKY = ("rewards.sum={luck = {verifier = 'format', options = {pattern = '[\\s\\S]*[0-4q-z][\\s\\S]*'}}}",)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


def run(place: Path, name: str, *overrides: str) -> list[dict[str, float]]:
    settings = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    command = [sys.executable, "-m", "grpo.cli", "train", str(ROOT / f"configs/objectives/{name}.toml"), *settings]
    finished = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    return [line for line in read_metrics(place / "runs" / name / "metrics.jsonl") if "loss/value" in line]


def test_self_play_with_adapters(tmp_path: Path) -> None:
    steps = run(tmp_path, "spin", "publish_every=2", "model.lora.rank=4", "learner.learning_rate=1e-2")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert steps[1]["preference/margin"] > 0
    assert abs(steps[2]["preference/margin"]) < 1e-6  # its own reference again
    assert all(step["mismatch/probe_abs_mean"] < 1e-3 for step in steps)


def test_recorded_labels(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "completion": word, "label": word == "even"} for n in range(200) for word in ("even", "oddly")]
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    recorded = (
        f"tasks.source={tmp_path}/labels.jsonl",
        "tasks.prompt={prompt}",
        "tasks.completion={completion}",
        "tasks.label=label",
    )
    steps = run(tmp_path, "kto", *recorded, *LUCKY, "groups_per_step=16", "learner.learning_rate=1e-3", "steps=12")
    assert abs(steps[0]["preference/chosen"] - steps[0]["preference/rejected"]) < 1e-4  # the policy is its own reference
    assert steps[-1]["preference/chosen"] > steps[-1]["preference/rejected"] + 1


def test_online_dpo_is_resumed_where_its_reference_stood(tmp_path: Path) -> None:
    options = (*LUCKY, "learner.reference_every=3", "checkpoints.every=2", "learner.learning_rate=1e-3")
    (tmp_path / "steady").mkdir()
    (tmp_path / "broken").mkdir()
    steady = run(tmp_path / "steady", "online_dpo", *options)
    run(tmp_path / "broken", "online_dpo", *options, "steps=2")
    resumed = run(tmp_path / "broken", "online_dpo", *options)
    assert [step["preference/margin"] for step in resumed] == pytest.approx(
        [step["preference/margin"] for step in steady], abs=1e-6
    )
