"""The learner's training step on a CPU, beside a bare forward and backward pass of the same tokens and beside TRL's GRPO step.

    python benchmarks/learner_speed.py                  the embedded model and one of 30M; TRL beside it where it is installed
    python benchmarks/learner_speed.py --json FILE      the same figures for a program

All ways take turns in one process, on the same rows and the same number of threads; figures are medians. Before anything is timed,
TRL's gradient is compared with the learner's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from grpo.batch import Example
from grpo.learner import Learner, LearnerSpec
from grpo.learner_config import LearnerConfig, ModelConfig
from grpo.objectives import Grpo
from grpo.policy import load_model


class Size(NamedTuple):
    """A model, and how many groups of completions it learns from."""

    name: str
    num_groups: int
    vocabulary: int


SIZES = (Size("tiny", 4, 256), Size("30M", 1, 8_192))
GROUP_SIZE = 16
LEARNING_RATE = 1e-9  # the optimizer does all its work, and every round sees the same weights


def make_model(folder: Path, size: Size) -> str:
    """tiny: the embedded model, of half a million parameters; 30M: 9 layers of 512."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from grpo.tiny_model import make_tiny_model

    if size.name == "tiny":
        return str(make_tiny_model(folder, seed=0))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=512,
        intermediate_size=1_408,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make_rows(size: Size) -> list[Example]:
    """Groups of completions of 16 to 256 tokens to prompts of 10 to 200."""
    chance = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.randrange(4, size.vocabulary) for _ in range(chance.randint(low, high)))

    rows = []
    for group in range(size.num_groups):
        prompt = ids(10, 200)
        for i in range(GROUP_SIZE):
            completion = ids(16, 256)
            behavior = (-math.log(size.vocabulary),) * len(completion)
            rows.append(Example(prompt, completion, behavior, 1.0 - 2 * (i % 2), group=group))
    return rows


def make_learner(model_path: str) -> Learner:
    return Learner(
        LearnerSpec(
            model_path=model_path,
            model=ModelConfig(path=model_path, dtype="float32"),
            learner=LearnerConfig(learning_rate=LEARNING_RATE, tokens_per_micro_batch=4_096),
            objective=Grpo(sequence_bounds=(0.0, math.inf), max_ratio=math.inf),
            temperature=1.0,
            max_tokens=256,
            max_mismatch=None,
            total_steps=1_000,
            seed=0,
            device="cpu",
            engine_dtype="float32",
            snapshot_folder="unused",
        )
    )


def row_by_row(model: Any, rows: list[Example]) -> None:
    """Forward and backward pass of the same tokens, one row at a time; cross-entropy for a loss, and no optimizer."""
    model.zero_grad()
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.token_ids])
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, len(row.prompt_ids) - 1 : -1]
        cross_entropy(model.get_output_embeddings()(hidden), torch.tensor(row.token_ids)).backward()


def one_length(model: Any, rows: list[Example]) -> None:
    """The same for as many tokens in rows that all have the mean length, so that there is nothing to pad: 8 at a time."""
    model.zero_grad()
    length = round(statistics.mean(row.num_tokens for row in rows))
    num_scored = round(statistics.mean(len(row.token_ids) for row in rows))
    for _ in range(0, len(rows), 8):
        ids = torch.randint(model.config.vocab_size, (8, length))
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, -num_scored - 1 : -1]
        cross_entropy(model.get_output_embeddings()(hidden).flatten(0, 1), ids[:, -num_scored:].flatten()).backward()


