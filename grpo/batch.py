"""From examples to tensors: the weights of an optimizer step, and its division into micro-batches.

Masks come from lengths, never from a padding id. The weights are filled once for the whole optimizer step, before anything is cut,
so that micro-batches cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from rollout.errors import PromptError
from rollout.packed import Packed, PackedRow
from rollout.types import Completion

Average = Literal["sequence", "token", "constant", "sum"]


@dataclass(frozen=True, slots=True)
class Example(PackedRow):
    """One completion with what it teaches.

    `behavior_logprobs` is None for a recorded completion, `ref_logprobs` until the reference policy has scored it. `advantage` is
    one number for all tokens, or one for each. `reward` is the verdict's; `group` counts the groups of the step; `task_id` is for
    messages. Raises PromptError when there is no prompt: nothing would predict the first token.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...] | None
    advantage: float | tuple[float, ...]
    reward: float = 0.0
    group: int = 0
    task_id: str = ""
    ref_logprobs: tuple[float, ...] | None = None

    @classmethod
    def of(cls, completion: Completion, *, reward: float, group: int, task_id: str) -> Example:
        """A completion that teaches nothing yet. What it holds packed stays packed."""
        return cls(completion.prompt_ids, (), None, 0.0, reward, group, task_id).holding(completion.packed)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.prompt_ids, *self.packed, self.advantage, self.reward, self.group, self.task_id, self.ref_logprobs)
        return _unpickled, fields

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
        return len(self.prompt_ids) + self.num_completion_tokens

    @property
    def is_flat(self) -> bool:
        """Whether no token has an advantage."""
        return not (any(self.advantage) if isinstance(self.advantage, tuple) else self.advantage)


def _unpickled(prompt_ids: tuple[int, ...], token_ids: bytes, logprobs: bytes | None, *others: Any) -> Example:
    return Example(prompt_ids, (), None, *others).holding(Packed(token_ids, logprobs))


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of an optimizer step, padded on the right to T completion tokens and L tokens in all.

    input_ids [B, L]; prompt_lengths [B]; token_ids [B, T]; mask [B, T] (True on completion tokens); advantages [B], or [B, T] when
    tokens differ; weights [B, T] (0 on padding); behavior_logprobs [B, T] (0 on padding) or None when the rows are recorded;
    ref_logprobs [B, T] or None when the objective needs no reference; reference_point: what the objective wanted to know about the
    whole optimizer step (Objective.reference_point).
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor
    behavior_logprobs: Tensor | None
    ref_logprobs: Tensor | None = None
    reference_point: float = 0.0


def token_weights(completion_lengths: Tensor, average: Average, *, max_tokens: int) -> Tensor:
    """The weight that each token of row i carries in the loss of an optimizer step. [N] -> [N]

    sequence: 1 / (N * length_i), the mean over rows of the mean over tokens (GRPO, arXiv:2402.03300, equation 3);
    token: 1 / sum of all lengths (DAPO, arXiv:2503.14476, equation 8);
    constant: 1 / (N * max_tokens), so that length changes nothing (Dr. GRPO, arXiv:2503.20783, section 3.2);
    sum: 1 / N, the mean over rows of the sum over tokens: the log-probability of a whole completion (RLOO, DPO).
    Summed over all tokens, the first two give 1 when no row is empty. Computed in float64; rows of length 0 weigh 0.
    """
    lengths = completion_lengths.to(torch.float64)
    num_rows = len(lengths)
    if average == "sequence":
        divisors = num_rows * lengths
    elif average == "token":
        divisors = lengths.sum().expand_as(lengths)
    else:
        divisors = torch.full_like(lengths, num_rows * (max_tokens if average == "constant" else 1))
    return (1.0 / divisors).masked_fill(lengths == 0, 0.0)


