"""Weights reach the workers of a whole run in every way that a CPU has, and the run is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.vllm
@pytest.mark.parametrize("settings", [(), ("max_lag=1", "publish=wait")], ids=["on-policy", "lag"])
def test_workers_sample_with_adapters_that_were_never_merged(workplace: Path, settings: tuple[str, ...]) -> None:
    changes = ("engine.transport=adapter", "model.lora.rank=4", "model.lora.target_modules=all-linear", *settings)
    run(workplace, "train", "tiny.toml", *(part for change in changes for part in ("--set", change)))

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
