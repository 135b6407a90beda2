"""What `grpo doctor CONFIG` looks at: whether this machine has what that config asks for."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from grpo.checkpoint import checkpoints_per_weights
from grpo.config import RunConfig
from grpo.doctor.checks import Check, Finding
from grpo.doctor.machine import GIB, gpus
from grpo.doctor.network import model_hub, wandb
from grpo.learner_config import check_optimizer
from grpo.plan import Stage
from sandbox.errors import UserError

TINY_BYTES = 3 << 20


def config_checks(stages: Sequence[Stage]) -> dict[str, Check]:
    """All of them, by name, for the last stage; of those before it, what differs."""
    config = stages[-1].config
    return {
        "devices": lambda: devices(config),
        "policy": lambda: policy(stages),
        "optimizer": lambda: optimizer(config),
        "tasks": lambda: tasks(config),
        "verifiers": lambda: verifiers(config),
        "cluster": lambda: cluster(config),
        "tracking": lambda: tracking(config),
    }


def devices(config: RunConfig) -> Iterator[Finding]:
    engines, wide, ranks = config.engine.num_workers, config.engine.tensor_parallel_size, config.learner.num_ranks
    num_gpus = sum(found.found.count(" GiB free") for found in gpus())
    if config.device == "cuda" and not num_gpus:
        yield Finding(
            "devices", 'device is "cuda", and there is no GPU', "missing", "Type: --set device=cpu, or use a machine with one"
        )
    elif num_gpus and num_gpus < wide:
        advice = f"Type: --set engine.tensor_parallel_size={num_gpus}"
        yield Finding("devices", f"one engine wants {wide} GPUs of {num_gpus}", "missing", advice)
    elif num_gpus and ranks > 1 and num_gpus < ranks + engines * wide:
        found = f"{ranks} ranks of the learner and {_engines(engines)} want {ranks + engines * wide} GPUs, and {num_gpus} are here"
        yield Finding("devices", found, "missing", "Type: --set learner.num_ranks=1, or join a cluster")
    elif num_gpus:
        shared = f"; {engines + 1} parts share them" if num_gpus < engines * wide + 1 else ""
        yield Finding("devices", f"{num_gpus} GPUs for the learner and {_engines(engines)}{shared}")
    else:
        yield Finding("devices", f"the CPU, for the learner and {_engines(engines)}")


def _engines(count: int) -> str:
    return f"{count} engine" if count == 1 else f"{count} engines"


def policy(stages: Sequence[Stage]) -> Iterator[Finding]:
    """Where the policy's weights are, and whether disk and shared memory hold what a run makes of them."""
    stage = stages[-1]
    if len(stages) > 1:
        is_there = (stages[-2].folder.model / "config.json").is_file()
        told = f"{stages[-2].folder.model}, " + ("trained already" if is_there else f"which is trained first, by {stages[-2].path}")
        yield Finding("policy", told)
        weights = folder_bytes(stages[-2].folder.model) if is_there else TINY_BYTES
    else:
        path = stage.config.model.path
        weights = TINY_BYTES if path == "tiny" else folder_bytes(found) if (found := model_folder(path)) is not None else 0
        if path == "tiny":
            yield Finding("policy", "the embedded tiny model, made on the spot")
        elif weights:
            yield Finding("policy", f"{path}, {weights / GIB:.1f} GiB on this machine")
        elif os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") or path.startswith((".", "/")):
            advice = "give model.path a folder in Hugging Face form, or a name on the hub without HF_HUB_OFFLINE"
            yield Finding("policy", f"{path} is not on this machine", "missing", advice)
        else:
            hub = next(iter(model_hub()))
            told = f"{path} is not on this machine, and is fetched from the hub when the run starts"
            yield Finding("policy", told, "works" if hub.status == "works" else "missing", hub.advice)
    yield from room(stage.config, weights, place=stage.folder.path)