class Trl:
    """TRL's step: its padding, shuffling and splitting of what was sampled, its loss, and the optimizer's step as in this learner.

    Its recomputation of activations, on by default, is off.
    """

    def __init__(self, model: Any, rows_per_batch: int) -> None:
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.utils import add_fused_lm_head

        self.model, self._rows_per_batch = model.train(), rows_per_batch
        add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

        def same(x: Tensor, **_: Any) -> Tensor:
            return x

        self._trainer: Any = SimpleNamespace(
            model=model,
            accelerator=SimpleNamespace(
                gather=same, reduce=same, num_processes=1, device="cpu", autocast=contextlib.nullcontext, is_main_process=False
            ),
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False, report_to=[]),
            _metrics=defaultdict(lambda: defaultdict(list)),
            loss_type="grpo",
            importance_sampling_level="token",
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            beta=0.0,
            epsilon_low=0.2,
            epsilon_high=0.2,
            use_vllm=False,
            aux_loss_enabled=False,
            _entropy_bonus_enabled=False,
        )
        self._trainer._get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies.__get__(self._trainer)
        self._loss = GRPOTrainer._compute_loss.__get__(self._trainer)

    def __call__(self, rows: list[Example]) -> None:
        from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

        self._optimizer.zero_grad()
        batches = split_tensor_dict(shuffle_sequence_dict(self._inputs(rows)), len(rows) // self._rows_per_batch)
        self._trainer.current_gradient_accumulation_steps = len(batches)
        for batch in batches:
            self._loss(self.model, batch).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()

    def _inputs(self, rows: list[Example]) -> dict[str, Any]:
        from trl.trainer.utils import pad

        prompts, completions = [torch.tensor(row.prompt_ids) for row in rows], [torch.tensor(row.token_ids) for row in rows]
        return {
            "prompt_ids": pad(prompts, padding_side="left"),
            "prompt_mask": pad([torch.ones_like(each) for each in prompts], padding_side="left"),
            "completion_ids": pad(completions),
            "completion_mask": pad([torch.ones_like(each) for each in completions]),
            "old_per_token_logps": pad([torch.tensor(row.behavior_logprobs) for row in rows]),
            "advantages": torch.tensor([row.advantage for row in rows]),
        }


def gradient(model: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def trl_steps(model_path: str, expected: Tensor, rows: list[Example]) -> dict[str, Callable[[], None]]:
    """By name; none where TRL is not installed. Each is held to the gradient that the learner has of the same rows."""
    if importlib.util.find_spec("trl") is None:
        return {}
    steps: dict[str, Callable[[], None]] = {}
    for size in (8, 16):
        trl = Trl(load_model(model_path), size)
        trl(rows)
        difference = (gradient(trl.model) - expected).norm() / expected.norm()
        assert difference < 1e-4, f"TRL's gradient differs by {difference:.2g}: these are not the same step"
        steps[f"TRL, {size} rows at a time"] = functools.partial(trl, rows)
    return steps


def measure_speed(size: Size, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    rows = make_rows(size)
    with tempfile.TemporaryDirectory() as folder:
        model_path = make_model(Path(folder), size)
        learner = make_learner(model_path)
        bare = load_model(model_path)
        learner._update(rows)
        ways: dict[str, Callable[[], Any]] = {
            "this learner, whole step": functools.partial(learner._update, rows),
            "forward and backward, row by row": functools.partial(row_by_row, bare, rows),
            "forward and backward, one length": functools.partial(one_length, bare, rows),
            **trl_steps(model_path, gradient(learner._policy.model), rows),
        }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds + 1):
        for way, step in ways.items():
            started = time.perf_counter()
            step()
            if i:  # the first round is for warming up
                seconds[way].append(time.perf_counter() - started)
    return seconds


WANTED, WANTED_OF_BARE = 1.5, 1.25  # at least of TRL's tokens per second; at most of a bare pass's seconds


def speed(sizes: Sequence[Size], rounds: int, console: Console) -> list[dict[str, Any]]:
    figures = []
    for size in sizes:
        taken = {way: statistics.median(seconds) for way, seconds in measure_speed(size, rounds).items()}
        rows = make_rows(size)
        num_tokens = sum(len(row.token_ids) for row in rows)
        own = taken["this learner, whole step"]
        table = Table(
            title=f"{size.name}: {len(rows)} rows, {num_tokens:,} completion tokens of {sum(row.num_tokens for row in rows):,}, "
            f"{torch.get_num_threads()} threads, median of {rounds} rounds"
        )
        for name in ("", "s", "trained tokens/s", "this learner is"):
            table.add_column(name, justify="left" if not name else "right")
        for way, median in taken.items():
            table.add_row(way, f"{median:.2f}", f"{num_tokens / median:,.0f}", f"{median / own:.2f} x as fast")
        console.print(table)
        trl = [median for way, median in taken.items() if way.startswith("TRL")]
        if trl:
            told = f"learner, {size.name}: {min(trl) / own:.2f} x TRL's trained tokens per second (wanted {WANTED})"
            console.print(told, highlight=False)
        bare = min(median for way, median in taken.items() if way.startswith("forward"))
        told = f"learner, {size.name}: {own / bare:.2f} x the seconds of a bare pass without padding (wanted {WANTED_OF_BARE})"
        console.print(told, highlight=False)
        figures.append({"size": size.name, "tokens": num_tokens, "seconds": taken})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=[size.name for size in SIZES], default=[size.name for size in SIZES])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each way")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    figures = speed([size for size in SIZES if size.name in args.sizes], args.rounds, Console(width=120))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
