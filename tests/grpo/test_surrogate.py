import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.objectives.surrogate import Bounds, clipped_sequence_surrogate, clipped_surrogate, weighted_likelihood

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "slope", "clipped"),
    [
        (1.0, 2.0, 2.0, 2.0, 0),  # on policy: the plain policy gradient
        (1.2, 2.0, 2.4, 2.4, 0),  # inside the bounds
        (1.5, 2.0, 2.56, 0.0, 1),  # raised enough: 1.28 * 2, no gradient
        (0.5, 2.0, 1.0, 1.0, 0),  # a good token that fell is still pulled up
        (0.5, -2.0, -1.6, 0.0, 1),  # lowered enough: 0.8 * -2, no gradient
        (1.5, -2.0, -3.0, -3.0, 0),  # a bad token that rose is still pushed down
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_the_clip_bounds_the_gain_and_stops_only_what_went_far_enough(ratio, advantage, gain, slope, clipped):
    logprobs = t([math.log(ratio) - 3.0]).requires_grad_()
    loss = clipped_surrogate(logprobs, t([-3.0]), None, torch.tensor([advantage]), t([1.0]), **CLIP)
    loss.value.backward()
    assert -loss.value.item() == pytest.approx(gain)
    assert logprobs.grad is not None
    assert -logprobs.grad.item() == pytest.approx(slope)  # d ratio / d logprob = ratio
    assert loss.sums["policy/clipped_fraction"].item() == clipped


rows = st.integers(1, 4)
columns = st.integers(1, 5)


def random_case(seed: int, num_rows: int, num_tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def table() -> Tensor:
        return torch.randn(num_rows, num_tokens, generator=generator, dtype=torch.float64)

    behavior = -table().abs()
    lengths = torch.randint(0, num_tokens + 1, (num_rows, 1), generator=generator)
    return {
        "logprobs": behavior + 0.4 * table(),
        "behavior_logprobs": behavior,
        "ref_logprobs": behavior + 0.4 * table(),
        "advantages": table()[:, 0],
        "weights": table().abs() * (torch.arange(num_tokens) < lengths),
    }


def loss_by_loops(case: dict[str, Tensor], clip_low: float, clip_high: float, kl_coef: float) -> float:
    total = 0.0
    for i, j in torch.cartesian_prod(*(torch.arange(n) for n in case["weights"].shape)).tolist():
        logprob, behavior, ref, weight = (
            case[name][i, j].item() for name in ("logprobs", "behavior_logprobs", "ref_logprobs", "weights")
        )
        advantage = case["advantages"][i].item()
        ratio = math.exp(logprob) / math.exp(behavior)
        kept = max(1 - clip_low, min(1 + clip_high, ratio))
        k3 = math.exp(ref) / math.exp(logprob) - math.log(math.exp(ref) / math.exp(logprob)) - 1
        total -= weight * (min(ratio * advantage, kept * advantage) - kl_coef * ratio * k3)
    return total


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), num_rows=rows, num_tokens=columns, kl_coef=st.sampled_from([0.0, 0.04, 1.0]))
def test_the_loss_is_that_of_plain_loops(seed, num_rows, num_tokens, kl_coef):
    case = random_case(seed, num_rows, num_tokens)
    loss = clipped_surrogate(**case, **CLIP, kl_coef=kl_coef)
    assert loss.value.item() == pytest.approx(loss_by_loops(case, **CLIP, kl_coef=kl_coef), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_the_gradient_is_that_of_finite_differences(kl_coef):
    case = random_case(3, 4, 5)
    logprobs = case.pop("logprobs").requires_grad_()
    ratios = (logprobs - case["behavior_logprobs"]).exp()
    assert min((ratios - edge).abs().min() for edge in (0.8, 1.28)) > 1e-4  # no ratio at a kink
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, **case, **CLIP, kl_coef=kl_coef).value, logprobs, rtol=1e-6)


