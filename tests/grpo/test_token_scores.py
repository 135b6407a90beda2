"""Log-probabilities from hidden states: as full logits would give them, whatever the chunks, without ever holding them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.token_scores import TokenScores, token_scores

VOCABULARY, HIDDEN = 9, 4


def case(
    count: int, *, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    offset = torch.randn(VOCABULARY, generator=generator, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(VOCABULARY, (count,), generator=generator)


def by_full_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> TokenScores:
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    logprobs = logits.log_softmax(-1)
    return TokenScores(logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1).detach())


def gradients(scores: TokenScores, *leaves: Tensor | None) -> list[Tensor]:
    """Of a sum with uneven weights, so that no token's gradient hides another's."""
    weights = torch.linspace(-1, 2, len(scores.logprobs), dtype=scores.logprobs.dtype)
    return list(torch.autograd.grad((weights * scores.logprobs).sum(), [leaf for leaf in leaves if leaf is not None]))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(0, 7),
    chunk=st.integers(1, 8),
    bias=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 99),
)
def test_any_chunks_give_what_full_logits_give(count, chunk, bias, temperature, seed):
    hidden, weight, offset, targets = case(count, bias=bias, seed=seed)
    chunked = token_scores(hidden, weight, offset, targets, temperature=temperature, max_logits=chunk * VOCABULARY)
    full = by_full_logits(hidden, weight, offset, targets, temperature)
    torch.testing.assert_close(chunked, full, rtol=1e-12, atol=1e-12)
    assert not chunked.entropy.requires_grad
    for ours, theirs in zip(gradients(chunked, hidden, weight, offset), gradients(full, hidden, weight, offset), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_logits", [1 << 20, 2 * VOCABULARY], ids=["whole", "chunked"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_is_that_of_finite_differences(max_logits, bias):
    hidden, weight, offset, targets = case(5, bias=bias)

    def logprobs(*leaves: Tensor) -> Tensor:
        return token_scores(leaves[0], leaves[1], (*leaves, None)[2], targets, temperature=0.7, max_logits=max_logits).logprobs

    assert torch.autograd.gradcheck(logprobs, [leaf for leaf in (hidden, weight, offset) if leaf is not None], rtol=1e-6)


@pytest.mark.parametrize("max_logits", [1 << 20, 2 * VOCABULARY], ids=["whole", "chunked"])
def test_a_second_backward_pass_gives_the_same_gradient(max_logits):
    hidden, weight, _, targets = case(5)
    loss = token_scores(hidden, weight, None, targets, temperature=1.0, max_logits=max_logits).logprobs.sum()
    first, second = (torch.autograd.grad(loss, [hidden, weight], retain_graph=True) for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_theirs():
    hidden, weight, _, targets = case(5)
    frozen = weight.detach()
    loss = token_scores(hidden, frozen, None, targets, temperature=1.0).logprobs.sum()
    (gradient,) = torch.autograd.grad(loss, [hidden])
    full = by_full_logits(hidden, frozen, None, targets, 1.0).logprobs.sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(full, [hidden])[0])


def test_bfloat16_products_have_float32_scores_and_a_weight_gradient_summed_in_float32():
    hidden, weight, _, targets = case(64, dtype=torch.float32, bias=False)
    scores = token_scores(hidden, weight, None, targets, temperature=1.0, dtype=torch.bfloat16, max_logits=8 * VOCABULARY)
    exact = token_scores(hidden, weight, None, targets, temperature=1.0)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs, exact.logprobs, atol=0.1, rtol=0)  # bfloat16 keeps 8 bits of logits of a few units
    assert not scores.logprobs.equal(exact.logprobs)
    for rough, fine in zip(gradients(scores, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert rough.dtype == torch.float32
        assert (rough - fine).norm() < 0.03 * fine.norm()


class LargestTensor(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_in_either_direction_is_larger_than_what_a_chunk_may_be():
    count, vocabulary, width = 300, 500, 4
    hidden = torch.randn(count, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (count,))
    with LargestTensor() as largest:
        token_scores(hidden, weight, None, targets, temperature=1.0, max_logits=20 * vocabulary).logprobs.sum().backward()
    assert largest.elements == 20 * vocabulary  # 300 * 500 for the full logits
