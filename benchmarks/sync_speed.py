"""What it takes to bring new weights from the learner into vLLM on a CPU, beside the least that it could take.

    python benchmarks/sync_speed.py                  3M parameters in float32 and 0.5G in bfloat16; about 8 GB of memory
    python benchmarks/sync_speed.py --size 3M        one of them
    python benchmarks/sync_speed.py --updates 2000   how much memory so many updates of the first size leave behind, instead of 200
    python benchmarks/sync_speed.py --json FILE      the same figures for a program

Ours is `publish` to loaded, with everything that a run does: the cast from the learner's float32, names, layout, fingerprints, the
pause of the engine. The floor is one copy of the same bytes, cast already, into a new file in shared memory, and vLLM's own reload
of that file. All ways take turns in one process; figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own

from rollout.vllm_engine import VllmEngine, engine_environment

os.environ.update(engine_environment("vllm", "cpu") | {"HF_HUB_OFFLINE": "1"})

import psutil
import torch
from rich.console import Console
from rich.table import Table

from grpo.learner_config import LoraConfig
from grpo.policy import Policy
from grpo.publish import Publisher
from rollout.delivery import BroadcastDelivery, Delivery, LoanDelivery
from rollout.engine import EngineConfig
from rollout.snapshot import SHARED_MEMORY, discard, snapshot_folder
from rollout.types import BroadcastSeat, Loan, Snapshot


class Size(NamedTuple):
    """A model of random weights, and how often each way has its turn."""

    name: str
    dtype: str
    rounds: int
    shape: dict[str, int]


TRANSPORTS, FLOOR = ("shm", "gloo", "ipc"), "floor"
WANTED = 1.5
SIZES = (
    Size("3M", "float32", 20, {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}),
    Size("0.5G", "bfloat16", 5, {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 30}),
)


class Bench:
    """One model in a learner's policy and in an engine, and the ways from one to the other."""

    def __init__(self, model_path: str, size: Size) -> None:
        self._dtype = getattr(torch, size.dtype)
        self.policy = Policy(model_path, lora=LoraConfig(), compute_dtype=torch.float32, device="cpu")
        self.folder = snapshot_folder("sync-speed")
        config = EngineConfig(dtype=size.dtype, max_num_seqs=8, kv_cache_mb=16)  # type: ignore[arg-type]
        self.engine = VllmEngine(model_path, config, stop_token_ids=[3], device="cpu")
        self._file = Publisher(self.policy, transport="shm", dtype=self._dtype, folder=self.folder)
        self._sent = Publisher(self.policy, transport="gloo", dtype=self._dtype, folder=self.folder)
        self._lent = Publisher(self.policy, transport="ipc", dtype=self._dtype, folder=self.folder)
        self._deliveries: dict[str, Delivery] = {
            "gloo": BroadcastDelivery(_InProcess(self._sent)),
            "ipc": LoanDelivery(_InProcess(self._lent)),
        }
        self.version = 0
        self._bytes: bytes | None = None

    async def shm(self) -> None:
        snapshot = await asyncio.to_thread(self._file.publish, self._next())
        await self.engine.load(snapshot)
        self._read_once(snapshot)
        discard(snapshot)

    async def gloo(self) -> None:
        snapshot = await asyncio.to_thread(self._sent.publish, self._next())
        assert not await self._deliveries["gloo"].deliver(snapshot, {0: self.engine})

    async def ipc(self) -> None:
        snapshot = await asyncio.to_thread(self._lent.publish, self._next())
        assert not await self._deliveries["ipc"].deliver(snapshot, {0: self.engine})

    async def floor(self) -> None:
        """One copy through shared memory, and vLLM's own load."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        assert self._bytes is not None
        path, llm = self.folder / "floor", self.engine._llm
        with path.open("wb", buffering=0) as file:
            file.write(self._bytes)
        update = dataclasses.asdict(Snapshot(self._next(), str(path)))
        await llm.start_weight_update()
        await llm.update_weights(WeightTransferUpdateRequest(update_info=update))
        await llm.finish_weight_update(weight_version=str(self.version))
        path.unlink()

    def _read_once(self, snapshot: Snapshot) -> None:
        if self._bytes is None:
            self._bytes = Path(snapshot.path).read_bytes()

    def _next(self) -> int:
        self.version += 1
        return self.version

    @property
    def megabytes(self) -> float:
        return len(self._bytes or b"") / 2**20

    async def close(self) -> None:
        await self.engine.close()
        self._sent.close()
        self._lent.close()
        self.folder.rmdir()


class _InProcess:
    """The learner's side of a delivery, as the learner offers it."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def open_group(self, world_size: int) -> BroadcastSeat:
        return self._publisher.open_group(world_size)

    async def send(self, snapshot: Snapshot, seat: BroadcastSeat) -> None:
        await asyncio.to_thread(self._publisher.send, snapshot, seat)

    async def close_group(self) -> None:
        self._publisher.close_group()

    async def lend(self, snapshot: Snapshot, count: int) -> tuple[Loan, ...]:
        return await asyncio.to_thread(self._publisher.lend, snapshot, count)

    async def take_back(self) -> None:
        self._publisher.take_back()


