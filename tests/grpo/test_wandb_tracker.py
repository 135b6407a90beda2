"""W&B through its real client, against a loopback server: nothing lost, nothing twice, and no step waits."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.trackers import wandb_tracker
from grpo.trackers.wandb_rows import COLUMNS, MAX_TABLE_ROWS, Row, past_rows, table_rows
from grpo.trackers.wandb_tracker import WandbTracker, wandb_modes
from grpo.tracking import JsonlTracker, RolloutStore, read_metrics, rollout_file
from tests.fakes import make_group, make_task
from tests.wandb_stub import KEY, StubRun, WandbStub

RUN = "abcd1234"
Logged = Callable[..., list[str]]


def start(folder: Path, **changes: Any) -> WandbTracker:
    options = {"project": "p", "entity": None, "name": "n", "folder": folder, "config": {"seed": 0}, "run_id": RUN}
    return WandbTracker(**options | changes)


@pytest.fixture
def clean_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A client that has read nothing yet, and finds no key in the home folder."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.parametrize(
    ("mode", "key", "tried"),
    [
        (None, None, ("offline",)),
        (None, KEY, ("online", "offline")),
        ("offline", KEY, ("offline",)),
        ("online", None, ("offline",)),
        ("disabled", KEY, ("disabled",)),
    ],
)
def test_it_is_online_only_with_a_key_and_when_nobody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, clean_client: None, mode: str | None, key: str | None, tried: tuple[str, ...]
):
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert wandb_modes() == tried


# What is sent, with a client that is none


class Client:
    """A W&B run that keeps what it is given. `gate` is waited for with every call; `broken` calls raise, `refused` metrics too."""

    def __init__(self, *, starting_step: int = 0, broken: bool = False, refused: str = "") -> None:
        self.starting_step, self._broken, self._refused = starting_step, broken, refused
        self.summary: dict[str, float] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.calls = 0

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        self.calls += 1
        self.gate.wait()
        if self._broken or self._refused in metrics:
            raise ConnectionError("the service died")
        self.rows.append((step, metrics))

    def finish(self) -> None: ...


def begins(monkeypatch: pytest.MonkeyPatch, client: Client, *, failures: int = 0) -> list[str]:
    """The client begins after so many failures. Returns the modes that were tried."""
    tried: list[str] = []

    def begin(mode: str, options: dict[str, Any]) -> Client:
        tried.append(mode)
        if len(tried) <= failures:
            raise ConnectionError("no route to host")
        return client

    monkeypatch.setattr(wandb_tracker, "start_wandb", begin)
    monkeypatch.setattr(wandb_tracker, "wandb_modes", lambda: ("online", "offline"))
    monkeypatch.setattr(wandb_tracker, "RETRY_S", (0.01, 0.02))
    return tried


def test_a_step_is_sent_as_one_row_once_the_next_begins_or_a_checkpoint_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client = Client()
    begins(monkeypatch, client)
    tracker = start(tmp_path)
    tracker.log(1, {"reward/mean": 0.25})
    tracker.log(1, {"eval/sampled_accuracy": 0.5})
    tracker.log(2, {"reward/mean": 0.5})
    tracker.log(3, {"reward/mean": 0.75})
    tracker.close()
    assert client.rows == [(1, {"reward/mean": 0.25, "eval/sampled_accuracy": 0.5}), (2, {"reward/mean": 0.5})]


def test_no_call_waits_for_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A client that takes nothing: all is logged before it gets a second row."""
    client = Client()
    client.gate.clear()
    begins(monkeypatch, client)
    tracker = start(tmp_path)
    for step in range(1, 1001):
        tracker.log(step, {"reward/mean": 0.5})
        tracker.alert("slow", "a prompt")
    assert client.calls <= 1
    client.gate.set()
    tracker.close()
    assert [step for step, _ in client.rows] == list(range(1, 1000))


def test_a_server_that_comes_late_gets_all_and_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    client = Client()
    tried = begins(monkeypatch, client, failures=3)
    tracker = start(tmp_path)
    for step in range(5):
        tracker.log(step, {"a": 1.0})
    deadline = time.monotonic() + 10
    while len(client.rows) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    tracker.close()
    assert tried == ["online"] * 4
    assert [step for step, _ in client.rows] == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "W&B does not start (ConnectionError: no route to host); what there is to send waits"
    ]


