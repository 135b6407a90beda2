"""A whole step that samples ahead (`max_lag = 1`), beside one in lock step (`max_lag = 0`): the quickstart on two cores.

    python benchmarks/lag_speed.py MODEL                seconds of a step: groups, update, sync, metrics, rollouts
    python benchmarks/lag_speed.py MODEL --learn        what either learns in the quickstart's 100 steps, over three seeds: minutes
    python benchmarks/lag_speed.py MODEL --json FILE    the same figures for a program

MODEL is what the quickstart starts from: `grpo train configs/quickstart_sft.toml` leaves it in runs/quickstart_sft/model. Each way
is a run of its own, with its Ray cluster, one vLLM worker of one thread, and its learner. With lag the learner has one thread; in
lock step it has both cores, which nobody else wants then (`--one-thread` shows it with one as well). The ways take turns, and the
first step of a turn is not counted. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own
sys.path.append(str(Path(__file__).resolve().parent))

from rich.console import Console
from rich.table import Table
from turns import EVALUATION_SEEDS, Way, follow_run, median_fact, take_turns

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"
WANTED, WANTED_ACCURACY = 1.2, 0.03
PHASES = ("rollout", "update", "load")
STEPS = 100


def overrides(model: Path, *, max_lag: int, more: Sequence[str] = ()) -> list[str]:
    return [
        "model.start_from=",
        f"model.path={model.resolve()}",
        f"max_lag={max_lag}",
        "evaluation.every=0",
        "checkpoints.every=1000000",
        *more,
    ]


def speed(model: Path, *, rounds: int, num_steps: int, one_thread: bool) -> dict[str, Any]:
    """Seconds of a step of each way. The learning rate is so small that all go on sampling what the model does at first."""
    still = ["steps=1000000", "learner.learning_rate=1e-9", "learner.schedule=constant"]
    with tempfile.TemporaryDirectory() as folder:
        places: list[tuple[str, int, int | None]] = [("max_lag = 1", 1, None), ("max_lag = 0", 0, None)]
        if one_thread:
            places.append(("max_lag = 0, learner of one thread", 0, 1))
        ways = [
            Way(name, follow_run, str(CONFIG), overrides(model, max_lag=max_lag, more=still), f"{folder}/{i}", threads)
            for i, (name, max_lag, threads) in enumerate(places)
        ]
        try:
            take_turns(ways, rounds=rounds, num_steps=num_steps)
        finally:
            for way in ways:
                way.close()
        return {way.name: {"seconds": way.seconds} | {name: median_fact(way, f"time/{name}_s") for name in PHASES} for way in ways}


def show_speed(figures: dict[str, Any], console: Console) -> float:
    """The table; how many times as fast the first way is as the second."""
    table = Table(title="one step of 256 completions, medians over the steps")
    for name in ("", "s a step", "from", "to", "waiting for groups", "update", "load", "max_lag = 1 is"):
        table.add_column(name, justify="right" if name else "left")
    medians = {way: statistics.median(figure["seconds"]) for way, figure in figures.items()}
    ahead = medians["max_lag = 1"]
    for way, figure in figures.items():
        seconds = (medians[way], min(figure["seconds"]), max(figure["seconds"]), *(figure[name] for name in PHASES))
        table.add_row(way, *(f"{each:.2f}" for each in seconds), f"{medians[way] / ahead:.2f} x as fast")
    console.print(table)
    return medians["max_lag = 0"] / ahead


def learn(model: Path, seed: int, max_lag: int) -> dict[str, float]:
    """The quickstart from one seed: its final accuracy, and the seconds of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        # One step more than is done: a run that has ended cannot be asked anything.
        options = overrides(model, max_lag=max_lag, more=[f"seed={seed}", f"steps={STEPS + 1}"])
        way = Way(f"max_lag = {max_lag}, seed {seed}", follow_run, str(CONFIG), options, f"{folder}/run")
        try:
            way.start()
            way.turn(STEPS, warm_up=0)
            return {"accuracy": way.evaluate(), "seconds": way.total_s, "lag": median_fact(way, "collector/lag_mean")}
        finally:
            way.close()


def show_learning(figures: dict[str, list[dict[str, float]]], console: Console) -> float:
    """The table; by how much the mean accuracies differ."""
    table = Table(title=f"held-out accuracy after {STEPS} steps, each task sampled {EVALUATION_SEEDS} times")
    for name in ("", "accuracies", "mean", "s of all steps"):
        table.add_column(name, justify="right" if name else "left")
    means = []
    for way, runs in figures.items():
        means.append(statistics.mean(run["accuracy"] for run in runs))
        accuracies = "  ".join(f"{run['accuracy']:.3f}" for run in runs)
        table.add_row(way, accuracies, f"{means[-1]:.3f}", "  ".join(f"{run['seconds']:.0f}" for run in runs))
    console.print(table)
    return means[0] - means[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what the quickstart starts from")
    parser.add_argument("--learn", action="store_true", help="train to the end instead of timing steps")
    parser.add_argument("--one-thread", action="store_true", help="also time lock step with a learner of one thread")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=4, help="turns of each way")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    console = Console(width=120)
    if args.learn:
        figures: dict[str, Any] = {"max_lag = 1": [], "max_lag = 0": []}
        for seed in args.seeds:
            for max_lag in (1, 0):
                figures[f"max_lag = {max_lag}"].append(run := learn(args.model, seed, max_lag))
                told = f"max_lag = {max_lag}, seed {seed}: accuracy {run['accuracy']:.3f}, {run['seconds']:.0f} s of steps"
                console.print(told, highlight=False)
        difference = show_learning(figures, console)
        line = f"lag: accuracy {difference:+.3f} to lock step (wanted within {WANTED_ACCURACY})"
    else:
        figures = speed(args.model, rounds=args.rounds, num_steps=args.steps, one_thread=args.one_thread)
        ratio = show_speed(figures, console)
        line = f"lag: a step at max_lag = 1 is {ratio:.2f} x as fast as at max_lag = 0 (wanted {WANTED})"
    console.print(line, highlight=False)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