def room(config: RunConfig, weights: int, *, place: Path) -> Iterator[Finding]:
    """Disk for the checkpoints that are kept, shared memory for two snapshots; from the size of the model's files."""
    if not weights:
        return
    wanted = int((checkpoints_per_weights(config) + 2) * weights)
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    told = f"about {wanted / GIB:.1f} GiB of checkpoints, {free / GIB:.1f} GiB free at {existing}"
    advice = "lower checkpoints.keep, or put the run on another disk with --run-dir"
    yield Finding("checkpoints", told, "missing" if free < wanted else "works", advice if free < wanted else "")
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    if shared < 2 * weights:
        advice = f"in a container: --shm-size {2 * weights // GIB + 2}g"
        yield Finding("snapshots", f"2 x {weights / GIB:.1f} GiB of {shared / GIB:.1f} GiB shared memory", "missing", advice)


def model_folder(path: str) -> Path | None:
    """Where a model's files are on this machine: the folder itself, or where the hub's client keeps it."""
    if (Path(path) / "config.json").is_file():
        return Path(path)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    kept = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{path.replace('/', '--')}" / "snapshots"
    return next((folder for folder in sorted(kept.glob("*")) if (folder / "config.json").is_file()), None)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def optimizer(config: RunConfig) -> Iterator[Finding]:
    """Nothing where it is torch's own."""
    check_optimizer(config.learner)
    if config.learner.optimizer == "adamw_8bit":
        yield Finding("optimizer", "adamw_8bit, by torchao")


def tasks(config: RunConfig) -> Iterator[Finding]:
    """Whether the first row can be read. Only of sources on this machine: others are fetched when the run starts."""
    from rollout.rows import read_rows

    for source in filter(None, (config.tasks.source, config.tasks.held_out_source)):
        if source.startswith("hf:") and os.environ.get("HF_DATASETS_OFFLINE", "") in ("", "0"):
            yield Finding("tasks", f"{source}, from the hub or its cache when the run starts")
            continue
        row = next(iter(read_rows(source)), None)
        if row is None:
            raise UserError(f"{source} holds no row. Give a source with tasks.")
        yield Finding("tasks", f"{source}: its first row has the fields {', '.join(row.fields)}")


def verifiers(config: RunConfig) -> Iterator[Finding]:
    """Whether they can be made, and whether what they depend on answers: an empty program in the sandbox, a judge."""
    from grpo.engine_api import engine_judges
    from verifiers.service import VerifierService

    async def probe() -> None:
        service = VerifierService(config.rewards, plugins=config.plugins, workers=1, sandbox=config.sandbox)
        try:
            await service.probe_sandbox(config.tasks.rewards)
            if not engine_judges(config.rewards):
                await service.probe(config.tasks.rewards)
        finally:
            await service.close()

    asyncio.run(probe())
    yield Finding("verifiers", f"the mix {config.tasks.rewards} can judge: {', '.join(config.mixes[config.tasks.rewards])}")


def cluster(config: RunConfig) -> Iterator[Finding]:
    address = config.ray_address
    if address == "local":
        yield Finding("cluster", "Ray is started for the run, on this machine")
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if address == "auto" or parts.hostname is None:
        yield Finding(
            "cluster", f"ray_address is {address}: the cluster that this machine belongs to", "limited", "Type: ray status"
        )
        return
    port = parts.port or 10001
    try:
        socket.create_connection((parts.hostname, port), timeout=2).close()
    except OSError as error:
        advice = "start the cluster, or --set ray_address=local"
        yield Finding("cluster", f"{parts.hostname}:{port} is not reached ({error})", "missing", advice)
        return
    yield Finding("cluster", f"{parts.hostname}:{port} answers")


def tracking(config: RunConfig) -> Iterator[Finding]:
    project = config.tracking.wandb_project
    if project is None:
        yield Finding("tracking", "metrics.jsonl in the run's folder; no W&B")
        return
    for finding in wandb():
        yield finding._replace(name="tracking", found=f"W&B project {project}: {finding.found}")
