"""Verdicts from given facts, and the facts that one machine tells of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from grpo.config import RunConfig
from grpo.jobs.node_facts import NodeFacts, NodeQuestions, fresh_token, look_around, model_problem, shared_folder_problem
from grpo.jobs.preflight import ClusterFacts, Needs, needs_of, verdicts
from grpo.learner_config import LearnerConfig
from rollout.tasks import TasksConfig

GIB = 1 << 30
LOCK = {"torch": "2.13.0", "ray": "2.60.0"}


def node(name: str = "a", **changes: Any) -> NodeFacts:
    """A node that has everything."""
    values = {
        "name": name,
        "python": "3.11.9",
        "packages": LOCK,
        "run_dir_problem": "",
        "run_dir_free_bytes": 500 * GIB,
        "temp_free_bytes": 50 * GIB,
        "shm_free_bytes": 50 * GIB,
        "model_problem": "",
        "model_bytes": 3 * GIB,
        "verifier_problem": "",
    }
    return NodeFacts(**values | changes)


def cluster(*nodes: NodeFacts, **changes: Any) -> ClusterFacts:
    values = {"cpus": 64, "gpus": 8, "free_gpus": 8, "nodes": nodes or (node(),), "wandb_has_key": True}
    return ClusterFacts(**values | changes)


NEEDS = Needs(
    gpus=8,
    gpus_apart=8,
    cpus=10,
    num_nodes=None,
    model="/models/qwen",
    checkpoints_per_weights=24.0,
    run_dir="/shared/run",
    wandb_project=None,
    python="3.11.4",
    packages=LOCK,
)


def test_a_cluster_that_has_everything_passes():
    assert [verdict for verdict in verdicts(NEEDS, cluster(node("a"), node("b"))) if verdict.advice] == []


CASES = [
    # what is asked, what there is, the check that says so, what it says, whether it keeps the run from starting
    ({"num_nodes": 2}, cluster(), "nodes", "asks for 2, so 1 have not joined. Type `ray start", True),
    ({}, cluster(lost_nodes={"b": "no answer within 120 s."}), "nodes", "1 did not answer; b: no answer", True),
    ({}, cluster(node("b", python="3.12.1")), "software", "b has python 3.12.1, here it is 3.11.4", True),
    ({}, cluster(node("b", packages={"ray": "2.60.0"})), "software", "b lacks torch. Install requirements", True),
    ({}, cluster(node("b", packages=LOCK | {"torch": "2.9.1+cu130"})), "software", "torch 2.9.1+cu130 on b, 2.13.0", False),
    (
        {"packages": LOCK | {"torchao": ""}},
        cluster(node("b")),
        "software",
        "b lacks torchao. torchao is in no lock: pip install it",
        True,
    ),
    ({}, cluster(free_gpus=3), "GPUs", "8 are needed and other jobs hold the rest: `grpo jobs`", True),
    ({"gpus": 1, "gpus_apart": 2}, cluster(gpus=1, free_gpus=1), "GPUs", "share 1; 2 would give each its own", False),
    ({}, cluster(cpus=4), "CPUs", "10 processes will want one each", False),
    ({}, cluster(node(), node("b", run_dir_problem="/shared/run is not here.")), "run folder", "b: /shared/run is not here", True),
    # 24 x 3 GiB
    ({}, cluster(node(run_dir_free_bytes=71 * GIB)), "disk", "That is for all checkpoints at a time. Make room", True),
    ({}, cluster(node("b", temp_free_bytes=100 << 20)), "disk", "b has 0.1 GiB left for temporary files", True),
    ({}, cluster(node("b", shm_free_bytes=5 * GIB)), "disk", "b has 5.0 GiB in /dev/shm", True),
    ({}, cluster(node("b", model_problem="the folder /models/qwen is not here.")), "model", "b: the folder", True),
    ({}, cluster(tasks_problem="data/x.jsonl: cannot be read."), "tasks", "give tasks.source an absolute path", True),
    ({}, cluster(node("b", verifier_problem="Docker does not answer.")), "verifiers", "b: Docker does not answer", True),
    ({"wandb_project": "p"}, cluster(wandb_has_key=False), "W&B", "--env WANDB_API_KEY", True),
]


def test_whoever_names_a_mode_of_wandb_needs_no_key():
    needs, facts = dataclasses.replace(NEEDS, wandb_project="p"), cluster(wandb_has_key=False, wandb_mode="offline")
    (told,) = [verdict for verdict in verdicts(needs, facts) if verdict.name == "W&B"]
    assert (told.found, told.advice) == ("project p, WANDB_MODE=offline", "")


@pytest.mark.parametrize(
    ("asked", "facts", "name", "advice", "blocks"), CASES, ids=[f"{i} {case[2]}" for i, case in enumerate(CASES)]
)
def test_each_lack_is_told_with_what_to_do(asked: dict, facts: ClusterFacts, name: str, advice: str, blocks: bool):
    needs = dataclasses.replace(NEEDS, **asked)
    (lacking,) = [verdict for verdict in verdicts(needs, facts) if verdict.advice]
    assert lacking.name == name
    assert advice in lacking.advice
    assert lacking.is_failure == blocks


def test_a_package_that_no_lock_holds_may_have_any_version():
    needs = dataclasses.replace(NEEDS, packages=LOCK | {"torchao": ""})
    there = cluster(node(packages=LOCK | {"torchao": "0.18.1"}))
    assert not any(verdict.advice for verdict in verdicts(needs, there))


def test_exactly_enough_disk_is_enough():
    assert NEEDS.checkpoints_per_weights * 3 == 72
    facts = cluster(node(run_dir_free_bytes=72 * GIB))
    assert not any(verdict.advice for verdict in verdicts(NEEDS, facts))


def test_builds_for_other_processors_are_the_same_version():
    facts = cluster(node(packages=LOCK | {"torch": "2.13.0+cpu"}))
    assert not any(verdict.advice for verdict in verdicts(NEEDS, facts))


def test_a_cluster_without_gpus_is_asked_for_none_unless_the_config_wants_them():
    facts = cluster(gpus=0, free_gpus=0)
    config = RunConfig(tasks=TasksConfig(source="x.jsonl"))
    needs = needs_of(config, run_dir="/r", num_nodes=None, packages={}, facts=facts)
    assert needs.gpus is None
    assert needs.cpus == 1 + 1 + 2  # the learner, a worker, two verifier processes
    assert needs.checkpoints_per_weights == 4 * 6  # 2 that are kept, the best, one being written; 4 + 4 + 4 bytes for 2
    assert needs_of(config, run_dir="/r", num_nodes=None, packages={}, facts=cluster()).gpus == 2
    config = RunConfig(tasks=TasksConfig(source="x.jsonl"), learner=LearnerConfig(optimizer="adamw_8bit"))
    needs = needs_of(config, run_dir="/r", num_nodes=None, packages={}, facts=facts)
    assert needs.checkpoints_per_weights == pytest.approx(4 * 3.1)  # 4 bytes for 2 stored, and twice 1.06


def test_facts_travel_as_text():
    facts = cluster(node("a"), node("b", model_bytes=None), lost_nodes={"c": "gone"})
    assert ClusterFacts.from_json(facts.to_json()) == facts


def test_a_folder_that_is_not_shared_is_noticed(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with fresh_token(here) as token:
        assert shared_folder_problem(here, token) == ""
        assert "another folder than on the head node" in shared_folder_problem(there, token)
        assert "is not here" in shared_folder_problem(tmp_path / "nowhere", token)
        (there / token).write_text("something else")
        assert "something else here" in shared_folder_problem(there, token)
    assert list(here.iterdir()) == [], "nothing is left of the test"


def test_a_model_folder_must_be_there_and_hold_a_config(tmp_path: Path):
    assert model_problem("tiny") == ""
    assert "is not here" in model_problem(str(tmp_path / "nowhere"))
    assert "config.json cannot be read" in model_problem(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert model_problem(str(tmp_path)) == ""


def test_a_machine_tells_what_it_has(tmp_path: Path):
    config = RunConfig(tasks=TasksConfig(source="x.jsonl"), plugins=("no_such_plugin.py",))
    with fresh_token(tmp_path) as token:
        facts = look_around(NodeQuestions(str(tmp_path), token, ("torch", "no-such-package"), config.model_dump_json()))
    assert facts.packages.keys() == {"torch"}
    assert facts.run_dir_free_bytes > 0
    assert facts.shm_free_bytes > 0
    assert facts.run_dir_problem == ""
    assert "no_such_plugin.py" in facts.verifier_problem
