"""A micro-batch without padding: one row of tokens in which each prompt stands once, and the attention over it.

All layers but attention work on single tokens, so they take the row as it is. On a GPU attention is FlexAttention, told who sees
whom; elsewhere it gathers every completion behind its prompt into tables of rows of about one length. What a completion sees is
what it would see alone, to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grpo.batch import Batch, by_length
from grpo.flex import SHARED, block_mask, flex_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ATTENTION = "packed"  # its name in transformers
# Rows times longest row of a table: smaller ones hold less padding, larger ones need fewer calls. On a CPU 2,048 is near the best
# for rows of 30 tokens as of 300.
TABLE_TOKENS = 2048
# What an attention function may be asked for beyond causal attention, and this one does not do.
EXTRAS = ("sliding_window", "softcap", "s_aux", "position_bias", "dropout")


class Tables(NamedTuple):
    """Who sees whom, as rows. tables: each [R, L], the tokens of R rows, prompts included, token 0 beyond their ends; places [M]:
    where each token stands in the tables, counted through all of them.
    """

    tables: tuple[Tensor, ...]
    places: Tensor


class Packing(NamedTuple):
    """M tokens: each distinct prompt, and each completion but its last token, from which nothing is predicted.

    input_ids, position_ids [1, M]; before [K]: for every completion token, in the order of Batch.mask, the token that predicts it;
    sight: who sees whom, as the attention of the device wants it.
    """

    input_ids: Tensor
    position_ids: Tensor
    before: Tensor
    sight: Tables | BlockMask


def pack(batch: Batch, *, flex: bool = False) -> Packing:
    """The rows of a micro-batch as one, for FlexAttention or for tables."""
    ids: list[int] = []
    positions: list[int] = []
    before: list[int] = []
    rows: list[list[int]] = []
    owners: list[tuple[int, int]] = []
    starts: dict[tuple[int, ...], int] = {}
    lengths = zip(batch.prompt_lengths.tolist(), batch.mask.sum(1).tolist(), strict=True)
    for tokens, (num_prompt, num_completion) in zip(batch.input_ids.tolist(), lengths, strict=True):
        prompt, body = tuple(tokens[:num_prompt]), tokens[num_prompt : num_prompt + num_completion - 1] if num_completion else []
        if prompt not in starts:
            starts[prompt] = len(ids)
            ids += prompt
            positions += range(num_prompt)
            owners += [(starts[prompt], SHARED)] * num_prompt
        rows.append([*range(starts[prompt], starts[prompt] + num_prompt), *range(len(ids), len(ids) + len(body))])
        before += rows[-1][num_prompt - 1 :][:num_completion]
        ids += body
        positions += range(num_prompt, num_prompt + len(body))
        owners += [(starts[prompt], len(rows))] * len(body)
    device = batch.input_ids.device
    return Packing(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        torch.tensor(before, dtype=torch.long, device=device),
        block_mask(torch.tensor(owners, device=device)) if flex else _tables(rows, len(ids), device),
    )


def _tables(rows: Sequence[Sequence[int]], num_tokens: int, device: torch.device) -> Tables:
    tables: list[list[list[int]]] = []
    places = [0] * num_tokens
    first = 0
    for indices in by_length([len(row) for row in rows], max_tokens=TABLE_TOKENS):
        chosen = [rows[i] for i in indices]
        width = len(chosen[0])
        for row in chosen:
            for place, token in enumerate(row, start=first):
                places[token] = place  # a shared prompt stands in many rows, with the same outcome
            first += width
        tables.append([[*row, *[0] * (width - len(row))] for row in chosen])
    return Tables(tuple(torch.tensor(table, device=device) for table in tables), torch.tensor(places, device=device))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention within each row of a packing; without one, that of transformers. query [1, heads, M, D] -> [1, M, heads, D]

    Raises NotImplementedError when the model wants more than that.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if wanted := [name for name in EXTRAS if isinstance(options.get(name), Tensor) or options.get(name)]:
        raise NotImplementedError(f"{type(module).__name__} wants {wanted[0]} in its attention")
    if not isinstance(packing.sight, Tables):
        return flex_attention(query, key, value, packing.sight, scaling).transpose(1, 2), None
    num_heads, shared_by = query.shape[1], query.shape[1] // key.shape[1]
    states = [each[0].transpose(0, 1).flatten(1) for each in (query, key, value)]  # [M, heads * D]
    outcomes = []
    for table in packing.sight.tables:
        q, k, v = (each.index_select(0, table.flatten()).view(*table.shape, -1, query.shape[-1]).transpose(1, 2) for each in states)
        if shared_by > 1:
            k, v = k.repeat_interleave(shared_by, 1), v.repeat_interleave(shared_by, 1)
        # Padding is on the right: no token of a row can see it, and nobody looks at what it sees.
        seen = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        outcomes.append(seen.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(outcomes).index_select(0, packing.sight.places).view(1, -1, num_heads, value.shape[-1]), None


def packed_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The hidden state before every completion token, in the order of Batch.mask. -> [K, H]"""
    packing = pack(batch, flex=batch.input_ids.is_cuda)
    decoder: Any = model.get_decoder()
    hidden = decoder(
        input_ids=packing.input_ids, position_ids=packing.position_ids, use_cache=False, packing=packing
    ).last_hidden_state
    # Not hidden[0, before]: where a token stands twice, as a prompt's last does, its gradient would be added up in any order.
    return hidden[0].index_select(0, packing.before)


def padded_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The same from rows padded on the right."""
    # Attention is causal: no completion token can see the padding, so no attention mask is needed.
    hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    row, step = batch.mask.nonzero(as_tuple=True)
    return hidden[row, batch.prompt_lengths[row] - 1 + step]


@torch.no_grad()
def enable_packing(model: PreTrainedModel) -> bool:
    """Whether the model gives the same hidden states packed as padded; its attention is made to, or left as it was.

    A model that mixes tokens anywhere but in full causal attention (a window, a convolution, a recurrent state) does not.
    """
    from transformers import AttentionInterface

    from grpo.batch import Example, make_batch

    if not model._supports_attention_backend:
        return False
    AttentionInterface.register(ATTENTION, packed_attention)
    previous = model.config._attn_implementation or "eager"
    ids = tuple(i % model.config.get_text_config().vocab_size for i in range(12))
    rows = [Example(ids[:3], completion, None, 1.0) for completion in (ids[3:8], ids[8:10], ids[10:11])]
    batch = make_batch([*rows, Example(ids[5:7], ids[:4], None, 1.0)], [1.0] * 4, device=model.device)
    expected = padded_hidden(model, batch)
    model.set_attn_implementation(ATTENTION)
    try:
        is_same = torch.allclose(packed_hidden(model, batch), expected, rtol=1e-4, atol=1e-4)
    except (NotImplementedError, TypeError):  # it wants more of its attention, or hands it nothing of ours
        is_same = False
    except RuntimeError as error:  # a kernel that this GPU, or this size of heads, does not have
        logger.warning("rows are padded, because they cannot be packed on this device: %s", error)
        is_same = False
    if not is_same:
        model.set_attn_implementation(previous)
    return is_same
