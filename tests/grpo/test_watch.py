"""`grpo watch`: what a person sees of a run from another terminal, and when it ends."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest
from report_runs import METRICS, make_run
from rich.console import Console
from test_report import EVALUATED

from grpo.cli import main
from grpo.folder import RunFolder
from grpo.tracking import JsonlTracker
from grpo.watch import MetricsFollower, Watch, view, watch


def shown(run: Path, *, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view(Watch(run), width))
    return console.export_text()


def steps(found: tuple[list, bool]) -> list[int]:
    return [line["step"] for line in found[0]]


def test_lines_come_once_and_whole(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.look() == ([], False)  # it is not there yet
    path.write_text('{"step": 1}\n{"step"')
    assert steps(follower.look()) == [1]
    with path.open("a") as file:
        file.write(': 2}\nnot json\n[3]\n{"step": 4}\n')
    assert steps(follower.look()) == [2, 4]
    assert follower.look() == ([], False)


def test_a_resumed_run_is_read_anew(tmp_path: Path):
    run = make_run(tmp_path / "run", metrics=dict.fromkeys(range(1, 6), METRICS))
    watched = Watch(run)
    assert watched.run.last_step == 5
    resumed = JsonlTracker(run / "metrics.jsonl", from_step=3)
    resumed.log(4, METRICS | {"reward/mean": 0.75})
    watched.look()
    assert list(watched.run.steps) == [1, 2, 3, 4]
    assert watched.run.steps[4]["reward/mean"] == 0.75


def test_everything_is_seen_at_a_glance(tmp_path: Path):
    metrics = {0: EVALUATED} | {step: METRICS | {"reward/mean": step / 4} for step in (1, 2, 3)}
    run = make_run(tmp_path / "run", metrics=metrics)
    (run / "logs").mkdir()
    (run / "logs" / "worker-0.log").write_text("2026-01-02 03:04:05,678 WARNING sandbox.pool: Docker is away\n")
    text = shown(run)
    for part in (
        "run  done, step 3 of 3",
        "mean reward, higher is better",
        "0.75 0.25 to 0.75",
        "95 %: 0.16 to 0.37",  # Wilson: 16 of 64
        "a step, 1.75 s",
        "waiting for groups 1.00 s, update 0.50 s",
        "the rest 0.25 s",
        "correct 50%, wrong 50%",
        "! worker-0: Docker is away",
    ):
        assert part in text, f"{part!r} is not in\n{text}"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int):
    run = make_run(tmp_path / "run", metrics=dict.fromkeys(range(1, 300), METRICS))
    assert max(len(line) for line in shown(run, width=width).splitlines()) <= width


@pytest.mark.parametrize("metrics", [{}, {1: {"loss/value": 0.0}}, {0: EVALUATED}, {1: {"mine/own": 1.0}}])
def test_a_run_that_has_little_to_show_is_shown(tmp_path: Path, metrics: dict):
    assert "run  stopped at step" in shown(make_run(tmp_path / "run", metrics=metrics))


def test_a_run_that_is_over_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run")
    assert main(["watch", str(run)]) == 0
    assert capsys.readouterr().out.count("mean reward") == 1


def test_new_steps_are_told_until_nobody_trains_any_more(tmp_path: Path):
    run = make_run(tmp_path / "run", metrics={1: METRICS})
    folder = RunFolder(run)
    folder.acquire()

    def train() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            for step in (2, 3):
                file.write(json.dumps({"step": step} | METRICS) + "\n")
            file.write(json.dumps({"step": 3, "eval/length_mean": 5.0} | EVALUATED) + "\n")
        time.sleep(0.2)
        folder.release()

    threading.Timer(0.1, train).start()
    with (tmp_path / "out.txt").open("w+") as file:
        watch(run, Console(file=file, width=200), every_s=0.05, once=False)
        file.seek(0)
        text = file.read()
    assert "step 2  reward 0.50 (math 0.50)" in text
    assert "step 3  held-out accuracy 0.25  greedy 0.50" in text
    assert text.count("mean reward") == 1
    assert text.index("step 3") < text.index("mean reward")


def test_looking_keeps_nobody_from_training(tmp_path: Path):
    run = make_run(tmp_path / "run")
    folder = RunFolder(run)
    looking = threading.Event()

    def look() -> None:
        while not looking.is_set():
            assert RunFolder(run).is_in_use in (True, False)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(5):
            folder.acquire()
            folder.release()
    finally:
        looking.set()
        looker.join()


def test_whether_a_run_is_in_use(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_in_use
    folder.acquire()
    assert RunFolder(tmp_path / "run").is_in_use
    folder.release()
    assert not RunFolder(tmp_path / "run").is_in_use
