"""AdamW whose moments have 8 bits, beside the AdamW whose moments have 32."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import make_learner, random_examples, same_weights, weights_of
from objective_cases import UNBOUNDED
from torch import Tensor, nn

from grpo.learner import Learner
from grpo.learner_config import LearnerConfig, check_optimizer
from grpo.objectives import Grpo
from grpo.optimizer import set_learning_rate
from grpo.tiny_model import make_tiny_model
from sandbox.errors import UserError

IS_INSTALLED = importlib.util.find_spec("torchao") is not None
PEAK = 1e-3


def with_torchao(test: Any) -> Any:
    """It takes torchao three seconds to be imported."""
    return pytest.mark.slow(pytest.mark.skipif(not IS_INSTALLED, reason="the extra adamw-8bit is not installed")(test))


@pytest.fixture(scope="module")
def wide_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """64 wide, so that a row of most matrices is one block."""
    return str(make_tiny_model(tmp_path_factory.mktemp("wide"), seed=0, hidden_size=64, num_layers=1, max_length=64))


def learner_of(model_path: str, **options: Any) -> Learner:
    return make_learner(
        model_path, **({"objective": Grpo(**UNBOUNDED), "optimizer": "adamw_8bit", "learning_rate": PEAK} | options)
    )


async def learn(learner: Learner, steps: range) -> None:
    for step in steps:
        assert (await learner.update(random_examples(8, seed=step))).metrics["policy/grad_norm"] > 1e-3


def moments(learner: Learner, name: str) -> dict[str, Any]:
    return learner._optimizer.state[learner._policy.trainable[name]]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


@with_torchao
async def test_large_matrices_have_moments_of_8_bits_and_the_rest_of_32(wide_model_path: str):
    learner = learner_of(wide_model_path)
    await learn(learner, range(1))
    has_8_bits = {name for name, weight in learner._policy.trainable.items() if hasattr(moments(learner, name)["exp_avg"], "codes")}
    large = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
    assert has_8_bits == {f"model.layers.0.{name}.weight" for name in large}
    # Not the embedding, gains and biases, the 2,048 values of k_proj and v_proj, nor down_proj with its rows of 168.


@with_torchao
def test_their_size_by_hand():
    from grpo.adamw_8bit import BlockedAdamW

    weight = nn.Parameter(torch.ones(256, 1024))
    weight.grad = torch.ones_like(weight)
    optimizer = BlockedAdamW([{"params": [weight]}], in_float32=(), lr=PEAK, betas=(0.9, 0.999))
    optimizer.step()
    moments = [optimizer.state[weight][name] for name in ("exp_avg", "exp_avg_sq")]
    stored = [getattr(moment, part) for moment in moments for part in ("codes", "scale", "qmap")]
    codes, scales, table = 256 * 1024, 256 * 1024 // 64 * 4, 256 * 4
    assert sum(tensor.nbytes for tensor in stored) == 2 * (codes + scales + table) == 559_104
    assert 559_104 / (8 * weight.numel()) < 0.27


@with_torchao
@pytest.mark.parametrize(("name", "signed", "bits"), [("exp_avg", True, 6), ("exp_avg_sq", False, 7)])
def test_a_moment_is_as_exact_as_its_decade_of_the_largest_in_its_block(name: str, signed: bool, bits: int):
    """From the paper, not from torchao: the decade 10^-k of a block's largest value holds 2^(bits - k) codes at equal distances."""
    from grpo.adamw_8bit import BlockedAdamW

    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 128))
    size = 10 ** (torch.rand(64, 128) * -7)  # seven decades in a block
    weight.grad = size * torch.randn(64, 128).sign() if signed else size.sqrt()
    optimizer = BlockedAdamW([{"params": [weight]}], in_float32=(), lr=PEAK, betas=(0.9, 0.999))
    optimizer.step()
    exact = 0.1 * weight.grad if signed else 0.001 * weight.grad.square()  # the first step, from moments of 0
    blocks = exact.view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    decade = (-(blocks.abs() / largest).log10()).floor().clamp(0, 6)
    bound = 0.45 * 10.0**-decade / 2.0 ** (bits - decade) * largest  # half of their distance
    stored = optimizer.state[weight][name].dequantize().view(-1, 64)
    assert bool(((stored - blocks).abs() <= bound * 1.001).all())
    assert (stored != blocks).float().mean() > 0.9, "it is quantized"


@with_torchao
async def test_the_first_step_is_that_of_adamw_with_its_schedule_and_decay(wide_model_path: str):
    """Moments are rounded after they were used, so nothing differs yet but the order of a few operations."""
    options = {"warmup_steps": 4, "weight_decay": 0.5}
    one, other = (learner_of(wide_model_path, optimizer=name, **options) for name in ("adamw_8bit", "adamw"))
    before = weights_of(one)
    for learner in (one, other):
        await learn(learner, range(1))
    assert distance(weights_of(one), weights_of(other)) < 1e-5 * distance(weights_of(one), before)
    groups = one._optimizer.param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.5, {2}), (0.0, {1})]
    assert [float(group["lr"]) for group in groups] == pytest.approx([PEAK / 4] * 2)


