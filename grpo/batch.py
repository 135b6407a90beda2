"""From examples to tensors: the weights matrix of an optimizer step, and its division into micro-batches.

Masks come from lengths, never from a padding id. The weights are filled once for the whole optimizer step, before anything is cut, so
that micro-batches cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Average = Literal["sequence", "token", "constant"]


@dataclass(frozen=True, slots=True)
class Example:
    """One completion with what it teaches. `behavior_logprobs` is None for a recorded completion."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...] | None
    advantage: float

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of an optimizer step, padded on the right to T completion tokens and L tokens in all.

    input_ids [B, L]; prompt_lengths [B]; completion_lengths [B]; token_ids [B, T]; mask [B, T] (True on completion tokens);
    advantages [B]; weights [B, T] (0 on padding); behavior_logprobs [B, T] (0 on padding) or None; ref_logprobs likewise.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    completion_lengths: Tensor
    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor
    behavior_logprobs: Tensor | None
    ref_logprobs: Tensor | None = None


def token_weights(completion_lengths: Tensor, average: Average, *, max_tokens: int) -> Tensor:
    """The weight that each token of row i carries in the loss of an optimizer step. [N] -> [N]

    sequence: 1 / (N * length_i), the mean over rows of the mean over tokens (GRPO, arXiv:2402.03300, equation 3);
    token: 1 / sum of all lengths (DAPO, arXiv:2503.14476, equation 8);
    constant: 1 / (N * max_tokens), so that length changes nothing (Dr. GRPO, arXiv:2503.20783, section 3.2, with the budget as constant).
    In exact arithmetic the first two sum to 1 over all tokens. Computed in float64; rows of length 0 weigh 0.
    """
    lengths = completion_lengths.to(torch.float64)
    num_rows = len(lengths)
    if average == "sequence":
        weights = 1.0 / (num_rows * lengths.clamp(min=1))
    elif average == "token":
        weights = torch.full_like(lengths, 1.0 / max(1.0, float(lengths.sum())))
    else:
        weights = torch.full_like(lengths, 1.0 / (num_rows * max_tokens))
    return torch.where(lengths > 0, weights, torch.zeros_like(weights))


def micro_batches(rows: Sequence[Example], *, tokens_per_micro_batch: int) -> list[list[int]]:
    """Row indices, longest first, cut so that rows times their longest length stays within the budget.

    A row longer than the budget gets a micro-batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].num_tokens, i))
    batches: list[list[int]] = []
    for index in order:
        # Rows come longest first, so the first row of a batch is its width.
        if batches and (len(batches[-1]) + 1) * rows[batches[-1][0]].num_tokens <= tokens_per_micro_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def make_batch(rows: Sequence[Example], weights: Sequence[float], *, device: str | torch.device = "cpu") -> Batch:
    """Tensors for some rows of an optimizer step; `weights[i]` is the weight of each completion token of row i.

    All rows must agree on whether they have behavior log-probabilities.
    """
    num_rows, longest = len(rows), max(len(row.token_ids) for row in rows)
    input_ids = torch.zeros(num_rows, max(row.num_tokens for row in rows), dtype=torch.long)
    token_ids = torch.zeros(num_rows, longest, dtype=torch.long)
    behavior = torch.zeros(num_rows, longest)
    completion_lengths = torch.tensor([len(row.token_ids) for row in rows])
    is_sampled = rows[0].behavior_logprobs is not None
    for i, row in enumerate(rows):
        assert (row.behavior_logprobs is not None) == is_sampled, "a batch holds sampled rows or recorded ones, not both"
        input_ids[i, : row.num_tokens] = torch.tensor(row.prompt_ids + row.token_ids)
        token_ids[i, : len(row.token_ids)] = torch.tensor(row.token_ids)
        if row.behavior_logprobs is not None:
            assert len(row.behavior_logprobs) == len(row.token_ids), "one behavior log-probability for each completion token"
            behavior[i, : len(row.token_ids)] = torch.tensor(row.behavior_logprobs)
    mask = torch.arange(longest) < completion_lengths[:, None]
    row_weights = torch.tensor(weights, dtype=torch.float64)[:, None] * mask
    return Batch(
        input_ids=input_ids.to(device),
        prompt_lengths=torch.tensor([len(row.prompt_ids) for row in rows]).to(device),
        completion_lengths=completion_lengths.to(device),
        token_ids=token_ids.to(device),
        mask=mask.to(device),
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32).to(device),
        weights=row_weights.to(torch.float32).to(device),
        behavior_logprobs=behavior.to(device) if is_sampled else None,
    )
