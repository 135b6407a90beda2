"""What vLLM does slowly on a CPU, done by kernels that it has compiled but leaves unused there, and with fewer calls.

The norms are registered where vLLM provides for it: as implementations of its operators, under the name `COMPILED_NORMS`. What else
is here has no such place: methods of vLLM are replaced by functions that do the same. They draw the same seeds for the sampler, and
note the same log-probabilities for a request.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import vllm.kernels.vllm_c  # noqa: F401  # loads the compiled kernels
from torch import Generator, Tensor
from vllm import ir
from vllm.logprobs import FlatLogprobs
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

from rollout.vllm_start import COMPILED_NORMS

DRAWN_AT_ONCE = 64


def _is_usual(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _is_usual_sum(x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return _is_usual(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


@ir.ops.rms_norm.register_impl(COMPILED_NORMS, supports_args=_is_usual)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    output = torch.empty_like(x)
    torch.ops._C.rms_norm(output, x, weight, epsilon)
    return output


@ir.ops.fused_add_rms_norm.register_impl(COMPILED_NORMS, supports_args=_is_usual_sum, inplace=True)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


class SeedStreams:
    """The numbers that vLLM draws from the generator of each request, one for each token, drawn many at a time."""

    def __init__(self) -> None:
        self._left: WeakKeyDictionary[Generator, list[int]] = WeakKeyDictionary()

    def next(self, generator: Generator) -> int:
        left = self._left.get(generator)
        if not left:
            left = self._left[generator] = torch.randint(0, 2**31, (DRAWN_AT_ONCE,), generator=generator).tolist()[::-1]
        return left.pop()


_streams = SeedStreams()
_vllm_forward_cpu = TopKTopPSampler.forward_cpu


def _forward_cpu(
    self: TopKTopPSampler, logits: Tensor, generators: dict[int, Generator], k: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """vLLM's own, which calls torch once for every request to draw the seed of its next token."""
    if self.use_fp64_gumbel or self.logprobs_mode != "processed_logprobs":
        return _vllm_forward_cpu(self, logits, generators, k, p)
    logits = apply_top_k_top_p(logits, k, p).float()
    logprobs = logits.log_softmax(-1)
    seeds = torch.randint(0, 2**31, (len(logits),))
    if generators:
        seeds[[*generators]] = torch.tensor([_streams.next(generator) for generator in generators.values()])
    return torch.ops._C.fused_gumbel_argmax(logits, seeds), logprobs


TopKTopPSampler.forward_cpu = _forward_cpu  # type: ignore[method-assign]


_vllm_update_sample_logprobs = LogprobsProcessor._update_sample_logprobs


def _update_sample_logprobs(self: LogprobsProcessor, sampled: LogprobsLists) -> None:
    """vLLM's own, which goes from token to token, for what the scheduler here hands on at the end of a request: all its tokens."""
    flat = self.logprobs
    if not isinstance(flat, FlatLogprobs) or self.tokenizer is not None or sampled.logprobs.shape[1] != 1:
        return _vllm_update_sample_logprobs(self, sampled)
    assert self.cumulative_logprob is not None
    logprobs = sampled.logprobs[:, 0].tolist()
    first, num_tokens = len(flat.logprobs), len(logprobs)
    flat.start_indices += range(first, first + num_tokens)
    flat.end_indices += range(first + 1, first + num_tokens + 1)
    flat.token_ids += sampled.logprob_token_ids[:, 0].tolist()
    flat.logprobs += logprobs
    flat.ranks += sampled.sampled_token_ranks.tolist()
    flat.decoded_tokens += [None] * num_tokens
    for each in logprobs:  # one after the other: since Python 3.12 sum() rounds otherwise
        self.cumulative_logprob += each


LogprobsProcessor._update_sample_logprobs = _update_sample_logprobs  # type: ignore[method-assign]
