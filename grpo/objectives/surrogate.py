"""The clipped policy-gradient surrogate that GRPO and its relatives share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """A loss, and what to log about it: `sums[name]` is a sum over completion tokens, which the learner divides by their number."""

    value: Tensor
    sums: dict[str, Tensor]


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
) -> Loss:
    """-(weights * gain).sum() with gain = min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) - kl_coef * kl.

    logprobs, behavior_logprobs, ref_logprobs, weights: [N, T], weights 0 outside the completions; advantages: [N]. ratio =
    exp(logprobs - behavior_logprobs). Source: PPO, arXiv:1707.06347, equation 7; DeepSeekMath, arXiv:2402.03300, equation 3.

    kl is ratio * k3 with k3 = ref/pi - 1 - log(ref/pi). On policy its value is k3 (arXiv:2402.03300, equation 4). It is
    differentiated through the ratio as well, which gives ratio * log(pi/ref) * grad(logprobs): in expectation over the behavior
    policy the gradient of the reverse KL of the next token's distribution, whatever the ratio. Differentiating k3 alone, as the
    paper does, gives (1 - ref/pi) * grad(logprobs), the gradient of the forward KL.
    """
    inside = weights > 0
    # Mask before exp: a zero weight does not silence a NaN.
    log_ratio = torch.where(inside, logprobs - behavior_logprobs, 0.0)
    ratio = log_ratio.exp()
    advantage = advantages[:, None]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    was_clipped = ((clipped * advantage) < (ratio * advantage)) & inside
    sums = {"policy/clipped_fraction": was_clipped.sum()}
    if kl_coef > 0:
        assert ref_logprobs is not None, "a KL term needs the reference policy"
        log_ref = torch.where(inside, ref_logprobs - logprobs, 0.0)
        kl = ratio * (log_ref.exp() - 1 - log_ref)
        gain = gain - kl_coef * kl
        sums["policy/kl"] = kl.detach().sum()
    return Loss(-(weights * gain).sum(), sums)
