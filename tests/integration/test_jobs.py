"""Jobs on a cluster of two nodes with a real job server, by the commands of docs/operating.md and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.exit_codes import ExitCode
from grpo.tracking import read_metrics
from tests.documents import section
from tests.integration.runs import GRPO, MARK, ROOT, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = """
steps = 100000
groups_per_step = 2
group_size = 4
[tasks]
source = "tasks.jsonl"
held_out = 8
rewards = "digits"
[sampling]
max_tokens = 8
[engine]
kind = "hf"
num_workers = 2
max_model_len = 64
[verifiers]
workers = 1
[evaluation]
every = 0
num_tasks = 2
[checkpoints]
every = 100000
[rewards.digits]
format = { options = { pattern = '[\\s\\S]*[0-4][\\s\\S]*' } }
"""

# configs/cluster/one_node.toml, on two nodes of two processors and without a model hub.
FOR_A_LAPTOP = (
    "--set steps=100000 --set groups_per_step=2 --set group_size=4 --set model.path= --set tasks.source=tasks.jsonl"
    " --set tasks.held_out_source= --set tasks.held_out=8 --set tasks.chat=false --set tasks.system= --set sampling.max_tokens=8"
    " --set engine.kind=hf --set engine.num_workers=1 --set engine.max_model_len=64 --set learner.mini_batches=1"
    " --set verifiers.workers=1 --set evaluation.every=0 --set evaluation.num_tasks=2 --set checkpoints.every=100000"
    " --set tracking.wandb_project= --set placement=auto"
)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]
    (tmp_path / "here").mkdir()
    (tmp_path / "here/tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "here/tiny.toml").write_text(CONFIG)
    yield tmp_path
    wait_until_gone(tmp_path)


@contextlib.contextmanager
def local_cluster(workplace: Path, **environment: str) -> Iterator[tuple[str, str]]:
    """The addresses of its job server and of the server for Ray's clients."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    holder = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("local_cluster.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(workplace / "cluster.log").open("w"),
        env=kept | {MARK: str(workplace)} | environment,
        text=True,
    )
    try:
        assert holder.stdout is not None
        line = next((line for line in holder.stdout if line.startswith("READY ")), "")
        assert line, (workplace / "cluster.log").read_text()
        _, jobs, clients = line.split()
        yield jobs, clients
    finally:
        holder.communicate(timeout=60)


@pytest.fixture
def cluster(workplace: Path) -> Iterator[tuple[str, str]]:
    with local_cluster(workplace, RAY_AUTH_MODE="disabled") as addresses:
        yield addresses


