"""`grpo eval` and `grpo export` of a real run: Ray, an engine, verifiers; killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.integration.runs import curve, prepare, run, start, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps."""
    place = tmp_path_factory.mktemp("trained")
    prepare(place, {"steps": 2, "evaluation.num_tasks": 8})
    run(place, "train", "tiny.toml")
    wait_until_gone(place)
    return place


def completions(place: Path, name: str) -> list[dict[str, Any]]:
    columns = ["task_id", "index", "text", "seed", "reward"]
    return pq.read_table(place / name / "completions.parquet", columns=columns).to_pylist()


def test_a_run_is_evaluated_as_it_was_while_it_trained(trained: Path):
    told = run(trained, "eval", "runs/tiny", "-n", "1", "-o", "once")
    found = json.loads((trained / "once/results.json").read_text())
    (during,) = [line["eval/sampled_accuracy"] for line in curve(trained) if line["step"] == 2 and "eval/sampled_accuracy" in line]
    assert found["pass_at_k"]["1"]["value"] == pytest.approx(during)
    assert "8 completions of 8 tasks" in told
    wait_until_gone(trained)


def test_an_exported_model_is_evaluated_as_its_run(trained: Path):
    run(trained, "export", "runs/tiny", "--to", "exported")
    run(trained, "eval", "runs/tiny", "-n", "4", "--max-tokens", "8", "-o", "of-run")
    run(trained, "eval", "exported", "--config", "tiny.toml", "--max-tokens", "8", "-o", "of-model")
    assert completions(trained, "of-model") == completions(trained, "of-run")
    wait_until_gone(trained)


def test_an_evaluation_that_is_killed_goes_on_without_loss(trained: Path):
    arguments = ("eval", "runs/tiny", "--tasks", "tasks.jsonl", "-n", "24", "-o", "killed")
    process = start(trained, *arguments)
    journal = trained / "killed/completions.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and (not journal.exists() or journal.read_bytes().count(b"\n") < 100):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = journal.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    assert 100 <= kept.count(b"\n") < 2400

    run(trained, *arguments)
    assert journal.read_bytes().startswith(kept)
    rows = completions(trained, "killed")
    assert len({(row["task_id"], row["index"]) for row in rows}) == len(rows) == 2400
    run(trained, *arguments[:-1], "undisturbed")
    assert completions(trained, "undisturbed") == rows
    wait_until_gone(trained)
