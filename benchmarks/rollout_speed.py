"""Rollout through Ray, fleet and collector, beside the same vLLM engine driven by a bare loop.

    python benchmarks/rollout_speed.py                  128 sequences of a random model of 3M parameters, on a CPU
    python benchmarks/rollout_speed.py --json FILE      the same figures for a program

Both engines are processes of one Ray cluster, with the same arguments, weights, prompts and seeds, and one thread each; they take
turns, and each stands idle while the other works. The bare loop adds the requests as token ids and steps until all are finished,
nothing else; the rollout tokenizes, samples through an actor, decodes, and hands out groups. No verifier judges. Before anything is
timed the two are held to the same tokens. Figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own

from rich.console import Console
from rich.table import Table

from grpo.cluster import Cluster
from grpo.tiny_model import make_tiny_model
from rollout.collector import Collector
from rollout.engine import EngineConfig
from rollout.errors import WorkerLost
from rollout.fleet import Fleet
from rollout.prompting import load_tokenizer, make_prompting, stop_token_ids
from rollout.sampling import Sampling, group_seed
from rollout.snapshot import discard, snapshot_folder, write_snapshot
from rollout.tasks import TaskStream
from rollout.types import Group, Snapshot
from rollout.vllm_engine import engine_environment
from rollout.worker import RolloutWorker, WorkerSpec
from verifiers.types import Task, Verdict

NUM_GROUPS, GROUP_SIZE = 8, 16
ENGINE = EngineConfig(max_model_len=512)
WANTED = 0.95


class Work(NamedTuple):
    """One prompt with the seed of its first completion."""

    prompt_ids: tuple[int, ...]
    seed: int


class BareLoop:
    """vLLM's LLMEngine with the arguments that a worker gives it, and a loop around its step."""

    def __init__(self, model_path: str, max_tokens: int, stop_ids: Sequence[int]) -> None:
        from vllm import EngineArgs, SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        from rollout.vllm_start import engine_arguments

        arguments = engine_arguments(model_path, ENGINE, "cpu", in_process=True)
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._params = SamplingParams(
            n=GROUP_SIZE,
            temperature=1.0,
            max_tokens=max_tokens,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def sample(self, works: Sequence[Work]) -> tuple[float, list[list[tuple[int, ...]]]]:
        """Seconds, and the token ids of every prompt's completions."""
        from vllm import TokensPrompt

        self._engine.reset_prefix_cache()  # as a sync does
        started = time.perf_counter()
        for i, work in enumerate(works):
            params = self._params.clone()
            params.seed = work.seed
            self._engine.add_request(str(i), TokensPrompt(prompt_token_ids=list(work.prompt_ids)), params)
        finished = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    finished[int(output.request_id)] = output
        seconds = time.perf_counter() - started
        outputs = [sorted(finished[i].outputs, key=lambda one: one.index) for i in range(len(works))]
        return seconds, [[tuple(one.token_ids) for one in some] for some in outputs]

    async def close(self) -> None:
        self._engine.engine_core.shutdown()


class Rollout:
    """The fleet and the collector of a run, with an actor for a worker."""

    def __init__(self, cluster: Cluster, model_path: str, tasks: Sequence[Task], sampling: Sampling) -> None:
        async def start_worker(index: int) -> Any:
            spec = WorkerSpec(model_path, ENGINE, "cpu")
            environment = engine_environment("vllm", "cpu")
            return await cluster.start(RolloutWorker, spec, name=f"worker-{index}", env=environment, lost=WorkerLost)

        self.fleet = Fleet(start_worker, num_workers=1, sampling=sampling, run_seed=0, discard=discard)
        self._collector = Collector(self._group, TaskStream(tasks, seed=0))

    async def _group(self, task: Task) -> Group:
        completions = await self.fleet.sample(task, n=GROUP_SIZE)
        return Group(task, completions, (Verdict(1.0, True, ()),) * GROUP_SIZE)

    async def sample(self, version: int) -> tuple[float, list[Group]]:
        """Seconds, and the groups of one step."""
        started = time.perf_counter()
        groups = await self._collector.take(NUM_GROUPS, keep=lambda group: True, version=version)
        return time.perf_counter() - started, groups


def make_tasks() -> list[Task]:
    return [Task(f"task-{i}", f"{37 * i % 90 + 10} + {53 * i % 90 + 10} = ", None, "none") for i in range(NUM_GROUPS)]


def publish(model_path: str, version: int) -> Snapshot:
    from safetensors.torch import load_file

    return write_snapshot(load_file(Path(model_path) / "model.safetensors"), version=version, folder=snapshot_folder("benchmark"))


async def measure(max_tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of both, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        model_path = str(make_tiny_model(Path(folder) / "model", seed=0, hidden_size=256, num_layers=4))
        prompting = make_prompting(model_path, system=None, chat=None)
        stop_ids = stop_token_ids(model_path, load_tokenizer(model_path))
        cluster = Cluster("local", logs=Path(folder) / "logs")
        try:
            environment = engine_environment("vllm", "cpu")
            bare = await cluster.start(BareLoop, model_path, max_tokens, stop_ids, name="bare", env=environment, lost=WorkerLost)
            rollout = Rollout(cluster, model_path, make_tasks(), Sampling(max_tokens=max_tokens))
            await rollout.fleet.start()
            speeds: dict[str, list[float]] = {"bare": [], "rollout": []}
            for version in range(rounds + 1):
                await rollout.fleet.load(publish(model_path, version))
                seconds, groups = await rollout.sample(version)
                works = [
                    Work(prompting.prompt_ids(group.task), group_seed(0, version, group.task.id)) for group in groups
                ]  # in the order in which the fleet was asked
                bare_seconds, ids = await bare.sample(works)
                assert ids == [[one.token_ids for one in group.completions] for group in groups], "not the same sampling"
                num_tokens = sum(len(one) for some in ids for one in some)
                if version:  # the first round is for warming up
                    speeds["rollout"].append(num_tokens / seconds)
                    speeds["bare"].append(num_tokens / bare_seconds)
            await rollout.fleet.close()
            await bare.close()
        finally:
            cluster.shutdown()
            snapshot_folder("benchmark").rmdir()
    ratios = [ours / theirs for ours, theirs in zip(speeds["rollout"], speeds["bare"], strict=True)]
    return {"max_tokens": max_tokens, "tokens_per_s": speeds, "ratios": ratios, "ratio": statistics.median(ratios)}


def show(figures: Sequence[dict[str, Any]], console: Console) -> None:
    num_rounds = len(figures[0]["ratios"])
    table = Table(title=f"{NUM_GROUPS * GROUP_SIZE} sequences, a random model of 3M parameters, median of {num_rounds} rounds")
    for name in ("at most", "bare vLLM", "rollout", "ratio", "from", "to"):
        table.add_column(name, justify="right")
    for figure in figures:
        bare, rollout = (statistics.median(figure["tokens_per_s"][way]) for way in ("bare", "rollout"))
        table.add_row(
            f"{figure['max_tokens']} tokens",
            f"{bare:,.0f} tokens/s",
            f"{rollout:,.0f} tokens/s",
            f"{figure['ratio']:.2f}",
            f"{min(figure['ratios']):.2f}",
            f"{max(figure['ratios']):.2f}",
        )
    console.print(table)
    for figure in figures:
        console.print(
            f"rollout, {figure['max_tokens']} tokens: {figure['ratio']:.2f} of bare vLLM (wanted {WANTED})", highlight=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[128], help="the completions' budget; from 512 on they stream")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, each of both ways")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    args = parser.parse_args()
    figures = [asyncio.run(measure(max_tokens, args.rounds)) for max_tokens in args.max_tokens]
    show(figures, Console(width=120))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