def deal(rows: Sequence[Example], count: int, *, rows_per_unit: int = 1) -> list[list[int]]:
    """Row indices for each of `count` ranks: to each its part of the tokens, and the rows of a prompt to one where that allows it.

    Units of `rows_per_unit` consecutive rows stay together, in their order. A rank has at most one unit's tokens above its part.
    """
    if count == 1:
        return [list(range(len(rows)))]
    dealt: list[list[int]] = [[] for _ in range(count)]
    units = list(chain.from_iterable(units_by_prompt(rows, rows_per_unit)))
    widths = [sum(rows[i].num_tokens for i in unit) for unit in units]
    before = 0
    for unit, width in zip(units, widths, strict=True):
        # The rank in whose part of all tokens the unit has its middle.
        dealt[(2 * before + width) * count // (2 * sum(widths))].extend(unit)
        before += width
    return dealt


def micro_batches(rows: Sequence[Example], *, tokens_per_micro_batch: int, rows_per_unit: int = 1) -> list[list[int]]:
    """Row indices, longest first, cut so that rows times their longest length stays within the budget.

    Units of `rows_per_unit` consecutive rows stay together, in their order; a unit longer than the budget gets a micro-batch of its
    own.
    """
    assert len(rows) % rows_per_unit == 0, "rows come in whole units"
    units = [range(first, first + rows_per_unit) for first in range(0, len(rows), rows_per_unit)]
    widths = [max(rows[i].num_tokens for i in unit) for unit in units]
    return [
        [i for unit in batch for i in units[unit]]
        for batch in by_length(widths, max_tokens=tokens_per_micro_batch // rows_per_unit)
    ]


def by_length(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Indices, longest first, cut so that their number times the longest of them stays within max_tokens, or is one."""
    batches: list[list[int]] = []
    budget = 0  # what the last batch may hold: they come longest first, so its first is its width
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and len(batches[-1]) < budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            budget = max_tokens // lengths[index]
    return batches


def micro_packs(rows: Sequence[Example], *, tokens_per_micro_batch: int, rows_per_unit: int = 1) -> list[list[int]]:
    """Row indices, those of one prompt together, cut so that the tokens stay within the budget; a prompt counts once in each.

    Units of `rows_per_unit` consecutive rows stay together, in their order; one longer than the budget gets a micro-batch of its
    own.
    """
    batches: list[list[int]] = []
    prompts: set[tuple[int, ...]] = set()
    room = 0
    for unit in chain.from_iterable(units_by_prompt(rows, rows_per_unit)):
        completions = sum(len(rows[i].token_ids) for i in unit)
        new = {rows[i].prompt_ids for i in unit}
        if not batches or completions + sum(map(len, new - prompts)) > room:
            batches.append([])
            prompts, room = set(), tokens_per_micro_batch
        batches[-1].extend(unit)
        room -= completions + sum(map(len, new - prompts))
        prompts |= new
    return batches


def units_by_prompt(rows: Sequence[Example], rows_per_unit: int) -> list[list[range]]:
    """For each prompt, in the order in which they first occur, its units of consecutive row indices."""
    assert len(rows) % rows_per_unit == 0, "rows come in whole units"
    by_prompt: dict[tuple[int, ...], list[range]] = {}
    for first in range(0, len(rows), rows_per_unit):
        by_prompt.setdefault(rows[first].prompt_ids, []).append(range(first, first + rows_per_unit))
    return list(by_prompt.values())


def make_batch(
    rows: Sequence[Example], weights: Sequence[float], *, device: str | torch.device = "cpu", reference_point: float = 0.0
) -> Batch:
    """Tensors for some rows of an optimizer step; `weights[i]` is the weight of each completion token of row i.

    All rows must agree on whether they have behavior and reference log-probabilities.
    """
    token_ids, mask = _padded([row.token_ids for row in rows], torch.long)
    return Batch(
        input_ids=_padded([row.prompt_ids + row.token_ids for row in rows], torch.long)[0].to(device),
        prompt_lengths=torch.tensor([len(row.prompt_ids) for row in rows]).to(device),
        token_ids=token_ids.to(device),
        mask=mask.to(device),
        advantages=_advantages(rows).to(device),
        weights=(torch.tensor(weights, dtype=torch.float32)[:, None] * mask).to(device),
        behavior_logprobs=_scores([row.behavior_logprobs for row in rows], device),
        ref_logprobs=_scores([row.ref_logprobs for row in rows], device),
        reference_point=reference_point,
    )


def _advantages(rows: Sequence[Example]) -> Tensor:
    """[B] when every row has one advantage for all its tokens, else [B, T]."""
    if not any(isinstance(row.advantage, tuple) for row in rows):
        return torch.tensor([row.advantage for row in rows], dtype=torch.float32)
    each = [row.advantage if isinstance(row.advantage, tuple) else (row.advantage,) * len(row.token_ids) for row in rows]
    return _padded(each, torch.float32)[0]


def _scores(rows: Sequence[Sequence[float] | None], device: str | torch.device) -> Tensor | None:
    """Log-probabilities of the rows, [B, T]; None when there are none."""
    present = [row for row in rows if row is not None]
    assert len(present) in (0, len(rows)), "a batch holds rows with log-probabilities of one kind or rows without, not both"
    return _padded(present, torch.float32)[0].to(device) if present else None


def _padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as one tensor, 0 beyond their ends, and the mask of what lies within. -> [B, longest], [B, longest]"""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=dtype)
    padded[mask] = torch.tensor(list(chain.from_iterable(rows)), dtype=dtype)
    return padded, mask
