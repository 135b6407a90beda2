"""A driver's name, the request that stops it and nobody else, and the log that it keeps."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from grpo.folder import RunFolder
from grpo.jobs.driver import JOB, kept_log, request_stop, takes_stop_request
from grpo.stages import Interrupted, stop_on_request
from sandbox.errors import UserError


def test_a_request_to_stop_is_heard_once_and_by_whom_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not takes_stop_request(tmp_path)
    request_stop(tmp_path, str(os.getpid()))
    assert takes_stop_request(tmp_path)
    assert not takes_stop_request(tmp_path), "once"

    monkeypatch.setenv(JOB, "job-2")
    request_stop(tmp_path, "job-1")  # it had ended before the request came
    assert not takes_stop_request(tmp_path)
    request_stop(tmp_path, "job-2")
    assert takes_stop_request(tmp_path)
    assert not takes_stop_request(tmp_path / "nowhere")


class RunUnderWay:
    stop_requested = False

    def request_stop(self) -> None:
        self.stop_requested = True


async def test_a_request_in_the_run_folder_lets_the_step_end_however_often_it_is_made(tmp_path: Path):
    with stop_on_request(RunFolder(tmp_path), Console(file=io.StringIO())) as stopper:
        stopper.run = run = RunUnderWay()  # type: ignore[assignment]
        for _ in range(2):
            request_stop(tmp_path, str(os.getpid()))
            while (tmp_path / "stop").exists():
                await asyncio.sleep(0.01)
        assert run.stop_requested


async def test_a_request_before_the_first_step_ends_the_run_at_once(tmp_path: Path):
    request_stop(tmp_path, str(os.getpid()))
    quiet = Console(file=io.StringIO())
    with pytest.raises(Interrupted, match="before the step was done"), stop_on_request(RunFolder(tmp_path), quiet):
        await asyncio.sleep(10)


def test_a_job_keeps_its_log_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv(JOB, "job-1")
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        with kept_log(tmp_path):
            print("step 1")
            print("a fault", file=sys.stderr)
            logging.getLogger("grpo").warning("beware")
    finally:
        logging.getLogger().removeHandler(handler)
    print("after it")
    assert (tmp_path / "jobs/job-1.log").read_text() == "step 1\na fault\nbeware\n"
    told = capsys.readouterr()
    assert told.out == "step 1\nafter it\n"
    assert told.err == "a fault\nbeware\n"


def test_without_a_job_no_log_is_kept(tmp_path: Path):
    with kept_log(tmp_path):
        print("step 1")
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_a_full_disk_ends_and_the_job_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv(JOB, "job-1")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/job-1.log").symlink_to("/dev/full")
    with kept_log(tmp_path):
        print("step 1")
        print("step 2")
    assert capsys.readouterr().out == "step 1\nthe job's log in the run folder ends here: No space left on device\nstep 2\n"


def test_starting_over_keeps_the_logs_of_jobs(tmp_path: Path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/job-1.log").touch()
    (tmp_path / "metrics.jsonl").touch()
    RunFolder(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]


def test_a_run_says_how_it_was_started_or_that_nobody_knows(tmp_path: Path):
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="not recorded how this run was started"):
        folder.command()
    folder.record_command(["train", "a.toml", "--set", "steps=3"])
    assert folder.command() == {"folder": str(Path.cwd()), "arguments": ["train", "a.toml", "--set", "steps=3"]}
