"""The decoding loop of the hf engine: a batch of rows that start, sample and end on their own. Synchronous, one thread.

Rows stand right-aligned in one key-value cache with room to grow. Now and then the cache is rebuilt: ended rows leave, waiting rows
join, the padding that nobody needs any more goes.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from rollout.hf_batch import Batch, Part, grouped_attention, sample
from rollout.types import FinishReason, Generation, VersionSpan

REBUILD_EVERY = 8
KEEP_SHARE = 0.85
PREFILL_TOKENS = 16_384
ATTENTION = "grouped_sdpa"


class Request(NamedTuple):
    """What is asked of the decoder: `n` continuations of a prompt, continuation i sampled with `seed + i`."""

    id: str
    prompt_ids: tuple[int, ...]
    temperature: float
    max_tokens: int
    n: int
    seed: int


@dataclass(eq=False, slots=True)
class Row:
    """One continuation on its way. `finish_reason` is None until it ends; an aborted row is dropped without one."""

    request: Request
    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    starts: list[VersionSpan] = field(default_factory=list)  # a version, and how many tokens there were when it took over
    finish_reason: FinishReason | None = None
    is_aborted: bool = False

    @property
    def is_live(self) -> bool:
        return self.finish_reason is None and not self.is_aborted

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """What must be in the cache before the next token can be sampled: all tokens but the last."""
        return (*self.request.prompt_ids, *self.token_ids)[:-1]

    @property
    def last_id(self) -> int:
        return self.token_ids[-1] if self.token_ids else self.request.prompt_ids[-1]


class Decoder:
    """Samples continuations with a transformers model, a step at a time. A SteppedEngine; results are lists of Generation.

    Every row has a stream of uniform numbers of its own, made from its seed, so what a row samples does not depend on the batch
    (up to the last bits of the logits, which matrix products of another size may round differently).
    """

    def __init__(self, model: PreTrainedModel, *, stop_token_ids: Sequence[int], max_model_len: int, max_num_seqs: int) -> None:
        AttentionInterface.register(ATTENTION, grouped_attention)
        model.set_attn_implementation(ATTENTION)
        self.model = model.eval().requires_grad_(False)
        self.policy_version = 0
        self._is_asleep = False
        self._device = model.device
        self._stop_token_ids = frozenset(stop_token_ids)
        self.max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
        self._waiting: deque[Row] = deque()
        self._batch: Batch | None = None
        self._unfinished: dict[str, list[Row]] = {}
        self._steps_to_rebuild = 0

    def add(self, request: Request) -> None:
        """Queue a request. Its result comes from the step that ends its last row."""
        rows = [Row(request, index) for index in range(request.n)]
        self._unfinished[request.id] = rows
        self._waiting.extend(rows)

    def has_unfinished(self) -> bool:
        return bool(self._unfinished) and not self._is_asleep

    def abort(self, request_id: str) -> None:
        for row in self._unfinished.pop(request_id, ()):
            row.is_aborted = True

    def abort_all(self) -> list[str]:
        """Forget all requests, and return their ids."""
        ids = list(self._unfinished)
        for request_id in ids:
            self.abort(request_id)
        return ids

    def start_over(self, policy_version: int) -> None:
        """Go on with other weights: what rows have sampled stays, their caches are computed anew."""
        self.policy_version = policy_version
        self._is_asleep = False
        self._drop_caches()

    def fall_asleep(self) -> None:
        """Free weights and caches, and stand still until there are others. What rows have sampled stays."""
        self._is_asleep = True
        self._drop_caches()
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)
        give_back_memory(self._device)

    def _drop_caches(self) -> None:
        if self._batch is not None:
            self._waiting.extendleft(reversed(self._batch.rows))
        self._batch = None

    def close(self) -> None:
        self._batch = None
        del self.model

    @torch.inference_mode()
    def step(self) -> list[tuple[str, list[Generation]]]:
        """One more token for every row in the batch; the requests that ended with it."""
        if self._must_rebuild():
            self._rebuild()
        batch = self._batch
        if batch is None:
            return []
        self._steps_to_rebuild -= 1
        output = self.model(
            input_ids=batch.last_ids,
            position_ids=batch.positions,
            attention_mask=batch.visible(),
            past_key_values=batch.cache,
            use_cache=True,
        )
        tokens, logprobs = sample(output.logits[:, -1], batch.temperatures, batch.uniforms())
        batch.advance(tokens)
        return self._record(batch.rows, tokens.tolist(), logprobs.tolist())

    def _record(self, rows: list[Row], tokens: list[int], logprobs: list[float]) -> list[tuple[str, list[Generation]]]:
        ended = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if not row.is_live:
                continue
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            request, length = row.request, len(row.token_ids)
            if token in self._stop_token_ids:
                row.finish_reason = "stop"
            elif length >= request.max_tokens or len(request.prompt_ids) + length >= self.max_model_len:
                row.finish_reason = "length"
            else:
                continue
            if not any(other.is_live for other in self._unfinished[request.id]):
                ended.append((request.id, [_generation(row) for row in self._unfinished.pop(request.id)]))
        if not self._unfinished:
            self._batch = None
        return ended

    def _must_rebuild(self) -> bool:
        batch = self._batch
        if batch is None or batch.is_full():
            return True
        num_live = sum(row.is_live for row in batch.rows)
        if num_live == 0 or self._steps_to_rebuild > 0:
            return num_live == 0
        can_join = bool(self._waiting) and num_live < self._max_num_seqs
        return can_join or num_live < KEEP_SHARE * len(batch.rows)

    def _rebuild(self) -> None:
        kept = [i for i, row in enumerate(self._batch.rows) if row.is_live] if self._batch else []
        joining = self._next_rows(self._max_num_seqs - len(kept))
        for row in joining:
            row.starts.append(VersionSpan(self.policy_version, len(row.token_ids)))
        parts = [self._batch.part(kept)] if self._batch and kept else []
        parts += self._prefill(joining)
        self._batch = Batch(parts) if parts else None
        self._steps_to_rebuild = REBUILD_EVERY

    def _next_rows(self, room: int) -> list[Row]:
        rows: list[Row] = []
        while self._waiting and len(rows) < room:
            row = self._waiting.popleft()
            if row.is_live:
                rows.append(row)
        return rows

    def _prefill(self, rows: list[Row]) -> Iterable[Part]:
        """Compute the caches of new rows; rows with the same tokens, as those of one prompt have, share the computation."""
        sharing: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            sharing.setdefault(row.cached_ids, []).append(row)
        # Equal lengths side by side need the least padding.
        prefixes = sorted(sharing, key=len)
        while prefixes:
            count = max(1, PREFILL_TOKENS // max(1, len(prefixes[-1])))
            chunk, prefixes = prefixes[-count:], prefixes[:-count]
            keys, values = self._caches(chunk)
            members = [(row, i) for i, prefix in enumerate(chunk) for row in sharing[prefix]]
            where = torch.tensor([i for _, i in members], device=self._device)
            lengths = [len(chunk[i]) for _, i in members]
            yield Part([row for row, _ in members], lengths, keys, values, where)

    def _caches(self, prefixes: list[tuple[int, ...]]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of every layer, [prefix, head, position, dim], padded on the left."""
        width = max(len(prefix) for prefix in prefixes)
        # A prompt of one token has nothing before it; one column of padding keeps the shapes regular.
        ids = torch.zeros(len(prefixes), max(width, 1), dtype=torch.long)
        starts = torch.tensor([ids.shape[1] - len(prefix) for prefix in prefixes])
        for row, prefix in zip(ids, prefixes, strict=True):
            row[len(row) - len(prefix) :] = torch.tensor(prefix, dtype=torch.long)
        columns = torch.arange(ids.shape[1])
        is_real = columns >= starts[:, None]
        mask = (columns[:, None] >= columns) & is_real[:, None, :] | torch.eye(len(columns), dtype=torch.bool)
        cache = DynamicCache()
        self.model(
            input_ids=ids.to(self._device),
            position_ids=(columns - starts[:, None]).clamp(min=0).to(self._device),
            attention_mask=mask[:, None].to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        layers: list[Any] = cache.layers
        return [layer.keys for layer in layers], [layer.values for layer in layers]


def give_back_memory(device: torch.device) -> None:
    """Return what is free to the device or the system, instead of keeping it for the next to ask."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others return what is free by themselves
    if trim is not None:
        trim(0)


def _generation(row: Row) -> Generation:
    assert row.finish_reason is not None
    ends = [*(start.num_tokens for start in row.starts[1:]), len(row.token_ids)]
    spans = [VersionSpan(version, end - first) for (version, first), end in zip(row.starts, ends, strict=True) if end > first]
    return Generation(tuple(row.token_ids), tuple(row.logprobs), row.finish_reason, tuple(spans))
