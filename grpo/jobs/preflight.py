"""Whether a cluster can run a config, before anything starts there: what is asked, what the nodes have, what to do about the rest.

The facts are gathered by survey.py, on the cluster; what they mean is decided here, by pure functions.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from typing import NamedTuple

from grpo.checkpoint import checkpoints_per_weights
from grpo.config import RunConfig
from grpo.jobs.node_facts import NodeFacts
from grpo.placement import placement_of

MIN_FREE_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class ClusterFacts:
    """What a cluster has: totals over its nodes, what other jobs leave free, and each node's own."""

    cpus: float
    gpus: float
    free_gpus: float
    nodes: tuple[NodeFacts, ...]
    tasks_problem: str = ""  # why the tasks cannot be read where the driver runs
    wandb_has_key: bool = False
    wandb_mode: str = ""  # as the job's environment names it
    lost_nodes: dict[str, str] = dataclasses.field(default_factory=dict)  # nodes that did not answer, and why

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClusterFacts:
        values = json.loads(text)
        values["nodes"] = tuple(NodeFacts(**node) for node in values["nodes"])
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a config asks of a cluster. `gpus` is None where it runs on CPUs; `packages` are name and version, "" for any."""

    gpus: float | None
    gpus_apart: int
    cpus: int
    num_nodes: int | None
    model: str
    checkpoints_per_weights: float  # bytes of the checkpoints that may exist at a time, for each byte of the model's files
    run_dir: str
    wandb_project: str | None
    python: str
    packages: dict[str, str]


class Verdict(NamedTuple):
    """One thing that was looked at. `advice` says what to do, and is empty where nothing needs doing."""

    name: str
    found: str
    advice: str = ""
    blocks: bool = True

    @property
    def is_failure(self) -> bool:
        return bool(self.advice) and self.blocks


def needs_of(config: RunConfig, *, run_dir: str, num_nodes: int | None, packages: dict[str, str], facts: ClusterFacts) -> Needs:
    """What this config asks for, on a cluster that has GPUs or has none. Raises UserError when it cannot be placed there at all."""
    on_gpus = config.device == "cuda" or (config.device == "auto" and facts.gpus > 0)
    services = config.verifiers.num_services or max(1, len(facts.nodes))
    placement = placement_of(config, gpus=facts.gpus if on_gpus else None, services=services)
    apart = config.learner.num_ranks + config.engine.num_workers * config.engine.tensor_parallel_size
    return Needs(
        gpus=placement.num_gpus if on_gpus else None,
        gpus_apart=apart if on_gpus else 0,
        cpus=len(placement.learner) + len(placement.workers) + services * config.verifiers.workers,
        num_nodes=num_nodes,
        model=config.model.path,
        checkpoints_per_weights=checkpoints_per_weights(config),
        run_dir=run_dir,
        wandb_project=config.tracking.wandb_project,
        python=platform.python_version(),
        packages=packages,
    )


def verdicts(needs: Needs, facts: ClusterFacts) -> list[Verdict]:
    """Every check, in the order a person would mend them."""
    return [
        _nodes(needs, facts),
        _software(needs, facts),
        _gpus(needs, facts),
        _cpus(needs, facts),
        _run_folder(needs, facts),
        _disk(needs, facts),
        _model(needs, facts),
        _tasks(facts),
        _verifiers(facts),
        _wandb(needs, facts),
    ]


def _nodes(needs: Needs, facts: ClusterFacts) -> Verdict:
    found = f"{len(facts.nodes)} answer: {', '.join(node.name for node in facts.nodes)}"
    if facts.lost_nodes:
        name, why = next(iter(facts.lost_nodes.items()))
        advice = f"{len(facts.lost_nodes)} did not answer; {name}: {why} Mend or remove it, then launch again."
        return Verdict("nodes", found, advice)
    if needs.num_nodes is not None and len(facts.nodes) < needs.num_nodes:
        missing = needs.num_nodes - len(facts.nodes)
        advice = f"--nodes asks for {needs.num_nodes}, so {missing} have not joined. Type `ray start --address=HEAD:6379` on them."
        return Verdict("nodes", found, advice)
    return Verdict("nodes", found)


def _software(needs: Needs, facts: ClusterFacts) -> Verdict:
    mend = "Install requirements/*.lock there, use an image that holds it, or add --install requirements/cuda.lock."
    pythons = {node.python for node in facts.nodes}
    found = f"python {', '.join(sorted(pythons))}"
    for node in facts.nodes:
        if node.python.split(".")[:2] != needs.python.split(".")[:2]:
            return Verdict("software", found, f"{node.name} has python {node.python}, here it is {needs.python}. {mend}")
        missing = [name for name in needs.packages if name not in node.packages]
        if missing:
            optional = [name for name in missing if not needs.packages[name]]
            how = (
                f"{', '.join(optional)} is in no lock: pip install it there, or add it to that of --install." if optional else mend
            )
            return Verdict("software", found, f"{node.name} lacks {', '.join(missing)}. {how}")
    differing = {
        f"{name} {node.packages[name]} on {node.name}, {version} in the lock"
        for node in facts.nodes
        for name, version in needs.packages.items()
        if version and node.packages[name].partition("+")[0] != version.partition("+")[0]
    }
    if differing:
        return Verdict("software", found, f"{'; '.join(sorted(differing))}. {mend}", blocks=False)
    return Verdict("software", f"{found}, {len(needs.packages)} packages as in the lock")


def _gpus(needs: Needs, facts: ClusterFacts) -> Verdict:
    found = f"{facts.gpus:g}, {facts.free_gpus:g} of them free"
    if needs.gpus is None:
        return Verdict("GPUs", f"{found}; none needed")
    if facts.free_gpus < needs.gpus:
        return Verdict(
            "GPUs", found, f"{needs.gpus:g} are needed and other jobs hold the rest: `grpo jobs`. Wait for one, or stop it."
        )
    if needs.gpus < needs.gpus_apart:
        advice = f"Learner and workers share {needs.gpus:g}; {needs.gpus_apart} would give each its own."
        return Verdict("GPUs", found, advice, blocks=False)
    return Verdict("GPUs", f"{found}; {needs.gpus:g} used")


def _cpus(needs: Needs, facts: ClusterFacts) -> Verdict:
    if facts.cpus < needs.cpus:
        advice = (
            f"{needs.cpus} processes will want one each (learner, engine.num_workers, verifiers.workers), so they take turns. "
            "Add nodes, or lower those."
        )
        return Verdict("CPUs", f"{facts.cpus:g}", advice, blocks=False)
    return Verdict("CPUs", f"{facts.cpus:g}, {needs.cpus} used")


def _run_folder(needs: Needs, facts: ClusterFacts) -> Verdict:
    for node in facts.nodes:
        if node.run_dir_problem:
            advice = (
                f"{node.name}: {node.run_dir_problem} Give a --run-dir that every node has: a shared file system, mounted at the "
                "same path on all of them."
            )
            return Verdict("run folder", needs.run_dir, advice)
    return Verdict("run folder", f"{needs.run_dir}, written and read back on every node")


def _disk(needs: Needs, facts: ClusterFacts) -> Verdict:
    sizes = [node.model_bytes for node in facts.nodes if node.model_bytes is not None]
    wanted = max(MIN_FREE_BYTES, int(max(sizes, default=0) * needs.checkpoints_per_weights))
    free = min((node.run_dir_free_bytes for node in facts.nodes), default=0)
    found = f"{_size(free)} free in the run folder, {_size(wanted)} wanted"
    if free < wanted:
        advice = "That is for all checkpoints at a time. Make room, lower checkpoints.keep, or use another --run-dir."
        return Verdict("disk", found, advice)
    for node in facts.nodes:
        if node.temp_free_bytes < MIN_FREE_BYTES:
            advice = f"{node.name} has {_size(node.temp_free_bytes)} left for temporary files. Make room there."
            return Verdict("disk", found, advice)
        if node.shm_free_bytes < 2 * (max(sizes) if sizes else 0):
            advice = (
                f"{node.name} has {_size(node.shm_free_bytes)} in /dev/shm, and weights pass through it. In Docker: --shm-size."
            )
            return Verdict("disk", found, advice)
    return Verdict("disk", found)


def _model(needs: Needs, facts: ClusterFacts) -> Verdict:
    for node in facts.nodes:
        if node.model_problem:
            advice = (
                f"{node.name}: {node.model_problem} Put the model where every node can read it and set model.path, or give the "
                "nodes the hub (HF_TOKEN for a gated one: --env HF_TOKEN)."
            )
            return Verdict("model", needs.model, advice)
    return Verdict("model", f"{needs.model}, readable on every node")


def _tasks(facts: ClusterFacts) -> Verdict:
    if facts.tasks_problem:
        advice = (
            f"{facts.tasks_problem} Data does not travel with a job: give tasks.source an absolute path that the nodes share "
            "(small files beside the config do travel)."
        )
        return Verdict("tasks", "cannot be read", advice)
    return Verdict("tasks", "read where the job runs")


def _verifiers(facts: ClusterFacts) -> Verdict:
    for node in facts.nodes:
        if node.verifier_problem:
            advice = f"{node.name}: {node.verifier_problem} Every node may have a verifier service: mend it there."
            return Verdict("verifiers", "not on every node", advice)
    return Verdict("verifiers", "and their sandbox, where they use one, work on every node")


def _wandb(needs: Needs, facts: ClusterFacts) -> Verdict:
    if needs.wandb_project is None:
        return Verdict("W&B", "not asked for")
    if facts.wandb_mode and facts.wandb_mode != "online":
        return Verdict("W&B", f"project {needs.wandb_project}, WANDB_MODE={facts.wandb_mode}")
    if not facts.wandb_has_key:
        advice = (
            "There is no key where the job runs, so curves would be recorded offline. Add --env WANDB_API_KEY to send yours along, "
            "type `wandb login` on the head node, or --env WANDB_MODE=offline if that is what you want."
        )
        return Verdict("W&B", f"project {needs.wandb_project}", advice)
    return Verdict("W&B", f"project {needs.wandb_project}, a key is there")


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
