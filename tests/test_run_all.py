"""`make bench`: what it reads from benchmarks that end well, badly, or not at all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with the benchmarks of a folder of our own."""
    spec = importlib.util.spec_from_file_location("run_all", FOLDER / "run_all.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def outcome(run_all: ModuleType, tmp_path: Path, source: str, *, limit_s: float = 30) -> dict:
    (tmp_path / "mine.py").write_text(source)
    return run_all.run(run_all.Benchmark("mine"), model=None, folder=tmp_path, limit_s=limit_s)


GOOD = """
import pathlib, sys
print("a table")
print("rollout, 128 tokens: 0.97 of bare vLLM (wanted 0.95)")
print("lag: accuracy -0.010 to lock step (wanted within 0.03)")
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text('{"ratio": 0.97}')
"""


def test_what_was_measured_and_wanted_is_read_from_the_lines_that_say_so(run_all: ModuleType, tmp_path: Path) -> None:
    told = outcome(run_all, tmp_path, GOOD)
    assert told["claims"] == [
        {"what": "rollout, 128 tokens", "measured": "0.97 of bare vLLM", "wanted": "0.95"},
        {"what": "lag", "measured": "accuracy -0.010 to lock step", "wanted": "within 0.03"},
    ]
    assert (told["exit_code"], told["figures"]) == (0, {"ratio": 0.97})
    assert "a table" in (tmp_path / "mine.txt").read_text()
    page = run_all.page(run_all.machine(), {"mine": told})
    assert "| `mine` | rollout, 128 tokens | 0.97 of bare vLLM | 0.95 |" in page


def test_one_that_fails_is_named_with_its_last_line(run_all: ModuleType, tmp_path: Path) -> None:
    told = outcome(run_all, tmp_path, "import sys; sys.exit('TRL is not installed')")
    assert (told["exit_code"], told["last_line"], told["figures"]) == (1, "TRL is not installed", None)
    assert "| `mine` | failed with exit code 1 | TRL is not installed | |" in run_all.page(run_all.machine(), {"mine": told})


def test_one_that_does_not_end_is_stopped(run_all: ModuleType, tmp_path: Path) -> None:
    told = outcome(run_all, tmp_path, "import time; print('begun', flush=True); time.sleep(60)", limit_s=1)
    assert (told["exit_code"], told["last_line"]) == (124, "stopped after 1 s")


def test_figures_of_an_earlier_run_are_not_taken_for_its_own(run_all: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"ratio": 9}))
    assert outcome(run_all, tmp_path, "pass")["figures"] is None


def test_every_benchmark_it_names_is_there_and_takes_json(run_all: ModuleType) -> None:
    for benchmark in run_all.BENCHMARKS:
        assert '"--json"' in (FOLDER / f"{benchmark.script}.py").read_text()
