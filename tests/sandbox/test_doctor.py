"""The doctor says what a machine lacks and what to type, believes nothing but what it tried, and calls a broken level broken."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sandbox.config import Level, SandboxConfig
from sandbox.doctor import (
    LEVELS,
    Report,
    _cgroups,
    _gvisor,
    _security,
    _user_namespaces,
    conclusion,
    examine,
    levels_table,
    try_level,
    verdict,
)
from sandbox.pool import open_sandbox
from sandbox.proofs import Outcome, _outcome, proofs

HELD, BROKEN = Outcome("no network", True, ""), Outcome("no network", False, "exited ['TCP']")


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody-listens.sock")


def printed(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces="),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ("user/max_user_namespaces", "15000", ""),
        ("kernel/unknown", "0", ""),
    ],
)
def test_a_kernel_that_closes_user_namespaces_is_told_with_the_setting_that_opens_them(
    setting: str, value: str, advice: str, tmp_path: Path
):
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(value + "\n")
    found = _user_namespaces(tmp_path)
    assert advice in found.advice
    assert bool(found.advice) == bool(advice)


@pytest.mark.parametrize(
    ("fact", "says"),
    [
        (_cgroups({"CgroupVersion": "2", "MemoryLimit": True, "PidsLimit": False, "CpuCfsQuota": True}), "no limit on pids"),
        (_cgroups({"MemoryLimit": True, "PidsLimit": True, "CpuCfsQuota": True}), ""),
        (_security({"SecurityOptions": ["name=apparmor"]}), "cannot filter"),
        (_security({"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}), ""),
        (_gvisor({"Runtimes": {"runc": {}, "runsc": {}}}), ""),
    ],
)
def test_what_docker_lacks_is_told(fact: Any, says: str):
    assert says in fact.advice
    assert bool(fact.advice) == bool(says)


def test_gvisor_that_docker_does_not_know_comes_with_the_line_to_add(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert '{"runtimes": {"runsc": {"path": "/usr/bin/runsc"}}}' in _gvisor({"Runtimes": {"runc": {}}}).advice


@pytest.mark.parametrize("level", ["warm", "fresh", "gvisor"])
async def test_without_a_daemon_a_level_of_docker_has_an_obstacle_and_nobody_waits_for_it(level: Level, no_docker: None):
    report = await try_level(level, None)
    assert not report.works
    assert "bubblewrap" in report.obstacle
    assert report.seconds < 5  # a pool would try for a minute


def test_a_level_with_one_broken_claim_is_broken_and_the_claim_is_named():
    report = Report("warm", "", [HELD, BROKEN], 1.0)
    assert not report.works
    assert verdict(report) == "BROKEN, do not use it: 1 of 2 claims held"
    assert "broken: no network (exited ['TCP'])" in printed(levels_table([report]))


def test_one_reason_for_three_levels_is_told_once():
    reports = [Report(level, "Docker sleeps", [], 0.0) for level in ("warm", "fresh", "gvisor")]
    table = printed(levels_table(reports))
    assert table.count("Docker sleeps") == 1
    assert table.count("for the same reason as warm") == 2


@pytest.mark.parametrize(
    ("works", "says"),
    [
        ({"warm": True, "bubblewrap": True}, "warm works; so do bubblewrap."),
        ({"warm": True}, "warm works."),
        ({"warm": False, "bubblewrap": True}, 'warm does not work here. What does: sandbox.level = "bubblewrap".'),
        ({"warm": False, "bubblewrap": False}, "nothing else that was tried"),
    ],
)
def test_the_last_line_says_what_to_put_into_a_config(works: dict[Level, bool], says: str):
    reports = [Report(level, "", [HELD if fine else BROKEN], 1.0) for level, fine in works.items()]
    assert says in conclusion(reports)


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        ("a program runs", True),
        ("no file of the host", False),
        ("no other process, no other user", False),
    ],
)
async def test_a_place_without_walls_does_not_pass_for_a_sandbox(claim: str, holds: bool, tmp_path: Path):
    """What a proof sees when the wall it attacks is not there. Only proofs that harm nothing where nothing stops them."""
    canary = tmp_path / "canary"
    canary.write_text("read")
    (proof,) = (proof for proof in proofs(canary) if proof.claim == claim)
    sandbox = open_sandbox(SandboxConfig(level="none", trusted=True, slots=1))
    try:
        outcome = await _outcome(sandbox, proof)
    finally:
        await sandbox.close()
    assert outcome.held == holds, outcome


@pytest.mark.docker
@pytest.mark.parametrize("level", ["warm", "fresh"])
def test_the_doctor_proves_the_levels_of_docker(level: Level, image: str):
    console = Console(file=io.StringIO(), width=200)
    assert examine(console, [level])
    assert isinstance(console.file, io.StringIO)
    assert "works: 10 of 10 claims held" in console.file.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_doctor_proves_bubblewrap_and_says_that_docker_is_away(no_docker: None):
    console = Console(file=io.StringIO(), width=200)
    assert not examine(console, ["warm", "bubblewrap"])
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert 'warm does not work here. What does: sandbox.level = "bubblewrap".' in text
    assert "works: 10 of 10 claims held" in text


def test_every_level_that_a_config_may_name_is_examined_but_the_one_without_walls():
    assert {*LEVELS, "none"} == set(Level.__args__)
