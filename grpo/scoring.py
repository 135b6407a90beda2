"""Scoring examples without a gradient, under the policy and under its reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.batch import Example, make_batch
from grpo.policy import Policy


class Scorer:
    """Log-probabilities of completions at one temperature, micro-batch by micro-batch."""

    def __init__(self, policy: Policy, *, temperature: float, tokens_per_micro_batch: int) -> None:
        self._policy = policy
        self._temperature = temperature
        self._tokens_per_micro_batch = tokens_per_micro_batch

    @torch.no_grad()
    def logprobs(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """Of each example's completion tokens, under the weights of the moment."""
        own: dict[int, tuple[float, ...]] = {}
        for indices in self._policy.micro_batches(examples, tokens_per_micro_batch=self._tokens_per_micro_batch):
            if not indices:
                self._policy.score_nothing()
                continue
            rows = [examples[i] for i in indices]
            batch = make_batch(rows, [0.0] * len(rows), device=self._policy.device)
            values = self._policy.score(batch, temperature=self._temperature).logprobs.tolist()
            for index, row, each in zip(indices, rows, values, strict=True):
                own[index] = tuple(each[: len(row.token_ids)])
        scores = {index: each for part in self._policy.ranks.gather(own) for index, each in part.items()}
        return [scores[index] for index in range(len(examples))]

    def reference_logprobs(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """The same under the reference policy."""
        with self._policy.as_reference():
            return self.logprobs(examples)

    def log_ratios(self, examples: Sequence[Example]) -> Tensor:
        """log(pi / ref) of each completion whose row has place in the model. [K], in float64"""
        longest = self._policy.max_length
        rows = [row for row in examples if longest is None or row.num_tokens <= longest]
        pairs = zip(self.logprobs(rows), self.reference_logprobs(rows), strict=True)
        return torch.tensor([sum(policy) - sum(reference) for policy, reference in pairs], dtype=torch.float64)
