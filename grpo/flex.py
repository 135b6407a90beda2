"""Attention of a packing by FlexAttention: one kernel for all rows, told by a mask of blocks who sees whom (arXiv:2412.05496)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SHARED = -1  # the row of a prompt's tokens, which every row of that prompt sees


def block_mask(owners: Tensor) -> BlockMask:
    """A token sees those before it that are of its prompt, or of its own row behind that. owners [M, 2]: prompt and row of each."""
    prompts, rows = owners.unbind(1)

    def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (prompts[key] == prompts[query]) & ((rows[key] == SHARED) | (rows[key] == rows[query]))

    make, _ = _kernels(owners.device.type)
    return make(sees, None, None, len(owners), len(owners), device=owners.device)


def flex_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None) -> Tensor:
    """[1, heads, M, D], of which keys and values may have fewer heads. -> [1, heads, M, D]"""
    _, attend = _kernels(query.device.type)
    return attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])


@functools.cache
def _kernels(device: str) -> tuple[Any, Any]:
    """create_block_mask and flex_attention, compiled where they are meant to be: uncompiled they build all M * M pairs."""
    from torch.nn.attention import flex_attention as flex

    if device != "cuda":
        return flex.create_block_mask, flex.flex_attention
    return torch.compile(flex.create_block_mask, dynamic=True), torch.compile(flex.flex_attention, dynamic=True)