class Terminal:
    """A person who types what stands in the docs, in the folder of their configs."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self._folder = folder
        self.names = names
        self._environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}

    def start(self, line: str) -> subprocess.Popen[str]:
        for word, meant in self.names.items():
            line = line.replace(word, meant)
        _, *words = shlex.split(line)
        return subprocess.Popen(
            [*GRPO, *words], cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def types(self, line: str, *, exit_code: int = ExitCode.DONE, timeout_s: float = 240) -> str:
        process = self.start(line)
        output, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == exit_code, f"{line}\n{output}"
        return output

    def sets(self, line: str) -> None:
        name, value = line.removeprefix("export ").split("=", 1)
        self._environment[name] = self.names.get(value, value)

    def unsets(self, name: str) -> None:
        self._environment.pop(name, None)


def wait_for_step(run: Path, step: int, *, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl")):
        assert time.monotonic() < deadline, f"step {step} was not reached: {list(run.glob('**/*'))}"
        time.sleep(0.1)


def test_a_run_is_submitted_watched_stopped_and_resumed_by_the_commands_of_the_docs(
    workplace: Path, cluster: tuple[str, str]
) -> None:
    run = workplace / "shared/quickstart"
    terminal = Terminal(
        workplace / "here",
        {
            "http://HEAD:8265": cluster[0],
            "ray://HEAD:10001": cluster[1],
            "configs/quickstart.toml": "tiny.toml",
            "/shared/runs/quickstart": str(run),
        },
    )
    export, launch, jobs, status, logs, stop, resume = section("docs/operating.md", "On a cluster")
    terminal.sets(export)

    submitted = terminal.types(launch)
    job = re.search(r"submitted (\S+)", submitted)
    assert job is not None, submitted
    assert "2 answer" in submitted, "the pre-flight looked at both nodes"
    terminal.names["JOB"] = job.group(1)
    wait_for_step(run, 2)

    listed = terminal.types(jobs)
    assert job.group(1) in listed
    assert "running" in listed
    assert "running" in terminal.types(status)
    assert "is running in" in terminal.types(launch, exit_code=ExitCode.USER_ERROR), "one job at a time in a folder"

    following = terminal.start(logs)
    assert "stopped" in terminal.types(stop)
    log, _ = following.communicate(timeout=60)
    assert following.returncode == ExitCode.STOPPED, log
    assert "stopping after this step, with a checkpoint" in log
    assert (run / f"jobs/{job.group(1)}.log").read_text().strip() in log
    terminal.types(status, exit_code=ExitCode.STOPPED)
    (checkpoint,) = (run / "checkpoints").iterdir()
    reached = int(checkpoint.name.removeprefix("step-"))
    assert reached >= 2

    resumed = terminal.types(resume.replace("200", str(reached + 2)))
    again = re.search(r"submitted (\S+)", resumed)
    assert again is not None, resumed
    terminal.names["JOB"] = again.group(1)
    log = terminal.types(logs)  # to its end, and exits as the run did
    assert f"resuming from step {reached} of {reached + 2}" in log
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl") if "reward/mean" in line]
    assert steps == list(range(1, reached + 3)), "no step is lost or there twice"
    assert (run / "model/config.json").is_file()
    assert "done" in terminal.types(status)

    assert terminal.types("grpo jobs --address ray://HEAD:10001").endswith(terminal.types(jobs))  # Ray has a word before
    refused = terminal.types(f"{launch} --nodes 3 --set model.path=/nowhere", exit_code=ExitCode.USER_ERROR)
    assert "not submitted: nodes, model" in refused


def test_the_commands_of_the_readme_launch_and_resume_its_config_through_rays_client(
    workplace: Path, cluster: tuple[str, str]
) -> None:
    run = workplace / "shared/one_node"
    shutil.copytree(ROOT / "configs", workplace / "here/configs")
    names = {"http://HEAD:8265": cluster[0], "ray://HEAD:10001": cluster[1], "/shared/runs/one_node": str(run)}
    terminal = Terminal(workplace / "here", names)
    export, launch, jobs, logs, stop, resume = section("README.md", "On a cluster")
    terminal.sets(export)

    refused = terminal.types(launch, exit_code=ExitCode.USER_ERROR)
    assert "not submitted: model, tasks" in refused, refused
    submitted = terminal.types(f"{launch} {FOR_A_LAPTOP} --no-preflight --address ray://HEAD:10001")
    job = re.search(r"submitted (\S+)", submitted)
    assert job is not None, submitted
    terminal.names["JOB"] = job.group(1)
    wait_for_step(run, 1)
    assert re.search(rf"{job.group(1)} +running .*{run}", terminal.types(jobs))

    following = terminal.start(f"{logs} --address ray://HEAD:10001")
    assert "stopped" in terminal.types(stop)
    log, _ = following.communicate(timeout=60)
    assert following.returncode == ExitCode.STOPPED, log
    (checkpoint,) = (run / "checkpoints").iterdir()
    reached = int(checkpoint.name.removeprefix("step-"))

    again = re.search(r"submitted (\S+)", terminal.types(f"{resume} --set steps={reached + 1} --address ray://HEAD:10001"))
    assert again is not None
    terminal.names["JOB"] = again.group(1)
    assert f"resuming from step {reached} of {reached + 1}" in terminal.types(logs)


def test_a_cluster_that_wants_a_token_answers_those_who_have_it(workplace: Path) -> None:
    token, other = "a" * 64, "b" * 64
    with local_cluster(workplace, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as (jobs, _):
        terminal = Terminal(workplace / "here", {})
        terminal.sets("export RAY_AUTH_MODE=token")
        terminal.sets(f"export RAY_AUTH_TOKEN={token}")
        assert terminal.types(f"grpo jobs --address {jobs}").startswith("job ")
        terminal.unsets("RAY_AUTH_MODE")  # a token is enough
        assert terminal.types(f"grpo jobs --address {jobs}").startswith("job ")

        terminal.sets(f"export RAY_AUTH_TOKEN={other}")
        refused = terminal.types(f"grpo jobs --address {jobs}", exit_code=ExitCode.USER_ERROR)
        assert f"{jobs} wants a token, or another than the one sent" in refused
        terminal.unsets("RAY_AUTH_TOKEN")
        terminal.sets("export RAY_AUTH_MODE=disabled")
        assert "wants a token" in terminal.types(f"grpo jobs --address {jobs}", exit_code=ExitCode.USER_ERROR)
