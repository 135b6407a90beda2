"""Peak memory of the learner's loss step at a large vocabulary, beside that of full logits and the model's own activations.

    python benchmarks/learner_memory.py                 Qwen2.5-0.5B's layers, vocabulary 150,000, 2,048 tokens: minutes on a CPU
    python benchmarks/learner_memory.py --json FILE     the same figures for a program

Memory is the resident set of a process that does nothing else, one process per figure: what it grows by over the weights and the
gradients, which every way needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from grpo.token_scores import token_scores

VOCABULARY, NUM_TOKENS = 150_000, 2_048
WIDTH, NUM_LAYERS = 896, 24  # Qwen2.5-0.5B


class Peak(NamedTuple):
    """What one way of computing the loss step took beside weights and gradients."""

    way: str
    megabytes: float
    seconds: float


def decoder(num_layers: int) -> Any:
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,  # the embedding is no part of what is compared
        hidden_size=WIDTH,
        intermediate_size=4_864,
        num_hidden_layers=num_layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=NUM_TOKENS,
        use_cache=False,
    )
    return Qwen2Model(config).eval()


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss step as one would write it: logits, log-probabilities, entropy."""
    logprobs = torch.nn.functional.linear(hidden, weight).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    assert entropy.shape == targets.shape
    return logprobs.gather(-1, targets[:, None])[:, 0]


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return token_scores(hidden, weight, None, targets, temperature=1.0).logprobs


HEADS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor] | None] = {
    "the model's own activations": None,
    "the loss step, full logits": full_logits,
    "the loss step, in chunks": chunked,
    "both, full logits": full_logits,
    "both, in chunks": chunked,
}


def resident_mb() -> float:
    """Of this process, at this moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure_peak(way: str, num_layers: int) -> Peak:
    """In a process of its own: the high-water mark over weights, gradients, and what a first small step leaves behind.

    Gradients are there already, as from an earlier micro-batch, so a gradient that is made before it is added counts.
    """
    torch.manual_seed(0)
    head = HEADS[way]
    has_model = not way.startswith("the loss step")
    model = decoder(num_layers) if has_model else None
    weight = (torch.randn(VOCABULARY, WIDTH) * 0.02).requires_grad_() if head is not None else None
    leaves = [*(model.parameters() if model is not None else ()), *([weight] if weight is not None else ())]
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)  # written, so that it is resident

    def step(count: int) -> None:
        hidden: Tensor = torch.randn(count, WIDTH, requires_grad=True)
        if model is not None:
            hidden = model(input_ids=torch.randint(64, (1, count))).last_hidden_state[0]
        if head is None or weight is None:
            hidden.square().mean().backward()
        else:
            head(hidden, weight, torch.randint(VOCABULARY, (count,))).mean().backward()

    step(8)
    before = resident_mb()
    started = time.perf_counter()
    step(NUM_TOKENS)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Peak(way, peak - before, seconds)


def memory(num_layers: int, console: Console) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    peaks = []
    for way in HEADS:
        with context.Pool(1) as pool:
            peaks.append(pool.apply(measure_peak, (way, num_layers)))
        console.print(f"[dim]{way}: {peaks[-1].megabytes:,.0f} MB[/dim]")
    own = peaks[0].megabytes
    table = Table(
        title=f"Peak memory beside weights and gradients: {num_layers} layers of {WIDTH}, V = {VOCABULARY:,}, T = {NUM_TOKENS:,}"
    )
    for name in ("", "MB", "x own activations", "s"):
        table.add_column(name, justify="left" if not name else "right")
    for peak in peaks:
        table.add_row(peak.way, f"{peak.megabytes:,.0f}", f"{peak.megabytes / own:.2f}", f"{peak.seconds:.1f}")
    console.print(table)
    return [peak._asdict() for peak in peaks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="decoder layers of the model whose activations are compared")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    figures = memory(args.layers, Console(width=120))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
