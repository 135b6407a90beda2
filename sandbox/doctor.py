"""`grpo sandbox doctor`: what this machine has, which levels that makes possible, and a proof of each by real attacks."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from sandbox.config import Level, SandboxConfig
from sandbox.docker import GVISOR_RUNTIME, connect
from sandbox.errors import SandboxLost, SandboxUnavailable
from sandbox.image import find_image
from sandbox.pool import open_sandbox
from sandbox.progress import Stages
from sandbox.proofs import Outcome, prove

LEVELS: dict[Level, str] = {
    "warm": "a container per slot, namespaces and a system call filter per program",
    "fresh": "a container per program",
    "gvisor": "a container per program, on a kernel of its own (runsc)",
    "bubblewrap": "no Docker: a jail per slot, then as warm; one layer less",
}


class Fact(NamedTuple):
    """Something about this machine. `advice` is empty where nothing needs doing."""

    name: str
    found: str
    advice: str = ""


class Report(NamedTuple):
    """One level: why it cannot be had here, or what its proofs gave."""

    level: Level
    obstacle: str
    outcomes: Sequence[Outcome]
    seconds: float

    @property
    def works(self) -> bool:
        return not self.obstacle and all(outcome.held for outcome in self.outcomes)


def examine(console: Console, levels: Sequence[Level], *, image: str | None = None) -> bool:
    """Print the facts and try the levels. True when the first of them works."""
    console.print(facts_table(facts(image)))
    stages = Stages(console)
    reports = []
    for level in levels:
        with stages.stage(f"attacking {level}") as stage:
            report = asyncio.run(try_level(level, image))
            stage.result = verdict(report)
        reports.append(report)
    console.print(levels_table(reports))
    console.print(conclusion(reports), highlight=False, soft_wrap=True)
    return reports[0].works


async def try_level(level: Level, image: str | None) -> Report:
    """Whether a level works here, by one slot of it and the proofs."""
    began = time.monotonic()
    sandbox = open_sandbox(SandboxConfig(level=level, slots=1, image=image), patience_s=0.0)
    obstacle, outcomes = "", []
    try:
        outcomes = await prove(sandbox)
    except (SandboxUnavailable, SandboxLost) as error:
        obstacle = str(error)
    finally:
        await sandbox.close()
    return Report(level, obstacle, outcomes, time.monotonic() - began)


def facts(image: str | None) -> list[Fact]:
    """What decides which levels there can be. Asks, changes nothing."""
    return [_processor(), _cores(), *_docker(image), _user_namespaces(), _bubblewrap()]


def _processor() -> Fact:
    machine = platform.machine()
    advice = "" if machine == "x86_64" else "programs are only run on x86_64: the filter knows its system calls"
    return Fact("processor", machine, advice)


def _cores() -> Fact:
    return Fact("cores", f"{len(os.sched_getaffinity(0))}, so that many slots unless sandbox.slots says otherwise")


def _docker(image: str | None) -> list[Fact]:
    try:
        client = connect(timeout_s=10)
    except SandboxUnavailable as error:
        return [Fact("Docker", "not to be had", str(error))]
    try:
        info = client.info()
        return [
            Fact("Docker", f"{info['ServerVersion']}, {info['OperatingSystem']}, kernel {info['KernelVersion']}"),
            _cgroups(info),
            _security(info),
            _gvisor(info),
            _image(client, image),
        ]
    except SandboxUnavailable as error:
        return [Fact("Docker", "answered, then failed", str(error))]
    finally:
        client.close()


def _cgroups(info: dict[str, Any]) -> Fact:
    limits = {"memory": "MemoryLimit", "pids": "PidsLimit", "cpu": "CpuCfsQuota"}
    missing = ", ".join(limit for limit, key in limits.items() if not info.get(key))
    found = f"version {info.get('CgroupVersion', '1')}, by {info.get('CgroupDriver', 'unknown')}"
    return Fact("cgroups", found, f"no limit on {missing}: one program can starve the machine" if missing else "")


def _security(info: dict[str, Any]) -> Fact:
    options = [option.partition(",")[0].removeprefix("name=") for option in info.get("SecurityOptions") or ()]
    advice = "" if "seccomp" in options else "this Docker cannot filter a container's system calls; programs are still filtered"
    return Fact("security", ", ".join(options) or "none", advice)


def _gvisor(info: dict[str, Any]) -> Fact:
    if GVISOR_RUNTIME in (info.get("Runtimes") or {}):
        return Fact("gVisor", f"runtime {GVISOR_RUNTIME} is registered")
    if path := shutil.which(GVISOR_RUNTIME):
        known = json.dumps({"runtimes": {GVISOR_RUNTIME: {"path": path}}})
        return Fact("gVisor", "not known to Docker", f"put {known} into /etc/docker/daemon.json and restart dockerd")
    return Fact("gVisor", "none", "only for level gvisor: apt-get install runsc, then register it with Docker")


def _image(client: Any, name: str | None) -> Fact:
    try:
        found = find_image(client, name)
    except SandboxUnavailable as error:
        return Fact("image", "none that will do", str(error))
    more = f" and {', '.join(found.packages)}" if found.packages else ""
    return Fact("image", f"{found.name}: Python {found.python}{more}, {found.size_bytes / 1e6:.0f} MB, {found.id[7:19]}")


def _user_namespaces(settings_root: Path = Path("/proc/sys")) -> Fact:
    """Of the kernel that we run on, which is also that of a local Docker."""
    settings: dict[str, tuple[Callable[[int], bool], str]] = {
        "user/max_user_namespaces": (lambda value: value > 0, "sysctl user.max_user_namespaces=15000"),
        "kernel/unprivileged_userns_clone": (lambda value: value == 1, "sysctl kernel.unprivileged_userns_clone=1"),
        "kernel/apparmor_restrict_unprivileged_userns": (
            lambda value: value == 0,
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    }
    for name, (is_open, command) in settings.items():
        path = settings_root / name
        if path.exists() and not is_open(int(path.read_text())):
            closed = f"closed by {name.replace('/', '.')}"
            return Fact("user namespaces", closed, f"warm, fresh and bubblewrap need them: {command}")
    return Fact("user namespaces", "open")


def _bubblewrap() -> Fact:
    path = shutil.which("bwrap")
    if path is None:
        return Fact("bubblewrap", "not installed", "only for level bubblewrap: apt-get install bubblewrap")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    return Fact("bubblewrap", version.strip().rpartition(" ")[2] or path)


def facts_table(found: Sequence[Fact]) -> Table:
    table = Table("this machine", "found", "what to do")
    for fact in found:
        table.add_row(fact.name, fact.found, fact.advice or "-")
    return table


def levels_table(reports: Sequence[Report]) -> Table:
    table = Table("level", "what it is", "verdict")
    told: dict[str, Level] = {}
    for report in reports:
        details = _details(report)
        if report.obstacle and told.setdefault(report.obstacle, report.level) != report.level:
            details = [f"for the same reason as {told[report.obstacle]}"]
        table.add_row(report.level, LEVELS[report.level], "\n".join([verdict(report), *details]))
    return table


def conclusion(reports: Sequence[Report]) -> str:
    """What to put into a config on this machine."""
    wanted, others = reports[0].level, [report.level for report in reports[1:] if report.works]
    if reports[0].works:
        return f"{wanted} works" + (f"; so do {', '.join(others)}." if others else ".")
    if others:
        return f'{wanted} does not work here. What does: sandbox.level = "{others[0]}".'
    return f"{wanted} does not work here, and nothing else that was tried does."


def verdict(report: Report) -> str:
    if report.obstacle:
        return "not possible here"
    held = sum(outcome.held for outcome in report.outcomes)
    return f"{'works' if report.works else 'BROKEN, do not use it'}: {held} of {len(report.outcomes)} claims held"


def _details(report: Report) -> list[str]:
    if report.obstacle:
        return [report.obstacle]
    return [f"broken: {outcome.claim} ({outcome.seen})" for outcome in report.outcomes if not outcome.held]