async def take_turns(ways: dict[str, Callable[[], Awaitable[None]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for i in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            await way()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def shared_bytes() -> int:
    return sum(file.stat().st_size for file in SHARED_MEMORY.glob("grpo-snapshots-sync*/*") if file.is_file())


async def measure_growth(bench: Bench, updates: int) -> dict[str, Any]:
    """What so many updates leave behind, for each transport."""
    growth: dict[str, Any] = {}
    for name in TRANSPORTS:
        way = getattr(bench, name)
        for _ in range(30):
            await way()
        gc.collect()
        process = psutil.Process()
        before = process.memory_info().rss, shared_bytes(), process.num_fds()
        for _ in range(updates):
            await way()
        gc.collect()
        after = process.memory_info().rss, shared_bytes(), process.num_fds()
        memory, shared, files = (now - then for now, then in zip(after, before, strict=True))
        growth[name] = {"updates": updates, "memory_mib": memory / 2**20, "shared_bytes": shared, "open_files": files}
    return growth


def make_model(folder: str, size: Size) -> str:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    heads = size.shape["hidden_size"] // 64
    config: Any = Qwen2Config(
        **size.shape,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(getattr(torch, size.dtype)).save_pretrained(folder)
    return folder


async def run(size: Size, updates: int) -> dict[str, Any]:
    """Seconds of each way, and with `updates` what so many leave behind."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(make_model(folder, size), size)
        try:
            ways = {name: getattr(bench, name) for name in (*TRANSPORTS, FLOOR)}
            seconds = await take_turns(ways, size.rounds)
            growth = await measure_growth(bench, updates) if updates else {}
            return {"seconds": seconds, "mib": bench.megabytes, "growth": growth}
        finally:
            await bench.close()


def show(figures: dict[str, Any], console: Console) -> None:
    table = Table("model", "MiB", "way", "median s", "spread", "of the floor")
    claims = []
    for model, measured in figures.items():
        floor = statistics.median(measured["seconds"][FLOOR])
        for name, each in measured["seconds"].items():
            ratio = statistics.median(each) / floor
            spread = f"{min(each):.3f} to {max(each):.3f}"
            table.add_row(model, f"{measured['mib']:.0f}", name, f"{statistics.median(each):.3f}", spread, f"{ratio:.2f}")
            if name != FLOOR:
                claims.append(f"sync, {model}, {name}: {ratio:.2f} x the floor (wanted at most {WANTED})")
        for name, left in measured["growth"].items():
            claims.append(
                f"sync, {model}, {name}, left by {left['updates']} updates: {left['memory_mib']:+.1f} MiB of memory, "
                f"{left['shared_bytes']:+d} bytes of shared memory, {left['open_files']:+d} open files (wanted none that grows)"
            )
    console.print(table)
    for claim in claims:
        console.print(claim, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[size.name for size in SIZES], help="only this one")
    parser.add_argument("--updates", type=int, default=200, help="updates of the first size whose traces are sought; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="threads of the learner's side")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = [size for size in SIZES if arguments.size in (None, size.name)]
    figures = {size.name: asyncio.run(run(size, arguments.updates if size is SIZES[0] else 0)) for size in chosen}
    show(figures, Console())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
