"""AdamW with moments of 8 bits: torchao's, which knows FSDP2's shares and any device. Imported only where it is chosen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports] - an extra

from grpo.ranks import own_share

# Values that share a scale. torchao's own 256 and the paper's 2048 divide the rows of few models: 64 divides those of nearly all.
BLOCK_SIZE = 64
SMALLEST = 4096  # values of a weight below which its moments stay float32: the paper's bound


class BlockedAdamW(AdamW8bit):
    """Moments of large matrices in 8 bits, with one float32 scale for 64 values of a row; the weights themselves stay float32.

    Source: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, sections 2.1 and 2.2. Float32 stay the moments of
    whatever has below 4,096 values, of `in_float32` (the paper's 2.3: embeddings), and of matrices whose rows are no whole blocks:
    ranks share out rows, and a block on the border of two shares could be read by no other number of ranks.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, in_float32: Iterable[nn.Parameter], lr: float, betas: Any) -> None:
        super().__init__(groups, lr=lr, betas=betas, weight_decay=0.0, block_size=BLOCK_SIZE)
        kept = {id(weight) for weight in in_float32}
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._quantized = {id(weight) for weight in weights if id(weight) not in kept and has_blocks(weight)}
        self._on_cpu = all(weight.device.type == "cpu" for weight in weights)

    @property
    def num_quantized(self) -> int:
        """Weights whose moments have 8 bits."""
        return len(self._quantized)

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        # torchao decides for each share by its size. Decided on the whole weight, any number of ranks learns alike.
        share = own_share(p)
        if id(p) not in self._quantized or not share.numel():
            return torch.zeros_like(p)
        moment = self._subclass_zeros(share, signed, BLOCK_SIZE)
        if not isinstance(p, DTensor):
            return moment
        return DTensor.from_local(moment, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())

    def empty_state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """What is known of a weight before its first step, in the form that a checkpoint fills."""
        moments = {"exp_avg": self._new_buffer(weight, True), "exp_avg_sq": self._new_buffer(weight, False)}
        return {"step": torch.tensor(0.0)} | moments

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # torchao compiles its step: on a GPU one kernel for each shape of a weight, through which nothing of 32 bits is held.
        # On a CPU that wants a C++ compiler and seconds at each start, and numbers that depend on it: there it runs as written.
        with torch.compiler.set_stance("force_eager") if self._on_cpu else contextlib.nullcontext():
            return super().step(closure)


def has_blocks(weight: Tensor) -> bool:
    """Whether its moments can be kept in 8 bits: large enough, with rows of whole blocks."""
    return weight.ndim >= 2 and weight.numel() >= SMALLEST and math.prod(weight.shape[1:]) % BLOCK_SIZE == 0