@with_torchao
async def test_after_20_steps_it_is_within_two_percent_of_where_adamw_is(wide_model_path: str):
    options = {"schedule": "cosine", "total_steps": 20}
    one, other = (learner_of(wide_model_path, optimizer=name, **options) for name in ("adamw_8bit", "adamw"))
    before = weights_of(one)
    for learner in (one, other):
        await learn(learner, range(20))
    apart, moved = distance(weights_of(one), weights_of(other)), distance(weights_of(other), before)
    assert 0 < apart < 0.02 * moved  # 0.009 when this was written


@with_torchao
async def test_a_restored_learner_goes_on_as_if_it_had_never_stopped_to_the_bit(wide_model_path: str, tmp_path: Path):
    options = {"warmup_steps": 4, "schedule": "cosine", "mini_batches": 2, "weight_decay": 0.1}
    first = learner_of(wide_model_path, **options)
    await learn(first, range(3))
    await first.save(str(tmp_path))
    second = learner_of(wide_model_path, **options, seed=99)
    await second.restore(str(tmp_path))
    for learner in (first, second):
        await learn(learner, range(3, 6))
    assert same_weights(weights_of(first), weights_of(second))


@with_torchao
@pytest.mark.parametrize(("before", "after"), [("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")])
async def test_a_run_may_change_from_one_to_the_other(wide_model_path: str, tmp_path: Path, before: str, after: str):
    first = learner_of(wide_model_path, optimizer=before)
    await learn(first, range(3))
    await first.save(str(tmp_path))
    second = learner_of(wide_model_path, optimizer=after)
    await second.restore(str(tmp_path))
    name = "model.layers.0.mlp.up_proj.weight"
    one, other = (moments(learner, name) for learner in (first, second))
    assert one["step"].item() == other["step"].item() == 3
    for part in ("exp_avg", "exp_avg_sq"):
        written, read = (state[part].dequantize() if hasattr(state[part], "codes") else state[part] for state in (one, other))
        assert hasattr(other[part], "codes") == (after == "adamw_8bit")
        assert (written - read).abs().max() <= 0.01 * written.abs().max()  # at most half of the largest distance of two codes
    await learn(second, range(3, 5))


@pytest.fixture
def torch_knows_no_class_of_torchao() -> Iterator[None]:
    """As in a process that has not imported it."""
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(known)


@with_torchao
@pytest.mark.usefixtures("torch_knows_no_class_of_torchao")
async def test_moments_of_8_bits_cannot_be_read_without_torchao(
    wide_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = learner_of(wide_model_path)
    await learn(first, range(1))
    await first.save(str(tmp_path))
    second = learner_of(wide_model_path, optimizer="adamw")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"its moments have 8 bits, but the package torchao is not installed.* or start over"):
        await second.restore(str(tmp_path))
    monkeypatch.undo()
    with pytest.raises(pickle.UnpicklingError):  # it was tried again once torchao was there, which says nothing twice
        await second.restore(str(tmp_path))


@with_torchao
async def test_on_a_cpu_nothing_is_compiled(wide_model_path: str):
    from torch._dynamo.utils import counters

    counters.clear()
    await learn(learner_of(wide_model_path), range(2))
    assert not counters["stats"]
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    assert counters["stats"]["unique_graphs"] == 1, "what others compile is left alone"


@with_torchao
def test_adapters_have_moments_of_8_bits_where_they_are_large_enough(wide_model_path: str):
    small = r"of this policy's 14 trained weights none would have moments of 8 bits: .*Type: --set learner\.optimizer=adamw"
    with pytest.raises(UserError, match=small):
        learner_of(wide_model_path, rank=8)
    optimizer: Any = learner_of(wide_model_path, rank=64)._optimizer
    assert optimizer.num_quantized > 7  # A of [64, in], and B of [out, 64] but for k_proj and v_proj


def test_where_torchao_is_not_installed_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch):
    check_optimizer(LearnerConfig())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_optimizer(LearnerConfig())
    wanted = r"\"adamw_8bit\", but the package torchao is not installed\. pip install 'grpo-reasoning\[adamw-8bit\]', or use --set"
    with pytest.raises(UserError, match=wanted):
        check_optimizer(LearnerConfig(optimizer="adamw_8bit"))


def test_a_learning_rate_that_is_a_tensor_stays_the_same_tensor():
    rate = torch.tensor(1.0)
    for given in (rate, 1.0):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=given)
        set_learning_rate(optimizer, 0.25)
        assert optimizer.param_groups[0]["lr"] == 0.25
    assert rate == 0.25