def test_a_server_that_never_came_leaves_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client = Client()
    tried: list[str] = []

    def begin(mode: str, options: dict[str, Any]) -> Client:
        tried.append(mode)
        if mode == "online":
            raise ConnectionError("no route to host")
        return client

    begins(monkeypatch, client)
    monkeypatch.setattr(wandb_tracker, "start_wandb", begin)
    tracker = start(tmp_path)
    for step in range(5):
        tracker.log(step, {"a": 1.0})
    tracker.checkpoint_written(4, tmp_path, {})
    tracker.close()
    assert set(tried[:-1]) == {"online"}
    assert tried[-1] == "offline"
    assert [step for step, _ in client.rows] == [0, 1, 2, 3, 4]


def test_a_failing_client_is_reported_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    client = Client(broken=True)
    begins(monkeypatch, client)
    tracker = start(tmp_path)
    for step in range(4):
        tracker.log(step, {"a": 1.0})
    tracker.close()
    assert client.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "W&B failed (ConnectionError: the service died) and is left out from here on; metrics.jsonl has it all, and resuming the "
        "run sends it"
    ]


def test_a_resumed_run_sends_what_the_server_lacks_of_its_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed at step 7 with a checkpoint of step 5; the server had got as far as step 3."""
    client = Client(starting_step=4)
    begins(monkeypatch, client)
    tracker = start(tmp_path, history=[Row(step, {"a": step}) for step in range(6)])
    for step in (6, 7, 8):
        tracker.log(step, {"a": step})
    tracker.close()
    assert client.rows == [(step, {"a": step}) for step in (4, 5, 6, 7)]


def test_a_table_that_is_refused_takes_no_step_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    client = Client(refused="rollouts")
    begins(monkeypatch, client)
    tracker = start(tmp_path, table_every=2)
    train(tmp_path, tracker, range(1, 8), checkpoint_every=7)
    tracker.close()
    assert client.rows == [(step, {"reward/mean": step / 10}) for step in range(1, 8)]
    assert len([record for record in caplog.records if "does not take the table" in record.getMessage()]) == 1


def test_the_past_is_a_row_for_each_step(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", from_step=0)
    tracker.log(0, {"eval/greedy_accuracy": 0.5})
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 2.0})
    tracker.log(2, {"b": 3.0})
    assert past_rows(read_metrics(tmp_path / "metrics.jsonl"), tmp_path, table_every=2) == [
        Row(0, {"eval/greedy_accuracy": 0.5}),
        Row(1, {"a": 1.0}),
        Row(2, {"a": 2.0, "b": 3.0}, rollout_file(tmp_path, 2)),
    ]


def test_the_table_shows_what_a_person_reads_of_the_first_completions(tmp_path: Path):
    store = RolloutStore(tmp_path, every=1)
    path = store.write(3, [make_group([1, 0], task=make_task("t7")), make_group([None] * 80)])
    assert path is not None
    rows = table_rows(path)
    assert len(rows) == MAX_TABLE_ROWS
    assert dict(zip(COLUMNS, rows[1], strict=True)) == {
        "step": 3,
        "task": "t7",
        "prompt": "1+1=",
        "completion": "2",
        "reward": 0.0,
        "correct": False,
        "finish_reason": "stop",
        "policy_version": 0,
        "scores": " wrong 0: not as asked",
    }
    assert rows[2][-1] == " infra: the judge is down"


# The real client


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, clean_client: None) -> Iterator[WandbStub]:
    server = WandbStub()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.mode = "ok"
    server.close()


def wait_for_rows(folder: Path, count: int, *, timeout_s: float = 20) -> bytes:
    """What the client has written for `wandb sync`, once it is so many rows: a process of its own writes, every few seconds."""
    (written,) = folder.glob(f"wandb/*run-*-{RUN}/run-{RUN}.wandb")
    deadline = time.monotonic() + timeout_s
    while written.read_bytes().count(b"reward/mean") < count:
        assert time.monotonic() < deadline, written.read_bytes()
        time.sleep(0.05)
    return written.read_bytes()


@pytest.mark.slow
def test_an_offline_run_is_written_into_the_run_folder_without_a_word(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    clean_client: None,
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for end in (1, 2):  # resumed, it holds the whole run, and what the first start left is gone
        tracker = start(tmp_path, history=[Row(1, {"reward/mean": 0.25})] if end == 2 else [])
        tracker.log(end, {"reward/mean": 0.25})
        tracker.log(end + 1, {"reward/mean": math.nan})
        tracker.checkpoint_written(end + 1, tmp_path, {})
        tracker.close()
    assert b"0.25" in wait_for_rows(tmp_path, 3)
    assert [record for record in caplog.records if record.name.startswith("grpo")] == []
    assert "".join(capfd.readouterr()) == ""


def train(folder: Path, tracker: WandbTracker, steps: range, *, checkpoint_every: int = 2) -> None:
    """What a run tells a tracker."""
    store = RolloutStore(folder / "rollouts", every=1)
    for step in steps:
        tracker.log(step, {"reward/mean": step / 10})
        path = store.write(step, [make_group([1, 0], task=make_task(f"t{step}"))])
        assert path is not None
        tracker.rollouts_written(step, path)
        if step % checkpoint_every == 0:
            place = folder / f"step-{step:06d}"
            place.mkdir(exist_ok=True)
            tracker.checkpoint_written(step, place, {"config_hash": "c0"})


def past(folder: Path, last: int) -> list[Row]:
    return [Row(step, {"reward/mean": step / 10}, rollout_file(folder / "rollouts", step)) for step in range(1, last + 1)]


def shown(run: StubRun) -> list[int]:
    """What each row of the history that shows a part of the table ends with."""
    return [row["rollouts/last_step"] for row in run.history if "rollouts/last_step" in row]


@pytest.mark.slow
def test_of_a_run_of_very_short_steps_each_row_shows_its_own_rollouts(tmp_path: Path, stub: WandbStub):
    tracker = start(tmp_path, table_every=1)
    train(tmp_path, tracker, range(1, 13), checkpoint_every=12)
    tracker.close()
    (run,) = stub.runs.values()
    parts = [(row["_step"], row["reward/mean"], row["rollouts/last_step"], row["rollouts"]["increment_num"]) for row in run.history]
    assert parts == [(k, k / 10, k, k - 1) for k in range(1, 13)]


@pytest.mark.slow
def test_curves_tables_checkpoints_config_and_alerts_arrive_and_a_resumed_run_goes_on(tmp_path: Path, stub: WandbStub):
    tracker = start(tmp_path, table_every=2)
    train(tmp_path, tracker, range(1, 6))
    tracker.alert("sample took 90 s", "task t3 on worker-0")
    tracker.close()
    tracker = start(tmp_path, table_every=2, history=past(tmp_path, 4))
    train(tmp_path, tracker, range(5, 9))
    tracker.close()

    (run,) = stub.runs.values()
    assert (run.name, run.display_name, run.config, run.is_complete) == (RUN, "n", {"seed": 0}, True)
    assert [(row["_step"], row["reward/mean"]) for row in run.history if "reward/mean" in row] == [(k, k / 10) for k in range(1, 9)]
    assert [(table["data"][0][:2], len(table["data"])) for table in stub.tables()] == [([k, f"t{k}"], 2) for k in (2, 4, 6, 8)]
    assert shown(run) == [2, 4, 6, 8]
    checkpoints = [each["metadata"] for each in stub.artifacts if each["artifactTypeName"] == "checkpoint"]
    assert [(each["step"], each["config_hash"]) for each in checkpoints] == [(k, "c0") for k in (2, 4, 6, 8)]
    assert checkpoints[0]["folder"] == str(tmp_path / "step-000002")
    assert [(alert["title"], alert["text"]) for alert in stub.alerts] == [("sample took 90 s", "task t3 on worker-0")]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["error", "hang"])
def test_a_server_that_fails_in_the_middle_and_comes_back_gets_all(tmp_path: Path, stub: WandbStub, trouble: str):
    tracker = start(tmp_path, table_every=2)
    stub.wait_for(lambda stub: stub.runs)
    stub.mode = trouble
    train(tmp_path, tracker, range(1, 8), checkpoint_every=7)
    assert not stub.runs[RUN].steps  # and yet the run is at its end
    stub.mode = "ok"
    tracker.close()
    assert stub.runs[RUN].steps[-7:] == list(range(1, 8))
    assert [table["data"][0][0] for table in stub.tables()] == [2, 4, 6]
    assert shown(stub.runs[RUN]) == [2, 4, 6]


@pytest.mark.slow
def test_a_row_waits_for_its_part_of_the_table_but_not_for_ever(tmp_path: Path, stub: WandbStub, monkeypatch: pytest.MonkeyPatch):
    """The curve goes on without the table, which comes whole with a later row."""
    monkeypatch.setattr(wandb_tracker, "TABLE_S", 0.2)
    tracker = start(tmp_path, table_every=2)
    stub.wait_for(lambda stub: stub.runs)
    stub.mode = "hang"
    train(tmp_path, tracker, range(1, 8), checkpoint_every=7)
    wait_for_rows(tmp_path, 5)
    stub.mode = "ok"
    stub.wait_for(lambda stub: 5 in stub.runs[RUN].steps)
    tracker.log(8, {"reward/mean": 0.8})
    tracker.checkpoint_written(8, tmp_path, {})
    tracker.close()
    run = stub.runs[RUN]
    assert [(row["_step"], row["reward/mean"]) for row in run.history] == [(k, k / 10) for k in range(1, 9)]
    assert shown(run)[-1] == 6
    assert sorted(cells[0] for table in stub.tables() for cells in table["data"])[-6:] == [2, 2, 4, 4, 6, 6]


@pytest.mark.slow
def test_a_server_that_is_away_at_first_gets_all(tmp_path: Path, stub: WandbStub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wandb_tracker, "CONNECT_S", 2.0)
    monkeypatch.setattr(wandb_tracker, "RETRY_S", (0.1, 0.2))
    stub.mode = "error"
    tracker = start(tmp_path)
    train(tmp_path, tracker, range(1, 8), checkpoint_every=7)
    stub.wait_for(lambda stub: stub.num_refused >= 2)
    stub.mode = "ok"
    stub.wait_for(lambda stub: stub.runs)
    tracker.close()
    assert stub.runs[RUN].steps == list(range(1, 8))


@pytest.mark.slow
def test_a_server_that_stays_away_bounds_the_end_and_leaves_the_run_on_disk(
    tmp_path: Path, stub: WandbStub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wandb_tracker, "FINISH_S", 2.0)
    tracker = start(tmp_path)
    stub.wait_for(lambda stub: stub.runs)
    stub.mode = "error"
    train(tmp_path, tracker, range(1, 8), checkpoint_every=7)
    started = time.monotonic()
    tracker.close()
    assert time.monotonic() - started < 60
    assert not stub.runs[RUN].steps
    wait_for_rows(tmp_path, 7)


KILLED = """
import asyncio, os, signal, sys, time
from pathlib import Path
from grpo.config import TrackingConfig
from tests.fakes import FakeLearner
from tests.grpo.fake_runs import config, make_run, trained
class Deadly(FakeLearner):
    updates = 0
    async def update(self, examples):
        Deadly.updates += 1
        if Deadly.updates == int(sys.argv[2]):
            time.sleep(float(sys.argv[3]))  # some of the steps may have been sent by now
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().update(examples)
settings = config(steps=10, tracking=TrackingConfig(wandb_project="p", wandb_rollouts_every=2))
asyncio.run(trained(make_run(Path(sys.argv[1]), Deadly(), settings)))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_has_each_step_once_in_one_wandb_run(tmp_path: Path, stub: WandbStub):
    """The first life ends before a checkpoint, the second after some steps beyond one were sent; the last one ends well."""
    for updates, wait_s in ((2, 2.0), (4, 3.0), (99, 0.0)):
        life = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(updates), str(wait_s)]
        ended = subprocess.run(life, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
        assert ended.returncode == (0 if updates == 99 else -signal.SIGKILL), ended.stderr
    (run,) = stub.runs.values()
    assert run.steps == list(range(11))
    lines = {line["step"]: line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward/mean" in line}
    rewards = {row["_step"]: row["reward/mean"] for row in run.history if "reward/mean" in row}
    assert rewards == {step: line["reward/mean"] for step, line in lines.items()}
    assert sorted(row["_step"] for row in run.history if "eval/greedy_accuracy" in row) == [0, 3, 6, 9, 10]
    assert shown(run) == [2, 4, 6, 8, 10]
    # A file that arrived, but not the row that shows it, is sent again.
    assert sorted({table["data"][0][0] for table in stub.tables()}) == [2, 4, 6, 8, 10]
