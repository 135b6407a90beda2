"""The tiny model learns, or nothing else matters: the quickstart as a newcomer types it, from nothing to its last line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAST_LINE = re.compile(
    r"held-out accuracy \(T=1\): (?P<before>\d\.\d\d) -> (?P<after>\d\.\d\d) \| "
    r"greedy (?P<greedy_before>\d\.\d\d) -> (?P<greedy_after>\d\.\d\d) \| (?P<seconds>\d+) s \| (?P<folder>\S+)"
)


def trained(line: str, folder: Path) -> re.Match[str]:
    """The last line of a run from nothing, typed in a folder of its own."""
    _, *words = line.replace("configs/", f"{ROOT}/configs/").split()
    finished = subprocess.run(
        [sys.executable, "-m", "grpo.cli", *words], cwd=folder, capture_output=True, text=True, timeout=1700, check=False
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    last = LAST_LINE.fullmatch(finished.stdout.splitlines()[-1])
    assert last is not None, finished.stdout[-500:]
    print(last.group())
    return last


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_code_quickstart_learns_from_programs_run_in_docker(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "grpo.cli", "sandbox", "build"], check=True, capture_output=True, timeout=300)
    last = trained("grpo train configs/quickstart_code.toml", tmp_path)
    assert float(last["after"]) - float(last["before"]) >= 0.25
    assert int(last["seconds"]) <= 600
    assert last["folder"] == "runs/quickstart_code"


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_learns(tmp_path: Path) -> None:
    last = trained("grpo train configs/quickstart.toml", tmp_path)
    for before, after in (("before", "after"), ("greedy_before", "greedy_after")):
        assert float(last[after]) >= 0.8
        assert float(last[after]) - float(last[before]) >= 0.25
    assert last["folder"] == "runs/quickstart"
