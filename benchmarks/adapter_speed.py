"""LoRA adapters that vLLM applies beside the base weights, and the same adapters merged before: what each costs on a CPU.

    python benchmarks/adapter_speed.py               3M parameters in float32 and 0.5G in bfloat16; about 9 GB of memory
    python benchmarks/adapter_speed.py --size 3M     one of them
    python benchmarks/adapter_speed.py --json FILE   the same figures for a program

An update is from `publish` to loaded, as in sync_speed.py. Sampling is one group of 16 completions without stop tokens, with
one thread. Both ways have an engine of their own in one process, and take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sync_speed import SIZES, Size, make_model, take_turns

from grpo.learner_config import LoraConfig
from grpo.policy import Policy
from grpo.publish import Publisher
from rollout.engine import EngineConfig
from rollout.sampling import Sampling
from rollout.snapshot import discard, snapshot_folder
from rollout.vllm_engine import VllmEngine

RANK = 16
GROUP_SIZE, MAX_TOKENS = 16, {"3M": 128, "0.5G": 8}
PROMPT = tuple(range(4, 36))


class Way:
    """One transport, from a policy to an engine of its own."""

    def __init__(self, policy: Policy, model_path: str, size: Size, transport: Any) -> None:
        self._folder = snapshot_folder(f"adapter-speed-{transport}")
        self._publisher = Publisher(policy, transport=transport, dtype=getattr(torch, size.dtype), folder=self._folder)
        config = EngineConfig(dtype=size.dtype, max_num_seqs=GROUP_SIZE, kv_cache_mb=256)  # type: ignore[arg-type]
        rank = RANK if transport == "adapter" else 0
        self._engine = VllmEngine(model_path, config, stop_token_ids=[], device="cpu", adapter_rank=rank)
        self._sampling = Sampling(max_tokens=MAX_TOKENS[size.name])
        self._version = 0
        self.num_bytes = 0

    async def update(self) -> None:
        self._version += 1
        snapshot = await asyncio.to_thread(self._publisher.publish, self._version)
        assert snapshot is not None
        await self._engine.load(snapshot)
        self.num_bytes = Path(snapshot.path).stat().st_size
        discard(snapshot)

    async def sample(self) -> None:
        await self._engine.generate(PROMPT, self._sampling, n=GROUP_SIZE, seed=self._version)

    async def close(self) -> None:
        await self._engine.close()
        self._folder.rmdir()


async def run(size: Size) -> dict[str, Any]:
    """Seconds of updates and of groups, and the bytes of an update, of each way."""
    with tempfile.TemporaryDirectory() as folder:
        model_path = make_model(folder, size)
        policy = Policy(model_path, lora=LoraConfig(rank=RANK), compute_dtype=torch.float32, device="cpu")
        ways = {"merged": Way(policy, model_path, size, "shm"), "adapter": Way(policy, model_path, size, "adapter")}
        try:
            updates = await take_turns({name: way.update for name, way in ways.items()}, size.rounds)
            groups = await take_turns({name: way.sample for name, way in ways.items()}, 3)
            return {"update_s": updates, "group_s": groups, "bytes": {name: way.num_bytes for name, way in ways.items()}}
        finally:
            for way in ways.values():
                await way.close()


def show(figures: dict[str, Any], console: Console) -> None:
    table = Table("model", "way", "MiB", "update s", "tokens/s")
    claims = []
    for model, measured in figures.items():
        update, group = ({way: statistics.median(each) for way, each in measured[kind].items()} for kind in ("update_s", "group_s"))
        for way, seconds in update.items():
            speed = GROUP_SIZE * MAX_TOKENS[model] / group[way]
            table.add_row(model, way, f"{measured['bytes'][way] / 2**20:.1f}", f"{seconds:.3f}", f"{speed:.0f}")
        claims.append(
            f"adapters, {model}: an update in {update['adapter'] / update['merged']:.2f} and a group in "
            f"{group['adapter'] / group['merged']:.2f} of the time of merged ones (wanted less for the update)"
        )
    console.print(table)
    for claim in claims:
        console.print(claim, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[size.name for size in SIZES], help="only this one")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {size.name: asyncio.run(run(size)) for size in SIZES if arguments.size in (None, size.name)}
    show(figures, Console())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
