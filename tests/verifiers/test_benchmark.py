"""What the benchmark times is judged rightly."""

from __future__ import annotations

import importlib.util
import random
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "verifiers.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_verifiers", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["answers", "expressions"])
def test_every_generated_pair_gets_the_verdict_it_should(benchmark: ModuleType, kind: str):
    pairs = list(islice(getattr(benchmark, kind)(random.Random(7)), 60))
    assert 15 < sum(pair.is_right for pair in pairs) < 45
    timed = benchmark.time_ours(pairs)
    assert timed.num_agreed == len(timed.seconds) == len(pairs)
