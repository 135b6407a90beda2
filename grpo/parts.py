"""The parts of a run, each from the config: which classes, on what device, as actors of which cluster."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.cluster import Cluster
from grpo.config import RunConfig
from grpo.learner import Learner, LearnerSpec
from grpo.learner_group import LearnerLost, start_group
from grpo.placement import Placement, Seat, placement_of
from grpo.probe import MAX_TASKS, ProbedFleet, SyncProbe
from rollout.delivery import BroadcastDelivery, Delivery, FileDelivery, LoanDelivery
from rollout.errors import WorkerLost
from rollout.snapshot import discard
from rollout.tasks import TaskSet
from rollout.transports import Transport, WeightPlacement, choose_transport
from rollout.vllm_engine import engine_environment
from rollout.worker import RolloutWorker, WorkerSpec
from verifiers.service import VerifierService
from verifiers.service_pool import ServiceLost, ServicePool

logger = logging.getLogger(__name__)


def make_placement(config: RunConfig, cluster: Cluster, device: str, *, learns: bool = True) -> Placement:
    """A seat for every actor of the run. Raises UserError when the cluster has too few GPUs."""
    gpus = cluster.num_gpus if device == "cuda" else None
    return placement_of(config, gpus=gpus, services=config.verifiers.num_services or cluster.num_nodes, learns=learns)


def make_verifiers(config: RunConfig, cluster: Cluster, *, seats: Sequence[Seat], env: dict[str, str]) -> ServicePool:
    """Verifier services that are actors of the cluster."""
    # Without the config, or anything of this file: a service's process then has no torch to import.
    make_service = functools.partial(
        VerifierService, config.rewards, plugins=config.plugins, workers=config.verifiers.workers, sandbox=config.sandbox
    )

    async def start_service(index: int) -> Any:
        return await cluster.start(make_service, name=f"verifiers-{index}", seat=seats[index], env=env, lost=ServiceLost)

    return ServicePool(start_service, num_services=len(seats))


def is_probed(config: RunConfig) -> bool:
    """Whether syncs are probed: not where every step compares engine and learner on its own groups, or learns from none sampled."""
    checks_itself = config.is_on_policy and config.group_source == "samples"
    return config.is_live and not checks_itself


def make_probe(config: RunConfig, task_set: TaskSet, learner: Any) -> SyncProbe | None:
    """None where there is none to make: see `is_probed`."""
    if not is_probed(config):
        return None
    return SyncProbe(
        task_set.held_out,
        learner,
        sampling=config.sampling,
        limit=config.learner.max_mismatch,
        run_seed=config.seed,
    )


def make_fleet(
    config: RunConfig,
    cluster: Cluster,
    model_path: str,
    *,
    device: str,
    seats: Sequence[Seat],
    learner: LearnerSpec | None = None,
) -> ProbedFleet:
    """A fleet whose workers are actors of the cluster. `learner` says how snapshots come, and whether the workers will sleep."""
    engine = config.engine
    if is_probed(config):  # the loop waits for the probe, which must not wait for a full batch
        engine = engine.model_copy(update={"max_num_seqs": engine.max_num_seqs + MAX_TASKS})
    spec = WorkerSpec(
        model_path,
        engine,
        device,
        system=config.tasks.system,
        chat=config.tasks.chat,
        adapter_rank=config.model.lora.rank if learner is not None and learner.transport == "adapter" else 0,
        can_sleep=learner is not None and learner.engines_sleep,
    )

    environment = engine_environment(config.engine.kind, device, num_threads=engine_threads(config))

    async def start_worker(index: int) -> Any:
        return await cluster.start(
            RolloutWorker,
            spec,
            name=f"worker-{index}",
            seat=seats[index],
            env=environment,
            lost=WorkerLost,
        )

    return ProbedFleet(
        start_worker,
        num_workers=config.engine.num_workers,
        sampling=config.sampling,
        run_seed=config.seed,
        discard=discard,
        publish=config.publish,
        heartbeat_s=config.engine.heartbeat_s,
        last_words=lambda index: cluster.last_words(f"worker-{index}"),
    )


def engines_sleep(config: RunConfig, device: str) -> bool:
    """Whether engines give their memory up while the learner updates: in lock step, where one place was asked for and they can."""
    is_asked = config.placement == "colocated" and config.max_lag == 0
    if is_asked and config.engine.kind == "vllm" and device == "cpu":
        logger.warning(
            'placement is "colocated", but vLLM has no sleep mode on a CPU: its engines keep their memory while the learner '
            'updates. Use engine.kind = "hf" if that is too little.'
        )
        return False
    return is_asked


def engine_threads(config: RunConfig) -> int:
    """Threads of one worker's engine on a CPU: its share of the cores, which nobody else wants in lock step; one beside a learner.

    More than one does not pay for vLLM at the sizes that fit a CPU.
    """
    if config.max_lag or config.engine.kind == "vllm":
        return 1
    return max(1, len(os.sched_getaffinity(0)) // config.engine.num_workers)


async def start_learner(spec: LearnerSpec, cluster: Cluster, *, seats: Sequence[Seat]) -> Any:
    """A learner that is an actor of the cluster, or one of several ranks of which each is."""
    # Threads that wait without spinning: on cores shared with the workers spinning makes a step ten times slower.
    env = {"OMP_WAIT_POLICY": "PASSIVE"}
    if len(seats) == 1:
        return await cluster.start(Learner, spec, name="learner", seat=seats[0], env=env, lost=LearnerLost)
    if cluster.host == "127.0.0.1":
        env["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's own name may lead nowhere

    async def start_rank(spec: LearnerSpec) -> Any:
        rank = spec.place.rank
        return await cluster.start(Learner, spec, name=f"learner-{rank}", seat=seats[rank], env=env, lost=LearnerLost)

    return await start_group(start_rank, spec, count=len(seats), host=cluster.host, share=cluster.share)


def make_delivery(config: RunConfig, transport: Transport, learner: Any) -> Delivery:
    if transport in ("shm", "adapter"):
        return FileDelivery()
    if transport == "ipc":
        return LoanDelivery(learner)
    return BroadcastDelivery(learner, ranks_per_worker=config.engine.tensor_parallel_size)


def learner_spec(
    config: RunConfig, model_path: str, placement: WeightPlacement, *, snapshots: Path, faults: Path | None = None
) -> LearnerSpec:
    """Raises UserError when weights cannot get to the engines as the config says."""
    device = placement.device
    # With lag the workers sample while the learner computes; on a CPU each then needs cores of its own.
    num_cpus = len(os.sched_getaffinity(0)) - (config.engine.num_workers if config.max_lag else 0)
    engine_dtype = config.engine.dtype
    if engine_dtype == "auto":
        engine_dtype = "bfloat16" if device == "cuda" else "float32"
    return LearnerSpec(
        model_path=model_path,
        model=config.model,
        learner=config.learner,
        objective=config.objective,
        # Recorded text was drawn from no temperature of ours: its likelihood is the plain one.
        temperature=config.sampling.temperature if config.is_live else 1.0,
        max_tokens=config.sampling.max_tokens,
        max_mismatch=config.learner.max_mismatch if config.is_on_policy else None,
        total_steps=config.steps * config.learner.mini_batches,
        seed=config.seed,
        device=device,
        engine_dtype=engine_dtype,
        snapshot_folder=str(snapshots),
        transport=choose_transport(config.engine.transport, placement),
        # On policy nobody samples while the weights change, so a worker that is replaced finds them as they were published.
        keep_sent=not config.is_on_policy,
        across_nodes=placement.num_nodes > 1,
        engines_sleep=engines_sleep(config, device),
        reference_every=config.publish_every if config.objective.reference_is_last_iterate else config.learner.reference_every,
        reference_device="cpu" if config.learner.reference_on_cpu else None,
        fault_folder=None if faults is None else str(faults),
        num_threads=max(1, num_cpus // config.learner.num_ranks) if device == "cpu" else None,
    )


def pick_device(name: str, *, cluster_gpus: float = 0.0) -> str:
    """auto: cuda when this machine, or the cluster, has a GPU; the driver of a job may well run where there is none."""
    if name != "auto":
        return name
    if cluster_gpus:
        return "cuda"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
