"""Where the numbers go: metrics.jsonl, rollouts in Parquet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet
import pytest

from grpo.tracking import JsonlTracker, RolloutStore, Tracking, read_metrics
from rollout.types import Completion, Group, VersionSpan
from tests.fakes import FakeTracker, make_completion, make_group, make_task, make_verdict
from verifiers.types import Message, Verdict, correct, infra

# metrics.jsonl


def log(path: Path, steps: range, *, from_step: int) -> None:
    tracker = JsonlTracker(path, from_step=from_step)
    for step in steps:
        tracker.log(step, {"reward/mean": step / 10})
    tracker.close()


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def test_each_call_is_a_line_that_is_on_disk_at_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, from_step=0)
    tracker.log(1, {"reward/mean": 0.5, "completion/tokens": 7})
    assert json.loads(path.read_text()) == {"step": 1, "reward/mean": 0.5, "completion/tokens": 7}


def test_a_resumed_run_has_each_step_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log(path, range(1, 8), from_step=0)
    log(path, range(5, 10), from_step=4)
    assert steps(path) == list(range(1, 10))


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path):
    """Its evaluation before the first step would be there twice."""
    path = tmp_path / "metrics.jsonl"
    log(path, range(3), from_step=0)
    log(path, range(5), from_step=0)
    assert steps(path) == [0, 1, 2, 3, 4]


TORN = [b'{"step": 4, "rew', b'{"step"', b"\x00\x00\x00", b'{"step": 4, "text": "\xe2', b"[4]", b'{"reward": 1}']


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_line_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes):
    path = tmp_path / "metrics.jsonl"
    log(path, range(1, 4), from_step=0)
    with path.open("ab") as file:
        file.write(torn)
    assert steps(path) == [1, 2, 3]
    assert caplog.records[-1].getMessage() == f"{path}:4: a damaged line was left out"
    log(path, range(4, 6), from_step=3)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_what_is_not_finite_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    JsonlTracker(path, from_step=0).log(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    assert read_metrics(path) == [{"step": 1, "c": 1.0}]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path):
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_every_tracker_is_told_and_closed():
    trackers = [FakeTracker(), FakeTracker()]
    tracking = Tracking(trackers)
    tracking.log(3, {"a": 1.0})
    tracking.close()
    assert [tracker.lines for tracker in trackers] == [[(3, {"a": 1.0})]] * 2
    assert all(tracker.closed for tracker in trackers)


# Rollouts


def stored(folder: Path, *groups: Group, every: int = 1) -> list[dict[str, Any]]:
    RolloutStore(folder, every=every).write(1, groups)
    return pyarrow.parquet.read_table(folder / "step-000001.parquet").to_pylist()


def test_a_rollout_is_a_row_with_all_that_was_sampled_and_said(tmp_path: Path):
    task = make_task("a", prompt="1+1=", reference="2")
    completion = Completion(0, (5, 6), (7, 8), "2", "stop", (-0.5, -0.25), (VersionSpan(3, 1), VersionSpan(4, 1)), seed=2**62 - 1)
    verdict = Verdict(1.0, True, (correct("the same", "2"),))
    assert stored(tmp_path, Group(task, (completion,), (verdict,))) == [
        {
            "step": 1,
            "task_id": "a",
            "prompt": "1+1=",
            "reference": '"2"',
            "rewards": "math",
            "index": 0,
            "text": "2",
            "prompt_ids": [5, 6],
            "token_ids": [7, 8],
            "behavior_logprobs": [-0.5, -0.25],
            "finish_reason": "stop",
            "policy_version": 3,
            "version_spans": [{"version": 3, "num_tokens": 1}, {"version": 4, "num_tokens": 1}],
            "seed": 2**62 - 1,
            "reward": 1.0,
            "is_correct": True,
            "cause": None,
            "scores": [
                {"verifier": "", "outcome": "correct", "value": 1.0, "reason": "the same", "extracted": "2", "seconds": 0.0}
            ],
        }
    ]


def test_whatever_a_model_writes_can_be_stored(tmp_path: Path):
    text = "lone \ud800 surrogate, NUL \x00, emoji \U0001f600"
    task = make_task("id \udfff", prompt=(Message("user", text),), reference=text)
    completion = Completion(0, (1,), (), text, "length", None)
    verdict = Verdict(None, False, (infra(text),), cause=text)
    (row,) = stored(tmp_path, Group(task, (completion,), (verdict,)))
    escaped = text.replace("\ud800", "\\ud800")
    assert (row["text"], row["cause"], row["scores"][0]["reason"]) == (escaped, escaped, escaped)
    assert row["task_id"] == "id \\udfff"
    assert row["behavior_logprobs"] is None
    assert json.loads(row["reference"]) == text
    assert json.loads(row["prompt"]) == [{"role": "user", "content": text}]


def test_a_reference_may_be_any_data(tmp_path: Path):
    rows = stored(tmp_path, make_group([1, 0], task=make_task(reference={"tests": [1, 2], "when": Path("x")})))  # type: ignore[arg-type]
    assert json.loads(rows[0]["reference"]) == {"tests": [1, 2], "when": "x"}


def test_files_of_several_steps_are_read_together(tmp_path: Path):
    """Also when a column of one of them holds nothing but None, or there is no score at all."""
    store = RolloutStore(tmp_path, every=1)
    store.write(1, [make_group([1, 0])])
    store.write(2, [Group(make_task(), (Completion(0, (1,), (2,), "x", "stop", None),), (Verdict(1.0, True, ()),))])
    store.write(3, [make_group([None, None])])
    store.write(4, [])
    table = pyarrow.dataset.dataset(tmp_path).to_table()
    assert sorted(table["step"].to_pylist()) == [1, 1, 2, 3, 3]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("every", "written"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (0, [])])
def test_rollouts_are_written_every_so_many_steps(tmp_path: Path, every: int, written: list[int]):
    store = RolloutStore(tmp_path, every=every)
    for step in range(1, 5):
        store.write(step, [Group(make_task(), (make_completion(),), (make_verdict(1),))])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:06d}.parquet" for step in written]
