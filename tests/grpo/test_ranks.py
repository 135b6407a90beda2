"""A learner of several ranks is the learner of one: through real processes, gloo and FSDP2."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_cases
from learner_cases import sharp_model
from objective_cases import UNBOUNDED
from rank_cases import Processes, Trained
from safetensors.torch import load_file

from grpo.objectives import Dapo, Dpo, Grpo, Kto
from grpo.tiny_model import make_tiny_model
from rollout.snapshot import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
KL = Grpo(kl_coef=0.1, **UNBOUNDED)
STEPS = 20


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    processes = Processes(3)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Computes in float64 throughout, where another model has a part that insists on float32."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def assert_same(one: Trained, other: Trained, *, within: float) -> None:
    assert len(one.curve) == len(other.curve)
    for step, (line, expected) in enumerate(zip(one.curve, other.curve, strict=True)):
        # Where the policy has just become its own reference a pair is a tie, and rounding says who wins.
        compared = (line.keys() | expected.keys()) - {"preference/accuracy"}
        values = ({name: each.get(name) for name in compared} for each in (line, expected))
        assert next(values) == pytest.approx(next(values), rel=within, abs=within), f"step {step}"
    # All weights as one vector: AdamW makes of a gradient that is all rounding a step as large as any other.
    distance, length = (
        np.sqrt(sum(float(np.square(each).sum()) for each in values))
        for values in ([one.weights[n] - w for n, w in other.weights.items()], other.weights.values())
    )
    assert distance < within * length


CASES: dict[str, dict[str, Any]] = {
    "grpo": {"objective": Grpo(**UNBOUNDED)},
    "micro-batches of one row, more on one rank than on the other": {"objective": Grpo(**UNBOUNDED), "tokens_per_micro_batch": 1},
    "lora with kl": {"objective": KL, "rank": 4},
    "a reference that moves, in pairs": {"objective": Dpo(), "reference_every": 3},
    "kto, whose reference point is over all rows": {"objective": Kto()},
    "mini-batches with fewer rows than ranks": {"objective": Dapo(**UNBOUNDED), "mini_batches": 5},
    "activation checkpointing": {"objective": KL, "activation_checkpointing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_curve_of_one(processes: Processes, model_path: str, case: str) -> None:
    options = {"steps": range(STEPS), "learning_rate": 1e-3, **CASES[case]}
    (alone,) = processes.run(1, rank_cases.train, model_path, **options)
    first, second = processes.run(2, rank_cases.train, model_path, **options)
    assert first.curve == second.curve, "they do not decide alike"
    assert_same(first, alone, within=1e-5)
    assert any(line["policy/grad_norm"] > 1e-3 for line in alone.curve)


@pytest.mark.parametrize(("before", "after", "rank"), [(2, 1, 0), (2, 3, 0), (1, 2, 0), (2, 3, 4)])
def test_a_checkpoint_resumes_on_another_number_of_ranks(
    processes: Processes, model_path: str, tmp_path: Path, before: int, after: int, rank: int
) -> None:
    options = {"objective": Dpo(), "rank": rank, "reference_every": 3, "learning_rate": 1e-3, "schedule": "cosine"}
    (steady,) = processes.run(1, rank_cases.train, model_path, steps=range(10), **options)
    half, *_ = processes.run(before, rank_cases.train, model_path, steps=range(5), save=str(tmp_path), **options)
    resumed, *_ = processes.run(after, rank_cases.train, model_path, steps=range(5, 10), restore=str(tmp_path), **options)
    assert_same(Trained(half.curve + resumed.curve, resumed.weights), steady, within=1e-5)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """64 wide, so that a row of most matrices is a block of 8-bit moments; 64 rows are 22, 22 and 20 on three ranks."""
    return str(make_tiny_model(tmp_path_factory.mktemp("wide"), seed=0, hidden_size=64, num_layers=2, max_length=64))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="the extra adamw-8bit is not installed")
def test_moments_of_8_bits_follow_one_rank_on_any_number_of_them(processes: Processes, wide_model: str, tmp_path: Path) -> None:
    """Within 1e-4, where float32 has 1e-5: rounding in the 7th digit now and then decides for another of 256 codes."""
    options = {"objective": Grpo(**UNBOUNDED), "learning_rate": 1e-3, "schedule": "cosine", "optimizer": "adamw_8bit"}
    (alone,) = processes.run(1, rank_cases.train, wide_model, steps=range(STEPS), **options)
    first, second = processes.run(2, rank_cases.train, wide_model, steps=range(STEPS), **options)
    assert first.curve == second.curve, "they do not decide alike"
    assert_same(first, alone, within=1e-4)

    half, *_ = processes.run(2, rank_cases.train, wide_model, steps=range(5), save=str(tmp_path), **options)
    for count in (1, 2, 3):
        resumed, *_ = processes.run(count, rank_cases.train, wide_model, steps=range(5, STEPS), restore=str(tmp_path), **options)
        assert_same(Trained(half.curve + resumed.curve, resumed.weights), alone, within=1e-4)


SEEDS = [(seed, 1 + seed % 7, budget) for seed, budget in enumerate((1, 30, 60, 120, 10_000) * 3)]


@pytest.mark.parametrize(("exact", "count"), [(True, 3), (False, 2)], ids=["float64", "float32"])
@pytest.mark.parametrize("objective", [KL, Dpo(), Kto()], ids=["grpo", "dpo", "kto"])
def test_dealing_to_ranks_leaves_loss_and_gradient_equal(
    processes: Processes, model_path: str, gpt2: str, count: int, objective: Any, exact: bool
) -> None:
    within = 1e-12 if exact else 1e-6
    model = gpt2 if exact else model_path
    (alone,) = processes.run(1, rank_cases.gradients, model, objective, SEEDS, exact=exact)
    for found in processes.run(count, rank_cases.gradients, model, objective, SEEDS, exact=exact):
        for (loss, gradient), (expected_loss, expected) in zip(found, alone, strict=True):
            assert loss == pytest.approx(expected_loss, rel=within, abs=within)
            assert np.linalg.norm(gradient - expected) <= within * np.linalg.norm(expected)
    assert max(np.linalg.norm(gradient) for _, gradient in alone) > 1e-3


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sharp_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=32, layer_types=["full_attention"] * 32)


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_publishing_never_holds_the_whole_model(processes: Processes, deep_model: str, tmp_path: Path, rank: int) -> None:
    ((alone, _),) = processes.run(1, rank_cases.publish, deep_model, str(tmp_path / "one"), rank=rank)
    (first, most), (second, most_of_second) = processes.run(2, rank_cases.publish, deep_model, str(tmp_path / "two"), rank=rank)
    verify(first)
    assert second is None
    weights, expected = load_file(first.path), load_file(alone.path)
    assert list(weights) == list(expected)
    assert all((weights[name] - weight).abs().max() < 1e-6 for name, weight in expected.items())
    if rank == 0:
        assert first.fingerprint == alone.fingerprint
    sizes = [weight.nbytes for weight in weights.values()]
    assert max(sizes) <= max(most, most_of_second) <= 3 * max(sizes), "the largest weight in a few forms"
    assert 3 * max(sizes) < sum(sizes) / 5


def test_two_ranks_publish_the_adapters_of_one(processes: Processes, model_path: str, tmp_path: Path) -> None:
    options = {"rank": 4, "transport": "adapter"}
    ((alone, _),) = processes.run(1, rank_cases.publish, model_path, str(tmp_path / "one"), **options)
    (first, _), (second, _) = processes.run(2, rank_cases.publish, model_path, str(tmp_path / "two"), **options)
    verify(first)
    assert second is None
    weights, expected = load_file(first.path), load_file(alone.path)
    assert list(weights) == list(expected)
    assert all((weights[name] - weight).abs().max() < 1e-6 for name, weight in expected.items())


@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"keep_sent": True}], ids=["full", "lora", "kept"])
def test_two_ranks_send_what_one_sends_also_after_a_broadcast_that_broke(
    processes: Processes, model_path: str, options: dict[str, Any]
) -> None:
    (alone,) = processes.run(1, rank_cases.send, model_path, objective=Grpo(**UNBOUNDED), **options)
    first, second = processes.run(2, rank_cases.send, model_path, objective=Grpo(**UNBOUNDED), **options)
    gone = [] if "keep_sent" in options else ["SnapshotGone"]
    assert first.told == alone.told == ["SyncFailed", "SyncFailed", *gone]
    assert second == ([{}, {}], ["NoneType", "NoneType", *gone])
    for weights, expected in zip(first.weights, alone.weights, strict=True):
        assert list(weights) == list(expected)
        assert all(np.abs(weights[name] - weight).max() < 1e-6 for name, weight in expected.items())
    before, after = first.weights
    assert any((before[name] != after[name]).any() for name in before), "the update has moved weights"


@pytest.mark.parametrize("options", [{}, {"rank": 4}, {"keep_sent": True}], ids=["full", "lora", "kept"])
def test_the_first_of_two_ranks_lends_what_one_lends(processes: Processes, model_path: str, options: dict[str, Any]) -> None:
    (alone,) = processes.run(1, rank_cases.lend, model_path, objective=Grpo(**UNBOUNDED), **options)
    first, second = processes.run(2, rank_cases.lend, model_path, objective=Grpo(**UNBOUNDED), **options)
    gone = [] if "keep_sent" in options else ["SnapshotGone"]
    assert first.told == alone.told == gone
    assert second == ([], gone)
    assert len(first.weights) == len(alone.weights) == 4
    for weights, expected in zip(first.weights, alone.weights, strict=True):
        assert list(weights) == list(expected)
        assert all(np.abs(weights[name] - weight).max() < 1e-6 for name, weight in expected.items())
    before, _, after, _ = first.weights
    assert any((before[name] != after[name]).any() for name in before), "the update has moved weights"


def test_a_snapshot_that_cannot_be_written_leaves_no_rank_waiting(processes: Processes, model_path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = processes.run(2, rank_cases.fail_to_publish, model_path, str(tmp_path / "file"))
    assert "the snapshot of version 0 could not be written" in told[0]
    assert told[1] == ""


def test_the_first_rank_exports_the_model(processes: Processes, model_path: str, tmp_path: Path) -> None:
    for count, folder in ((1, "one"), (2, "two")):
        processes.run(count, rank_cases.export, model_path, str(tmp_path / folder), rank=4)
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    assert all((two[name] - weight).abs().max() < 1e-6 for name, weight in one.items())


def test_ranks_stop_alike_when_engine_and_learner_disagree(processes: Processes, model_path: str) -> None:
    told = processes.run(2, rank_cases.fail, model_path, "mismatch", max_mismatch=0.05)
    assert told[0].startswith("MismatchTooLarge: engine and learner differ by ")
    assert told[0] == told[1]


def test_ranks_leave_a_step_out_alike_and_one_of_them_writes_the_rows(
    processes: Processes, model_path: str, tmp_path: Path
) -> None:
    told = processes.run(2, rank_cases.fail, model_path, "nan", fault_folder=str(tmp_path))
    assert all(each.startswith("NotFinite: update 3: ") for each in told)
    assert ["update-000003.jsonl" in each for each in told] == [True, False]
    assert (tmp_path / "update-000003.jsonl").exists()
