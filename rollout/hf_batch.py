"""The tensors of one decoding batch of the hf engine: its key-value cache with room to grow, its positions, its random streams.

Which rows are in the batch, and when one ends, is decided in `hf_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from rollout.hf_decoder import Row

GROWTH = 64


class Part(NamedTuple):
    """Rows and where their keys and values lie: row i is row `where[i]` of every tensor in `keys` and `values`, [*, H, L, D], and
    fills its last `lengths[i]` columns."""

    rows: list[Row]
    lengths: list[int]
    keys: list[Tensor]
    values: list[Tensor]
    where: Tensor


class Batch:
    """N rows, right-aligned in one cache: row i has its tokens in the columns from its start up to `length`."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.rows = [row for part in parts for row in part.rows]
        lengths = [length for part in parts for length in part.lengths]
        self.length = max(lengths)
        self._capacity = self.length + GROWTH
        self._layers = [GrowingLayer(self.length, *self._merged(parts, i)) for i in range(len(parts[0].keys))]
        self.cache = Cache(layers=[*self._layers])
        device = parts[0].where.device
        starts = torch.tensor([self.length - length for length in lengths], device=device)
        self._starts = starts
        self._mask = None if not starts.any() else torch.arange(self._capacity, device=device) >= starts[:, None]
        self.last_ids = torch.tensor([[row.last_id] for row in self.rows], device=device)
        self.positions = torch.tensor([[length] for length in lengths], device=device)
        self.temperatures = torch.tensor([row.request.temperature for row in self.rows], device=device)
        self._seeds = np.array([row.request.seed + row.index for row in self.rows], dtype=np.uint64)
        self._num_sampled = np.array([len(row.token_ids) for row in self.rows], dtype=np.uint64)

    def visible(self) -> Tensor | None:
        """Which columns each row may attend to, the one of its next token included. [N, 1, 1, length + 1]; None: all."""
        return None if self._mask is None else self._mask[:, None, None, : self.length + 1]

    def uniforms(self) -> Tensor:
        """The next number of every row's random stream, in [0, 1). [N]"""
        return torch.from_numpy(stream(self._seeds, self._num_sampled)).to(self.positions.device)

    def advance(self, tokens: Tensor) -> None:
        """Make `tokens`, [N], the next to go in. The forward pass has put the last ones into the cache."""
        self.last_ids = tokens[:, None]
        self.positions += 1
        self._num_sampled += np.uint64(1)
        self.length += 1

    def is_full(self) -> bool:
        return self.length == self._capacity

    def part(self, kept: Sequence[int]) -> Part:
        """Some of the rows, with as many columns as the longest of them needs."""
        where = torch.tensor(kept, device=self.positions.device)
        lengths = (self.length - self._starts[where]).tolist()
        columns = slice(self.length - max(lengths), self.length)
        keys, values = ([layer.buffers[side][:, :, columns] for layer in self._layers] for side in (0, 1))
        return Part([self.rows[i] for i in kept], lengths, keys, values, where)

    def _merged(self, parts: Sequence[Part], layer: int) -> list[Tensor]:
        """Keys and values of one layer, of all parts, with room for GROWTH more columns. Padding is 0: it meets a weight of 0."""
        merged = []
        for side in ("keys", "values"):
            like = getattr(parts[0], side)[layer]
            buffer = like.new_zeros(len(self.rows), like.shape[1], self._capacity, like.shape[3])
            first = 0
            for part in parts:
                source = getattr(part, side)[layer]
                rows = slice(first, first + len(part.rows))
                buffer[rows, :, self.length - source.shape[2] : self.length] = source[part.where]
                first = rows.stop
            merged.append(buffer)
        return merged


class GrowingLayer(CacheLayerMixin):
    """One layer of the cache: new columns are written into room that is already there, so that a step copies nothing."""

    def __init__(self, length: int, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.buffers = self.keys, self.values = keys, values
        self._length = length
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[2]
        keys, values = self.buffers
        keys[:, :, self._length : end] = key_states
        values[:, :, self._length : end] = value_states
        self._length = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        return -1


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention; a single query token attends without a copy of the cache for every group of heads.

    The heads that share keys and values stand where several query tokens would: [N, H, 1, D] -> [N, H/g, g, D].
    """
    num_rows, num_heads, num_queries, dim = query.shape
    if num_queries > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(num_rows, key.shape[1], num_heads // key.shape[1], dim)
    attended = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(num_rows, 1, num_heads, value.shape[3]), None


def sample(logits: Tensor, temperatures: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each row, by inverting the cumulative distribution at `uniforms`, and its log-probability. [N, V] -> [N], [N]

    Temperature 0 takes the likeliest token; its log-probability is then the one at temperature 1.
    """
    is_greedy = temperatures == 0
    logits = logits.float() / temperatures.masked_fill(is_greedy, 1.0)[:, None]
    logprobs = logits.log_softmax(-1)
    cumulative = logprobs.exp().cumsum(-1)
    # Strictly below the total, so that the token found is one with a probability.
    targets = uniforms.clamp(max=1 - 2**-23)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True).clamp_(max=logits.shape[1] - 1)
    tokens = torch.where(is_greedy[:, None], logits.argmax(-1, keepdim=True), tokens)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def stream(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Number `positions[i]` of the random stream of `seeds[i]`, in [0, 1): uint64 [N], uint64 [N] -> float32 [N].

    splitmix64 (Steele, Lea, Flood 2014), started at a scrambled seed, so that the streams of neighbouring seeds do not overlap.
    """
    state = _scramble(_scramble(seeds) + (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _scramble(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
