"""Weights reach the workers of a whole run in every way that a CPU has, and the run is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from rollout.snapshot import SHARED_MEMORY
from tests.integration.runs import cluster_of, curve, prepare, run, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

SETTINGS = {"steps": 4, "tasks.held_out": 4, "engine.kind": "vllm", "engine.num_workers": 2, "learner.max_mismatch": 1e-3}

Curve = list[dict[str, float]]


@pytest.fixture(scope="module")
def curve_with(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Curve]]:
    """The curve of a run with these changed settings, which is run when it is first asked for."""
    place = tmp_path_factory.mktemp("transports")
    prepare(place, SETTINGS)

    @cache
    def of(*changes: str) -> Curve:
        name = f"run-{of.cache_info().misses}"
        run(place, "train", "tiny.toml", *as_options(changes), "--run-dir", f"runs/{name}")
        return curve(place, name)

    yield of
    wait_until_gone(place)


def as_options(changes: tuple[str, ...]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def learns(curve: Curve) -> bool:
    return any(line.get("policy/grad_norm", 0) > 0 for line in curve)


@pytest.mark.vllm
def test_a_run_whose_weights_are_broadcast_has_the_curve_of_one_that_writes_them(curve_with: Callable[..., Curve]) -> None:
    written = curve_with("engine.transport=shm")
    assert learns(written)
    assert curve_with("engine.transport=gloo") == written


def lent_folders() -> set[Path]:
    return set(SHARED_MEMORY.glob("grpo-snapshots-lent-*"))


@pytest.mark.vllm
@pytest.mark.parametrize("settings", [(), ("publish_every=2",)], ids=["on-policy", "kept"])
def test_a_run_whose_learner_lends_its_memory_has_the_curve_of_one_that_writes_files(
    curve_with: Callable[..., Curve], settings: tuple[str, ...]
) -> None:
    before = lent_folders()
    written = curve_with("engine.transport=shm", *settings)
    assert learns(written)
    assert curve_with("engine.transport=ipc", *settings) == written
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
def test_a_run_whose_engines_sleep_while_it_learns_has_the_curve_of_one_whose_engines_never_do(
    curve_with: Callable[..., Curve], name: str
) -> None:
    asleep = SLEEPS[name]
    awake = curve_with(*ONE_GROUP, *(change for change in asleep if change.startswith("publish_every")))
    assert learns(awake)
    assert curve_with(*ONE_GROUP, *asleep) == awake


@pytest.mark.vllm
@pytest.mark.parametrize("settings", [(), ("max_lag=1", "publish=wait")], ids=["on-policy", "lag"])
def test_workers_sample_with_adapters_that_were_never_merged(curve_with: Callable[..., Curve], settings: tuple[str, ...]) -> None:
    lines = curve_with("engine.transport=adapter", "model.lora.rank=4", "model.lora.target_modules=all-linear", *settings)
    assert learns(lines)
    agrees(lines, "mismatch/probe_abs_mean" if settings else "mismatch/abs_mean")


def agrees(lines: Curve, mismatch: str) -> None:
    measured = [line[mismatch] for line in lines if mismatch in line]
    assert len(measured) >= 3
    assert max(measured) < 1e-4


@pytest.mark.vllm
def test_two_learner_ranks_send_to_the_workers_of_several_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare(tmp_path, SETTINGS)
    with cluster_of(tmp_path, 0, 2, 2) as address:
        run(tmp_path, "train", "tiny.toml", *as_options((f"ray_address={address}", "learner.num_ranks=2")))

    lines = curve(tmp_path)
    assert learns(lines)
    agrees(lines, "mismatch/abs_mean")
    wait_until_gone(tmp_path)
