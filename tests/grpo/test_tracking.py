"""Where the numbers go: metrics.jsonl, W&B, rollouts in Parquet."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet
import pytest

from grpo.tracking import JsonlTracker, RolloutStore, Tracking, WandbTracker, read_metrics, wandb_modes
from rollout.types import Completion, Group
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


# W&B


@pytest.mark.parametrize(
    ("mode", "key", "tried"),
    [
        (None, None, ("offline",)),
        (None, "0" * 40, ("online", "offline")),
        ("offline", "0" * 40, ("offline",)),
        ("online", None, ("offline",)),
        ("disabled", "0" * 40, ("disabled",)),
    ],
)
def test_wandb_is_online_only_with_a_key_and_when_nobody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str | None, key: str | None, tried: tuple[str, ...]
):
    monkeypatch.setenv("HOME", str(tmp_path))  # with no netrc in it
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert wandb_modes() == tried


def start(folder: Path, **changes: Any) -> WandbTracker:
    options = {"project": "p", "entity": None, "name": "n", "folder": folder, "config": {"seed": 0}, "run_id": None}
    return WandbTracker(**options | changes)


def test_an_offline_run_is_written_into_the_run_folder_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = start(tmp_path)
    run_id = tracker.run_id
    assert run_id
    tracker.log(1, {"reward/mean": 0.25})
    tracker.log(1, {"eval/sampled_accuracy": 0.5})
    tracker.log(2, {"reward/mean": math.nan})
    tracker.close()
    (written,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    deadline = time.monotonic() + 20
    while b"0.25" not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)  # its own process writes
    assert b"reward/mean" in written.read_bytes()
    assert b"0.25" in written.read_bytes()
    assert [record for record in caplog.records if record.name.startswith("grpo")] == []
    assert "".join(capfd.readouterr()) == ""


class Broken:
    """A client whose every call fails."""

    id = "abc"

    def __init__(self) -> None:
        self.calls = 0

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        self.calls += 1
        raise ConnectionError("the server answered 500")

    def finish(self) -> None:
        raise ConnectionError("still")


def test_a_failing_client_is_reported_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    broken = Broken()
    monkeypatch.setattr("grpo.tracking.start_wandb", lambda **options: broken)
    tracker = start(tmp_path)
    for step in range(3):
        tracker.log(step, {"a": 1.0})
    tracker.close()
    assert broken.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "W&B failed and is left out from here on: ConnectionError: the server answered 500"
    ]


def test_a_client_that_does_not_start_never_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import wandb

    def fail(**options: Any) -> None:
        raise wandb.Error("no route to host")

    monkeypatch.setattr(wandb, "init", fail)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    tracker = start(tmp_path)
    tracker.log(1, {"a": 1.0})
    tracker.close()
    assert tracker.run_id is None
    modes = [record.getMessage() for record in caplog.records]
    assert [message.split(": ")[0] for message in modes] == [f"W&B does not start in mode {mode}" for mode in ("online", "offline")]


# Rollouts


def stored(folder: Path, *groups: Group, every: int = 1) -> list[dict[str, Any]]:
    RolloutStore(folder, every=every).write(1, groups)
    return pyarrow.parquet.read_table(folder / "step-000001.parquet").to_pylist()


def test_a_rollout_is_a_row_with_all_that_was_sampled_and_said(tmp_path: Path):
    task = make_task("a", prompt="1+1=", reference="2")
    completion = Completion(0, (5, 6), (7, 8), "2", "stop", (-0.5, -0.25), policy_version=3, seed=2**62 - 1)
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
