"""Log-probabilities and entropies from hidden states, without a [N, T, V] tensor of logits in either direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Logits held at one time. With more, they are made chunk by chunk over the tokens, and again in the backward pass.
MAX_LOGITS = 1 << 25


class TokenScores(NamedTuple):
    """logprobs, with gradient; entropy in nats, without. Both of one shape."""

    logprobs: Tensor
    entropy: Tensor


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    dtype: torch.dtype | None = None,
    max_logits: int | None = None,
) -> TokenScores:
    """log softmax(logits / temperature) at the targets, and the entropy there; logits = hidden @ weight.T + bias.

    hidden [M, H], weight [V, H], bias [V] or None, targets [M] -> [M] each, in float32 at least. Products are taken in `dtype`,
    None being that of hidden; the gradient of the weight is summed over chunks in the weight's own. `max_logits` None is
    MAX_LOGITS.
    """
    size = max(1, (MAX_LOGITS if max_logits is None else max_logits) // weight.shape[0])
    return TokenScores(*_TokenScores.apply(hidden, weight, bias, targets, temperature, dtype or hidden.dtype, size))


class _TokenScores(torch.autograd.Function):
    """The softmax is all that the backward pass needs: a single chunk keeps it, several make it again from their normalizers."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        dtype: torch.dtype,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.dtype, ctx.size = temperature, dtype, size
        head, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        logprobs, entropies, normalizers, softmax = [], [], [], None
        for hidden_chunk, target_chunk in zip(hidden.split(size), targets.split(size), strict=True):
            logits = _logits(hidden_chunk, head, offset, temperature)
            normalizer = logits.logsumexp(-1)
            logprobs.append(logits.gather(-1, target_chunk[:, None])[:, 0] - normalizer)
            softmax = (logits - normalizer[:, None]).exp_()
            entropies.append(normalizer - logits.mul_(softmax).sum(-1))
            normalizers.append(normalizer)
        if len(normalizers) > 1:
            softmax = None
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers), softmax)
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_logprobs = grad_outputs[0]  # the entropy has none
        hidden, weight, bias, targets, normalizers, kept = ctx.saved_tensors
        head, offset = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias and bias is not None else None
        for start in range(0, len(targets), ctx.size):
            rows = slice(start, start + ctx.size)
            if kept is None:
                grad = _logits(hidden[rows], head, offset, ctx.temperature).sub_(normalizers[rows, None]).exp_()
            else:
                grad = kept.clone()  # another backward pass may come
            # grad * (one hot - softmax) / temperature, written over the softmax
            grad.mul_(-grad_logprobs[rows, None]).scatter_add_(-1, targets[rows, None], grad_logprobs[rows, None])
            grad = grad.div_(ctx.temperature).to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ head
            if grad_weight is not None:
                states = hidden[rows].to(ctx.dtype)
                if grad_weight.dtype == ctx.dtype:
                    grad_weight.addmm_(grad.t(), states)  # in place: a second [V, H] would be larger than the chunk
                else:
                    grad_weight += grad.t() @ states
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _logits(hidden: Tensor, head: Tensor, offset: Tensor | None, temperature: float) -> Tensor:
    """[m, H] -> [m, V], in float32 at least."""
    logits = linear(hidden.to(head.dtype), head, offset)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)