def categorical(seed: int) -> Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("behavior_seed", [0, 1], ids=["on policy", "off policy"])
def test_the_kl_term_has_the_value_and_the_gradient_of_the_reverse_kl_in_expectation(behavior_seed):
    logits, ref = categorical(0).requires_grad_(), categorical(2).log_softmax(0)
    behavior = categorical(behavior_seed).log_softmax(0)
    exact = (logits.softmax(0) * (logits.log_softmax(0) - ref)).sum()
    (exact_gradient,) = torch.autograd.grad(exact, logits)
    # One row for each token that could have been sampled, weighed by how likely it was.
    loss = clipped_surrogate(
        logits.log_softmax(0)[:, None],
        behavior[:, None],
        ref[:, None],
        torch.zeros(6),
        behavior.exp()[:, None],
        **CLIP,
        kl_coef=1.0,
    )
    (gradient,) = torch.autograd.grad(loss.value, logits)
    assert loss.value.item() == pytest.approx(exact.item(), rel=1e-12)
    assert gradient.tolist() == pytest.approx(exact_gradient.tolist(), rel=1e-10, abs=1e-14)


def test_on_policy_the_logged_kl_is_k3():
    logprobs, ref = t([-1.0, -2.0]), t([-1.5, -1.0])
    loss = clipped_surrogate(logprobs, logprobs, ref, torch.zeros(1), t([0.5, 0.5]), **CLIP, kl_coef=0.04)
    k3 = [math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 1.0 - 1]  # ref/pi - log(ref/pi) - 1
    assert loss.sums["policy/kl"].item() == pytest.approx(sum(k3))
    assert loss.value.item() == pytest.approx(0.04 * sum(k3) / 2)


def test_nan_outside_the_completion_changes_neither_loss_nor_gradient():
    def loss_and_gradient(outside: float):
        logprobs = t([-1.0, -2.0, outside]).requires_grad_()
        loss = clipped_surrogate(
            logprobs, t([-1.1, -1.9, outside]), t([-1.2, -1.8, outside]), torch.ones(1), t([0.5, 0.5, 0.0]), **CLIP, kl_coef=0.1
        )
        loss.value.backward()
        assert logprobs.grad is not None
        return loss.value.item(), logprobs.grad.tolist(), {name: value.item() for name, value in loss.sums.items()}

    assert loss_and_gradient(math.nan) == loss_and_gradient(0.0) == loss_and_gradient(-math.inf)


def test_advantage_zero_has_no_gradient():
    logprobs = t([-1.0, -9.0]).requires_grad_()
    clipped_surrogate(logprobs, t([-2.0, -1.0]), None, torch.zeros(1), t([0.5, 0.5]), **CLIP).value.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


# Bounds on the ratio

SURROGATES = {
    "clipped": lambda *args, **options: clipped_surrogate(*args, **CLIP, **options),
    "sequence": lambda *args, **options: clipped_sequence_surrogate(*args, **CLIP, **options),
    "likelihood": weighted_likelihood,
}


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_bounds_that_nothing_leaves_change_nothing_to_the_bit(surrogate, kl_coef):
    def run(bounds: Bounds):
        case = random_case(3, 4, 5)
        logprobs = case.pop("logprobs").requires_grad_()
        loss = surrogate(logprobs, *case.values(), kl_coef=kl_coef, bounds=bounds)
        loss.value.backward()
        return loss.value.item(), logprobs.grad, {name: value.item() for name, value in loss.sums.items()}

    (value, gradient, sums), (other, other_gradient, other_sums) = run(Bounds()), run(Bounds(1e3, 1e-3, 1e3))
    assert value == other
    assert gradient is not None
    assert gradient.equal(other_gradient)
    assert sums == other_sums


