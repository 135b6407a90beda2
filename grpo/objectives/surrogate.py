"""What the objectives that learn from sampled completions share: ratios to the behavior policy, surrogates over them, the KL term.

Every surrogate takes logprobs, behavior_logprobs, ref_logprobs, weights: [N, T], weights 0 outside the completions; advantages:
[N], or [N, T] when tokens of one completion differ. Each is `-(weights * gain).sum()`, so that rows add up however a step is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NO_MEANS: Mapping[str, Tensor] = {}


class Loss(NamedTuple):
    """A loss, and what to log about it.

    `sums[name]` is a sum over completion tokens, which the learner divides by their number; `means[name]` is a sum and the count it
    is to be divided by, [2].
    """

    value: Tensor
    sums: Mapping[str, Tensor]
    means: Mapping[str, Tensor] = NO_MEANS


class Bounds(NamedTuple):
    """What the probability ratio to the behavior policy may be before care is taken.

    A token's ratio above `max_ratio` counts as max_ratio (truncated importance sampling, Ionides 2008,
    doi:10.1198/106186008X320456), with its gradient scaled down, not cut. A completion whose geometric mean ratio is below `low` or
    above `high` is left out, and keeps its place in the average.
    """

    max_ratio: float = math.inf
    low: float = 0.0
    high: float = math.inf


UNBOUNDED = Bounds()


@dataclass(frozen=True, slots=True)
class Ratios:
    """exp(logprobs - behavior_logprobs) of every token that counts. All [N, T] but `sequence`, [N, 1].

    `log` is 0 outside; `token` is truncated, with gradient; `sequence` is the geometric mean over a completion's tokens; `inside`
    marks completion tokens of the rows that were kept; `weights` are 0 elsewhere; `sums` count what was not.
    """

    log: Tensor
    token: Tensor
    sequence: Tensor
    inside: Tensor
    weights: Tensor
    sums: dict[str, Tensor]


def ratios(logprobs: Tensor, behavior_logprobs: Tensor, weights: Tensor, bounds: Bounds) -> Ratios:
    completion = weights > 0
    # Mask before exp: a zero weight does not silence a NaN.
    log = torch.where(completion, logprobs - behavior_logprobs, 0.0)
    lengths = completion.sum(1, keepdim=True).clamp(min=1)
    mean = log.sum(1, keepdim=True) / lengths
    # Leaves the bounds, rather than is not within them: a NaN is no reason to be left out, it is a fault to be found.
    left_out = (mean.detach() > _log(bounds.high)) | (mean.detach() < _log(bounds.low))
    inside = completion & ~left_out
    log = torch.where(inside, log, 0.0)
    excess = (log.detach() - _log(bounds.max_ratio)).clamp(min=0.0)
    return Ratios(
        log=log,
        token=(log - excess).exp(),  # excess taken off before exp: what overflows never comes to be
        sequence=torch.where(left_out, 0.0, mean).exp(),
        inside=inside,
        weights=torch.where(inside, weights, 0.0),
        sums={"policy/masked_fraction": (completion & left_out).sum(), "policy/truncated_fraction": (excess > 0).sum()},
    )


def _log(bound: float) -> float:
    return math.log(bound) if bound > 0 else -math.inf


def clipped_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float = 0.0,
    bounds: Bounds = UNBOUNDED,
) -> Loss:
    """gain = min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) - kl_coef * kl, token by token.

    Source: PPO, arXiv:1707.06347, equation 7; DeepSeekMath, arXiv:2402.03300, equation 3. For the KL see `with_kl`.
    """
    r = ratios(logprobs, behavior_logprobs, weights, bounds)
    gain, clipped = _clipped(r.token, columns(advantages), clip_low, clip_high)
    sums = r.sums | {"policy/clipped_fraction": (clipped & r.inside).sum()}
    return with_kl(gain, r, logprobs, ref_logprobs, kl_coef, sums)


def clipped_sequence_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float = 0.0,
    bounds: Bounds = UNBOUNDED,
) -> Loss:
    """The clipped surrogate with one ratio for a whole completion: the geometric mean of its tokens' ratios.

    With weights that sum to 1/N in each row this is equation 5 of GSPO, arXiv:2507.18071, with the ratio of equation 7.
    """
    r = ratios(logprobs, behavior_logprobs, weights, bounds)
    gain, clipped = _clipped(r.sequence, columns(advantages), clip_low, clip_high)
    sums = r.sums | {"policy/clipped_fraction": (clipped & r.inside).sum()}
    return with_kl(gain.expand_as(r.log), r, logprobs, ref_logprobs, kl_coef, sums)


def weighted_likelihood(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    *,
    kl_coef: float = 0.0,
    bounds: Bounds = UNBOUNDED,
) -> Loss:
    """gain = stop_gradient(ratio) * A * logprobs - kl_coef * kl: REINFORCE with importance weights, truncated by `bounds`.

    No token's gradient is ever dropped. On policy, where the ratio is 1, this is REINFORCE itself (Williams 1992,
    doi:10.1007/BF00992696); with a truncated ratio it is equation 4 of MiniMax-M1, arXiv:2506.13585.
    """
    r = ratios(logprobs, behavior_logprobs, weights, bounds)
    gain = r.token.detach() * columns(advantages) * torch.where(r.inside, logprobs, 0.0)
    return with_kl(gain, r, logprobs, ref_logprobs, kl_coef, r.sums)


def columns(advantages: Tensor) -> Tensor:
    """Advantages that line up with [N, T]. [N] -> [N, 1]; [N, T] as it is"""
    return advantages if advantages.ndim == 2 else advantages[:, None]


def _clipped(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """min(ratio * A, clip(ratio) * A), and where the clip decides it."""
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * advantage, clipped * advantage), (clipped * advantage) < (ratio * advantage)


def with_kl(
    gain: Tensor, r: Ratios, logprobs: Tensor, ref_logprobs: Tensor | None, kl_coef: float, sums: Mapping[str, Tensor]
) -> Loss:
    """The loss of a gain [N, T], less kl_coef times the KL to the reference policy. With a reference the KL is logged in any case.

    kl is ratio * k3 with k3 = ref/pi - 1 - log(ref/pi). On policy its value is k3 (arXiv:2402.03300, equation 4). It is
    differentiated through the ratio as well, which gives ratio * log(pi/ref) * grad(logprobs): in expectation over the behavior
    policy the gradient of the reverse KL of the next token's distribution, whatever the ratio. Differentiating k3 alone, as the
    paper does, gives (1 - ref/pi) * grad(logprobs), the gradient of the forward KL.
    """
    assert kl_coef == 0 or ref_logprobs is not None, "a KL term needs the reference policy"
    if ref_logprobs is not None:
        log_ref = torch.where(r.inside, ref_logprobs - logprobs, 0.0)
        kl = r.token * (log_ref.exp() - 1 - log_ref)
        if kl_coef > 0:
            gain = gain - kl_coef * kl
        sums = {**sums, "policy/kl": kl.detach().sum()}
    return Loss(-(r.weights * gain).sum(), sums)
