"""Peak memory of the learner's loss step at a large vocabulary, beside that of full logits and the model's own activations; and
the size of AdamW's moments in float32 and in 8 bits, where torchao is installed (on a CPU its step is slow: nothing is compiled).

    python benchmarks/learner_memory.py                 Qwen2.5-0.5B's layers, vocabulary 150,000, 2,048 tokens: minutes on a CPU
    python benchmarks/learner_memory.py --json FILE     the same figures for a program

Memory is the resident set of a process that does nothing else, one process per figure: what it grows by over the weights and the
gradients, which every way needs.
"""

from __future__ import annotations

import argparse
import importlib.util
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


WANTED = 1.3  # at most, of both in chunks to the activations

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


class Moments(NamedTuple):
    """What an optimizer keeps of the decoder's weights after a step."""

    optimizer: str
    megabytes: float
    bytes_each: float
    seconds: float


def measure_moments(name: str, num_layers: int) -> Moments:
    """In a process of its own: bytes of all that the optimizer holds after two steps over the decoder's weights."""
    torch.manual_seed(0)
    weights = list(decoder(num_layers).parameters())
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = new_optimizer(name, weights)
    optimizer.step()
    started = time.perf_counter()
    optimizer.step()
    seconds = time.perf_counter() - started
    size = sum(stored_bytes(value) for state in optimizer.state.values() for value in state.values())
    return Moments(name, size / 2**20, size / sum(weight.numel() for weight in weights), seconds)


def new_optimizer(name: str, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(weights, lr=1e-6, fused=True)
    from grpo.adamw_8bit import BlockedAdamW

    return BlockedAdamW([{"params": weights}], in_float32=(), lr=1e-6, betas=(0.9, 0.999))


def stored_bytes(tensor: Tensor) -> int:
    """Of the tensors that it is made of, where it is not one itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


def moments(console: Console) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    names = ["adamw", "adamw_8bit"] if importlib.util.find_spec("torchao") is not None else ["adamw"]
    found = []
    for name in names:
        with context.Pool(1) as pool:
            found.append(pool.apply(measure_moments, (name, 1)))
    table = Table(title=f"AdamW's moments: a layer of {WIDTH}")
    for column in ("", "MB", "bytes a weight", "s a step"):
        table.add_column(column, justify="left" if not column else "right")
    for each in found:
        table.add_row(each.optimizer, f"{each.megabytes:,.0f}", f"{each.bytes_each:.2f}", f"{each.seconds:.1f}")
    console.print(table)
    if len(found) == 1:
        console.print("[dim]adamw_8bit is not there: pip install 'grpo-reasoning\\[adamw-8bit]'[/dim]")
    return [each._asdict() for each in found]


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
    ratio = peaks[-1].megabytes / own
    line = f"learner, memory with the loss step: {ratio:.2f} x the model's own activations (wanted {WANTED})"
    console.print(line, highlight=False)
    return [peak._asdict() for peak in peaks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="decoder layers of the model whose activations are compared")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    console = Console(width=120)
    figures = memory(args.layers, console) + moments(console)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
