"""From examples to tensors: the weights of an optimizer step, and its division into micro-batches.

Masks come from lengths, never from a padding id. The weights are filled once for the whole optimizer step, before anything is cut,
so that micro-batches cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from rollout.errors import PromptError

Average = Literal["sequence", "token", "constant"]


@dataclass(frozen=True, slots=True)
class Example:
    """One completion with what it teaches. `behavior_logprobs` is None for a recorded completion.

    Raises PromptError when there is no prompt: nothing would predict the first token.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...] | None
    advantage: float

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise PromptError(
                "a prompt has no tokens, so nothing predicts the first token of its completion. Give every task a prompt, or use a "
                "tokenizer that puts a begin-of-sequence token before it."
            )
        assert self.behavior_logprobs is None or len(self.behavior_logprobs) == len(self.token_ids), (
            "one behavior log-probability for each completion token"
        )

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of an optimizer step, padded on the right to T completion tokens and L tokens in all.

    input_ids [B, L]; prompt_lengths [B]; token_ids [B, T]; mask [B, T] (True on completion tokens); advantages [B]; weights [B, T]
    (0 on padding); behavior_logprobs [B, T] (0 on padding) or None when the rows are recorded; ref_logprobs [B, T] or None when the
    objective needs no reference.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
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
    constant: 1 / (N * max_tokens), so that length changes nothing (Dr. GRPO, arXiv:2503.20783, section 3.2).
    Summed over all tokens, the first two give 1 when no row is empty. Computed in float64; rows of length 0 weigh 0.
    """
    lengths = completion_lengths.to(torch.float64)
    num_rows = len(lengths)
    if average == "sequence":
        divisors = num_rows * lengths
    elif average == "token":
        divisors = lengths.sum().expand_as(lengths)
    else:
        divisors = torch.full_like(lengths, num_rows * max_tokens)
    return (1.0 / divisors).masked_fill(lengths == 0, 0.0)


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
    token_ids, mask = _padded([row.token_ids for row in rows], torch.long)
    behavior = [row.behavior_logprobs for row in rows if row.behavior_logprobs is not None]
    assert len(behavior) in (0, len(rows)), "a batch holds sampled rows or recorded ones, not both"
    return Batch(
        input_ids=_padded([row.prompt_ids + row.token_ids for row in rows], torch.long)[0].to(device),
        prompt_lengths=torch.tensor([len(row.prompt_ids) for row in rows]).to(device),
        token_ids=token_ids.to(device),
        mask=mask.to(device),
        advantages=torch.tensor([row.advantage for row in rows], dtype=torch.float32).to(device),
        weights=(torch.tensor(weights, dtype=torch.float32)[:, None] * mask).to(device),
        behavior_logprobs=_padded(behavior, torch.float32)[0].to(device) if behavior else None,
    )


def _padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as one tensor, 0 beyond their ends, and the mask of what lies within. -> [B, longest], [B, longest]"""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=dtype)
    padded[mask] = torch.tensor(list(chain.from_iterable(rows)), dtype=dtype)
    return padded, mask
