"""Weights reach the workers of a whole run in every way that a CPU has, and the run is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.snapshot import SHARED_MEMORY
from tests.integration.runs import cluster_of, curve, run, workplace_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

workplace = workplace_of(
    {"steps": 4, "tasks.held_out": 4, "engine.kind": "vllm", "engine.num_workers": 2, "learner.max_mismatch": 1e-3}
)


@pytest.mark.vllm
def test_a_run_whose_weights_are_broadcast_has_the_curve_of_one_that_writes_them(workplace: Path) -> None:
    for transport in ("shm", "gloo"):
        run(workplace, "train", "tiny.toml", "--set", f"engine.transport={transport}", "--run-dir", f"runs/{transport}")

    assert any(line.get("policy/grad_norm", 0) > 0 for line in curve(workplace, "shm"))
    assert curve(workplace, "gloo") == curve(workplace, "shm")


def lent_folders() -> set[Path]:
    return set(SHARED_MEMORY.glob("grpo-snapshots-lent-*"))


@pytest.mark.vllm
@pytest.mark.parametrize("settings", [(), ("publish_every=2",)], ids=["on-policy", "kept"])
def test_a_run_whose_learner_lends_its_memory_has_the_curve_of_one_that_writes_files(
    workplace: Path, settings: tuple[str, ...]
) -> None:
    before = lent_folders()
    for transport in ("shm", "ipc"):
        changes = (f"engine.transport={transport}", *settings)
        run(workplace, "train", "tiny.toml", *as_options(changes), "--run-dir", f"runs/{transport}")

    assert any(line.get("policy/grad_norm", 0) > 0 for line in curve(workplace, "shm"))
    assert curve(workplace, "ipc") == curve(workplace, "shm")
    assert lent_folders() <= before


# What an hf engine computes is the same to the bit if its batches are: with one group in a step, and one prompt in a probe, they do
# not depend on what comes when.
ONE_GROUP = ("engine.kind=hf", "engine.num_workers=1", "groups_per_step=1", "group_size=16", "tasks.held_out=1")
SLEEPS = {
    "files": ("placement=colocated",),
    "lent": ("placement=colocated", "engine.transport=ipc"),
    "between syncs": ("placement=colocated", "engine.transport=ipc", "publish_every=2"),
}


@pytest.mark.parametrize("name", SLEEPS)
def test_a_run_whose_engines_sleep_while_it_learns_has_the_curve_of_one_whose_engines_never_do(workplace: Path, name: str) -> None:
    asleep = SLEEPS[name]
    awake = tuple(change for change in asleep if change.startswith("publish_every"))
    for folder, changes in (("awake", awake), ("asleep", asleep)):
        run(workplace, "train", "tiny.toml", *as_options((*ONE_GROUP, *changes)), "--run-dir", f"runs/{folder}")

    assert any(line.get("policy/grad_norm", 0) > 0 for line in curve(workplace, "awake"))
    assert curve(workplace, "asleep") == curve(workplace, "awake")


def as_options(changes: tuple[str, ...]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


@pytest.mark.vllm
@pytest.mark.parametrize("settings", [(), ("max_lag=1", "publish=wait")], ids=["on-policy", "lag"])
def test_workers_sample_with_adapters_that_were_never_merged(workplace: Path, settings: tuple[str, ...]) -> None:
    changes = ("engine.transport=adapter", "model.lora.rank=4", "model.lora.target_modules=all-linear", *settings)
    run(workplace, "train", "tiny.toml", *as_options(changes))

    lines = curve(workplace)
    assert any(line.get("policy/grad_norm", 0) > 0 for line in lines)
    mismatch = "mismatch/probe_abs_mean" if settings else "mismatch/abs_mean"
    measured = [line[mismatch] for line in lines if mismatch in line]
    assert len(measured) >= 3
    assert max(measured) < 1e-4


@pytest.mark.vllm
def test_two_learner_ranks_send_to_the_workers_of_several_nodes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with cluster_of(workplace, 0, 2, 2) as address:
        run(workplace, "train", "tiny.toml", "--set", f"ray_address={address}", "--set", "learner.num_ranks=2")

    lines = curve(workplace)
    assert any(line.get("policy/grad_norm", 0) > 0 for line in lines)
    measured = [line["mismatch/abs_mean"] for line in lines if "mismatch/abs_mean" in line]
    assert len(measured) >= 3
    assert max(measured) < 1e-4