def test_a_ratio_too_large_counts_as_the_largest_and_its_gradient_is_scaled_down_not_cut():
    # A bad token that became 8 times as likely is not clipped; at most 3 it weighs.
    logprobs = t([math.log(8.0) - 5.0, math.log(2.0) - 5.0]).requires_grad_()
    loss = clipped_surrogate(logprobs, t([-5.0, -5.0]), None, t([-1.0])[0], t([1.0, 1.0]), **CLIP, bounds=Bounds(max_ratio=3.0))
    loss.value.backward()
    assert loss.value.item() == pytest.approx(3 + 2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [pytest.approx([3.0, 2.0])]
    assert loss.sums["policy/truncated_fraction"].item() == 1


def test_a_ratio_that_would_overflow_is_truncated_like_any_other():
    logprobs = t([-1.0]).requires_grad_()
    loss = clipped_surrogate(logprobs, t([-2000.0]), None, t([-1.0])[0], t([1.0]), **CLIP, bounds=Bounds(max_ratio=3.0))
    loss.value.backward()
    assert loss.value.item() == pytest.approx(3)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(3)


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES)
def test_a_completion_whose_mean_ratio_leaves_the_bounds_is_left_out_and_keeps_its_place(surrogate):
    # Geometric means e^0.6, e^-0.8 and e^0 of the rows; the last has a token far off that the mean does not show.
    logs = [[0.6, 0.6], [-1.6, 0.0], [1.5, -1.5]]
    logprobs = (t(*logs) - 3.0).requires_grad_()
    weights, advantages = t(*[[0.25, 0.25]] * 3), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    loss = surrogate(logprobs, torch.full_like(weights, -3.0), None, advantages, weights, bounds=Bounds(low=0.5, high=1.8))
    loss.value.backward()
    assert loss.sums["policy/masked_fraction"].item() == 4
    assert logprobs.grad is not None
    assert logprobs.grad[:2].tolist() == [[0.0, 0.0]] * 2
    alone = surrogate(logprobs[2:].detach(), torch.full((1, 2), -3.0), None, advantages[2:], weights[2:])
    assert loss.value.item() == alone.value.item()


def test_what_is_left_out_cannot_spoil_the_loss_even_where_it_overflows():
    logprobs = t([-1.0, -1.0]).requires_grad_()
    for surrogate in SURROGATES.values():
        loss = surrogate(
            logprobs, t([-2000.0, -1.0]), t([-3.0, -1.0]), t([1.0])[0], t([0.5, 0.5]), kl_coef=0.1, bounds=Bounds(high=2.0)
        )
        assert loss.value.item() == 0.0
        assert torch.autograd.grad(loss.value, logprobs)[0].tolist() == [[0.0, 0.0]]


def test_a_reference_alone_is_logged_and_costs_nothing():
    logprobs, ref = t([-1.0, -2.0]), t([-1.5, -1.0])
    watched = clipped_surrogate(logprobs, logprobs, ref, torch.ones(1), t([0.5, 0.5]), **CLIP)
    alone = clipped_surrogate(logprobs, logprobs, None, torch.ones(1), t([0.5, 0.5]), **CLIP)
    assert watched.value.item() == alone.value.item()
    assert watched.sums["policy/kl"].item() == pytest.approx(math.exp(-0.5) + 0.5 - 1 + math.exp(1.0) - 1.0 - 1)
    assert "policy/kl" not in alone.sums


def test_the_kl_term_weighs_alike_in_every_surrogate():
    logprobs, ref = t([-1.0, -2.0]), t([-1.5, -1.0])
    for surrogate in SURROGATES.values():
        loss = surrogate(logprobs, logprobs, ref, torch.zeros(1), t([0.5, 0.5]), kl_coef=0.04)
        assert loss.value.item() == pytest.approx(0.04 * (math.exp(-0.5) + 0.5 - 1 + math.exp(1.0) - 1.0 - 1) / 2)


def test_every_token_may_have_an_advantage_of_its_own():
    logprobs = t([-1.0, -2.0]).requires_grad_()
    clipped_surrogate(logprobs, logprobs.detach(), None, t([2.0, -3.0]), t([0.5, 0.5]), **CLIP).value.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, 1.5]]
