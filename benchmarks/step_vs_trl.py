"""A whole training step beside that of TRL's GRPOTrainer: sampling, rewards, update, and all that stands around them, on a CPU.

    python benchmarks/step_vs_trl.py MODEL              completions per second of both: the quickstart's step of 16 x 16 completions
    python benchmarks/step_vs_trl.py MODEL --learn      how soon either has a held-out accuracy of 0.8: minutes
    python benchmarks/step_vs_trl.py MODEL --json FILE  the same figures for a program

MODEL is what the quickstart starts from: `grpo train configs/quickstart_sft.toml` leaves it in runs/quickstart_sft/model. TRL is
the extra `bench`. Model, tasks, group size, rewards (the same verifiers, in TRL's process), loss (grpo, beta 0, one optimizer step
per batch), AdamW and gradient clipping are the same on both sides. The ways take turns, each in a process of its own; the first
step of a turn is not counted; figures are medians.

Work:
    equal     the quickstart's own sums, at the accuracy it starts from: 256 completions of 39 to 43 tokens
    spread    completions of 16 to 256 tokens, in every group, from a model made for it (see `make_spread_model`)
Hardly a group is flat in either, so both sides update with every completion.

TRL: at the settings that are best for it here, which `trl_way.py` lists; `--try-trl` shows what rows and threads make of it.
Ours: the committed quickstart, with vLLM and with the hf engine, in lock step as TRL is (with one rollout worker, and with one for
each of two cores), and sampling one update ahead. Each way holds 2 GB or more until the end: `--ours` names some of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
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
from trl_way import TrlSettings, follow_trl
from turns import Way, follow_run, median_fact, take_turns

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"
NEVER = ("evaluation.every=0", "checkpoints.every=1000000")
STILL = (
    "steps=1000000",
    "learner.learning_rate=1e-9",
    "learner.schedule=constant",
    "evaluation.every=0",
    "checkpoints.every=1000000",
)
BY_LENGTH = "rewards.sum={ length = { weight = 1.0, options = { max_tokens = 300, buffer_tokens = 300 } } }"
WORKS = {"equal": ("sampling.max_tokens=43",), "spread": (BY_LENGTH, "sampling.max_tokens=256", "engine.max_model_len=512")}
WANTED = {"equal": 1.5, "spread": 3.0}
OURS = {
    "ours, hf": ("engine.kind=hf",),
    "ours, vllm": (),
    "ours, hf, two workers": ("engine.kind=hf", "engine.num_workers=2"),
    "ours, vllm, two workers": ("engine.num_workers=2",),
    "ours, hf, one ahead": ("engine.kind=hf", "max_lag=1"),
    "ours, vllm, one ahead": ("max_lag=1",),
}
GOAL, LEARNING_STEPS, EVALUATE_EVERY = 0.8, 100, 10
LEARNING = (f"steps={LEARNING_STEPS + 1}", *NEVER)
SPREAD_STEPS = 120


def make_spread_model(model: Path, folder: Path) -> Path:
    """The model taught for a minute to write texts of 16 to 256 letters, all lengths alike, whatever it is asked.

    Every letter is one of two that stand for its sixteenth of the text, so that the model knows how far it is.
    """
    from grpo.batch import Example
    from grpo.learner import Learner, LearnerSpec
    from grpo.learner_config import LearnerConfig, ModelConfig
    from grpo.objectives.sft import Sft
    from rollout.prompting import make_prompting
    from verifiers.types import Task

    prompting, chance = make_prompting(str(model), system=None, chat=None), random.Random(0)
    spec = LearnerSpec(
        model_path=str(model),
        model=ModelConfig(path=str(model)),
        learner=LearnerConfig(learning_rate=2e-3, warmup_steps=10, schedule="linear", tokens_per_micro_batch=4_096),
        objective=Sft(),
        temperature=1.0,
        max_tokens=256,
        max_mismatch=None,
        total_steps=SPREAD_STEPS,
        seed=0,
        device="cpu",
        engine_dtype="float32",
        snapshot_folder="unused",
    )
    learner = Learner(spec)

    def example(group: int) -> Example:
        length = chance.randint(16, 255)
        text = "".join(chance.choice((chr(ord("a") + i // 16), chr(ord("A") + i // 16))) for i in range(length))
        task = Task("", f"{chance.randint(10, 99)} + {chance.randint(10, 99)} = ", None, "")
        completion = prompting.recorded(task, text)
        return Example(completion.prompt_ids, completion.token_ids, None, 1.0, group=group)

    for _ in range(SPREAD_STEPS):
        learner._update([example(group) for group in range(32)])
    folder.mkdir()
    learner._export(folder)
    return folder


def trl_way(model: Path, work: Sequence[str], folder: str, settings: TrlSettings, *, more: Sequence[str] = STILL) -> Way:
    options = ["model.start_from=", f"model.path={model.resolve()}", *work, *more]
    name = f"TRL, {settings.rows} rows, {settings.threads} threads{', bf16' if settings.bf16 else ''}"
    env = {"OMP_WAIT_POLICY": "PASSIVE"}
    return Way(name, follow_trl, str(CONFIG), options, folder, settings, env=env)


def our_way(name: str, model: Path, work: Sequence[str], folder: str, *, more: Sequence[str] = STILL) -> Way:
    options = ["model.start_from=", f"model.path={model.resolve()}", *work, *more, *OURS[name]]
    return Way(name, follow_run, str(CONFIG), options, folder)


def measure(ways: Sequence[Way], *, rounds: int, num_steps: int) -> dict[str, Any]:
    try:
        take_turns(ways, rounds=rounds, num_steps=num_steps)
    finally:
        for way in ways:
            way.close()
    names = ("time/rollout_s", "time/update_s", "time/load_s", "completion/length_mean", "group/flat_fraction")
    return {way.name: {"seconds": way.seconds} | {name: median_fact(way, name) for name in names} for way in ways}


def show(work: str, figures: dict[str, Any], console: Console) -> dict[str, float]:
    """The table; how many times as fast as TRL each way is."""
    table = Table(title=f"{work}: one step of 256 completions, medians over {len(next(iter(figures.values()))['seconds'])} steps")
    for name in ("", "s a step", "from", "to", "completions/s", "groups", "update", "load", "tokens", "flat", "over TRL"):
        table.add_column(name, justify="right" if name else "left")
    medians = {way: statistics.median(figure["seconds"]) for way, figure in figures.items()}
    trl = min(seconds for way, seconds in medians.items() if way.startswith("TRL"))
    for way, figure in figures.items():
        times = (medians[way], min(figure["seconds"]), max(figure["seconds"]))
        phases = [f"{figure[f'time/{name}_s']:.2f}" if figure[f"time/{name}_s"] else "" for name in ("rollout", "update", "load")]
        table.add_row(
            way,
            *(f"{each:.2f}" for each in times),
            f"{256 / medians[way]:.0f}",
            *phases,
            f"{figure['completion/length_mean']:.0f}",
            f"{figure['group/flat_fraction']:.2f}",
            f"{trl / medians[way]:.2f} x",
        )
    console.print(table)
    return {way: trl / seconds for way, seconds in medians.items()}


def learn(ways: Sequence[Way], console: Console) -> dict[str, Any]:
    """Seconds of steps, evaluations left out, until the held-out accuracy was first `GOAL`."""
    figures: dict[str, Any] = {way.name: {"curve": [], "seconds_to_goal": None} for way in ways}
    try:
        for way in ways:
            way.start()
        waiting = list(ways)
        for _ in range(0, LEARNING_STEPS, EVALUATE_EVERY):
            for way in list(waiting):
                way.turn(EVALUATE_EVERY, warm_up=0)
                accuracy, figure = way.evaluate(), figures[way.name]
                figure["curve"].append((way.total_s, accuracy))
                console.print(f"{way.name}: {accuracy:.2f} after {way.total_s:.0f} s", style="dim", highlight=False)
                if accuracy >= GOAL:
                    figure["seconds_to_goal"] = way.total_s
                    waiting.remove(way)
    finally:
        for way in ways:
            way.close()
    for name, figure in figures.items():
        steps, best = EVALUATE_EVERY * len(figure["curve"]), max(accuracy for _, accuracy in figure["curve"])
        taken = "not reached" if figure["seconds_to_goal"] is None else f"{figure['seconds_to_goal']:.0f} s"
        console.print(f"time to {GOAL} held-out accuracy: {name}: {taken}, {steps} steps, best {best:.2f}", highlight=False)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what the quickstart starts from")
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--ours", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--learn", action="store_true", help=f"train until the held-out accuracy is {GOAL}")
    parser.add_argument("--try-trl", action="store_true", help="only TRL, with several settings")
    parser.add_argument("--trl-rows", type=int, default=TrlSettings().rows, help="rows in one forward pass of TRL's")
    parser.add_argument("--spread-model", type=Path, help="made by an earlier run; without it one is made, and kept here if named")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each way")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        parser.error("trl is not installed: pip install 'trl>=1.16'")
    console, figures = Console(width=140), {}
    settings = TrlSettings(rows=args.trl_rows)
    with tempfile.TemporaryDirectory() as folder:
        if args.learn:
            ways = [our_way(name, args.model, (), f"{folder}/{i}", more=LEARNING) for i, name in enumerate(args.ours)]
            figures = learn([trl_way(args.model, (), f"{folder}/trl", settings, more=LEARNING), *ways], console)
        for work in () if args.learn else args.work:
            model = args.model
            if work == "spread":
                model = args.spread_model or Path(folder) / "spread-model"
                if not model.exists():
                    make_spread_model(args.model, model)
            if args.try_trl:
                tried = [TrlSettings(rows, threads) for rows in (32, 64, 128, 256) for threads in (2, 1)] + [TrlSettings(bf16=True)]
                ways = [trl_way(model, WORKS[work], f"{folder}/{work}-{i}", each) for i, each in enumerate(tried)]
            else:
                ways = [our_way(name, model, WORKS[work], f"{folder}/{work}-{i}") for i, name in enumerate(args.ours)]
                ways.insert(0, trl_way(model, WORKS[work], f"{folder}/{work}-trl", settings))
            figures[work] = measure(ways, rounds=args.rounds, num_steps=args.steps)
            for way, ratio in show(work, figures[work], console).items():
                if way in OURS:
                    line = f"step, {work}: {way}: {ratio:.2f} x TRL's completions per second (wanted {WANTED[work]})"
                    console.print(line, highlight=False)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
