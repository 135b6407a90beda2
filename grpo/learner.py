"""The learner: examples in, new weights out. A plain class; grpo/cluster.py makes an actor of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from grpo.batch import Batch, Example, make_batch, token_weights
from grpo.learner_spec import LearnerSpec
from grpo.learner_state import (
    LEARNER,
    REFERENCE,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    weight_tensors,
    write_tensors,
)
from grpo.metrics import UpdateTotals
from grpo.model_files import restore_weights, write_model
from grpo.nonfinite import NonFiniteGuard
from grpo.optimizer import make_optimizer, rate_factor, set_learning_rate
from grpo.policy import Policy, compute_dtype
from grpo.publish import Publisher
from grpo.ranks import Ranks, whole
from grpo.scoring import Scorer
from rollout.types import BroadcastSeat, Loan, Snapshot
from rollout.waiting import to_the_end
from sandbox.errors import SystemFault, UserError


class MismatchTooLarge(SystemFault):
    """Engine and learner disagree about the same tokens under the same weights: the gradient would be wrong."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one training step did, by metric name."""

    metrics: dict[str, float]


class Learner:
    """Policy, optimizer and schedule; `update` is one training step.

    One of several ranks is called as the others are, with the same arguments, and gives the same answers.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        if spec.num_threads is not None:
            torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._config = spec.learner
        self._objective = spec.objective
        self._ranks = Ranks(spec.place, spec.device)
        self._policy = Policy(
            spec.model_path,
            lora=spec.model.lora,
            compute_dtype=compute_dtype(spec.model.dtype, spec.device),
            device=spec.device,
            keep_reference=spec.objective.needs_reference,
            reference_device=spec.reference_device,
            activation_checkpointing=spec.learner.activation_checkpointing,
            ranks=self._ranks,
        )
        self._scorer = Scorer(
            self._policy, temperature=spec.temperature, tokens_per_micro_batch=spec.learner.tokens_per_micro_batch
        )
        self._optimizer = make_optimizer(self._policy, spec.learner)
        self._schedule_step = 0  # mini-batches done, those without a gradient included: the schedule ends when the run does
        self._num_updates = 0
        self._nonfinite = NonFiniteGuard(spec.fault_folder if self._ranks.is_first else None)
        self._weights = asyncio.Lock()  # held by what changes them, and by what sends them
        self._publisher = Publisher(
            self._policy,
            transport=spec.transport,
            dtype=getattr(torch, spec.engine_dtype),
            folder=Path(spec.snapshot_folder),
            keep_sent=spec.keep_sent,
            across_nodes=spec.across_nodes,
        )

    async def update(self, examples: Sequence[Example]) -> Update:
        """One training step: `mini_batches` optimizer steps over the examples, each row used once.

        A mini-batch without a gradient moves nothing, nor does one whose loss or gradient is not finite; the third of those in a
        row raises NotFinite. Raises MismatchTooLarge before any weight has moved, UserError for a row too long for the model.
        """
        async with self._weights:
            return await asyncio.to_thread(self._update, list(examples))

    def _update(self, examples: list[Example]) -> Update:
        started = time.perf_counter()
        self._publisher.weights_move()
        self._check_lengths(examples)
        totals = UpdateTotals()
        examples = self._with_reference(examples)
        size = self._objective.rows_per_unit
        share = len(examples) // size / self._config.mini_batches
        for i in range(self._config.mini_batches):
            self._learn(examples[round(i * share) * size : round((i + 1) * share) * size], totals)
        self._num_updates += 1
        if self._spec.reference_every and self._num_updates % self._spec.reference_every == 0:
            self._policy.refresh_reference()
        if self._spec.engines_sleep and self._spec.device == "cuda":
            torch.cuda.empty_cache()  # the engines wake in what the step has used
        return Update(totals.metrics() | {"time/update_s": time.perf_counter() - started})

    def _check_lengths(self, examples: Sequence[Example]) -> None:
        longest = self._policy.max_length
        for example in examples:
            if longest is not None and example.num_tokens > longest:
                raise UserError(
                    f"task {example.task_id}: prompt and completion have {len(example.prompt_ids)} + {len(example.token_ids)} "
                    f"tokens, and the model has positions for {longest}. Shorten or drop the row, lower sampling.max_tokens, or "
                    "use a model for longer texts."
                )

    def _with_reference(self, examples: list[Example]) -> list[Example]:
        """The examples with what the reference policy says of them, where the objective asks for it."""
        if not self._objective.needs_reference:
            return examples
        scores = self._scorer.reference_logprobs(examples)
        scored = [dataclasses.replace(row, ref_logprobs=each) for row, each in zip(examples, scores, strict=True)]
        return self._objective.charge(scored)

    async def score(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """The log-probabilities of each example's completion tokens under the current weights, at the sampling temperature."""
        return await asyncio.to_thread(self._scorer.logprobs, list(examples))

    def _learn(self, examples: list[Example], totals: UpdateTotals) -> None:
        """One optimizer step, if there is anything to learn."""
        totals.learning_rate = self._config.learning_rate * rate_factor(self._schedule_step, self._config, self._spec.total_steps)
        self._schedule_step += 1
        if self._compute_gradient(examples, totals):
            if not totals.optimizer_steps:
                self._check_mismatch(totals)
            self._apply_gradient(examples, totals)

    def _compute_gradient(self, examples: list[Example], totals: UpdateTotals) -> bool:
        """Leave the gradient of the loss over these examples with the weights. False when no example has one."""
        lengths = torch.tensor([len(example.token_ids) for example in examples])
        weights = token_weights(lengths, self._objective.average, max_tokens=self._spec.max_tokens).tolist()
        # Rows without a gradient keep their place in the weights, and are not sent through the model at all.
        size = self._objective.rows_per_unit
        units = [range(first, first + size) for first in range(0, len(examples), size)]
        taught = [i for unit in units if self._has_gradient([examples[j] for j in unit]) for i in unit]
        rows = [examples[i] for i in taught]
        totals.count(examples, rows)
        self._optimizer.zero_grad()
        point = self._reference_point(rows)
        budget = self._config.tokens_per_micro_batch
        for indices in self._policy.micro_batches(rows, tokens_per_micro_batch=budget, rows_per_unit=size):
            if not indices:
                self._policy.score_nothing().backward()
                continue
            chosen, row_weights = [rows[i] for i in indices], [weights[taught[i]] for i in indices]
            self._accumulate(make_batch(chosen, row_weights, device=self._policy.device, reference_point=point), totals)
        totals.close_mini_batch(self._ranks)
        return bool(rows)

    def _has_gradient(self, unit: Sequence[Example]) -> bool:
        if self._objective.needs_zero_advantages:
            return all(row.token_ids for row in unit)
        return all(row.token_ids for row in unit) and not all(row.is_flat for row in unit)

    def _reference_point(self, rows: Sequence[Example]) -> float:
        """What the objective wants to know about this optimizer step before its gradient."""
        probes = self._objective.probes(rows)
        return self._objective.reference_point(self._scorer.log_ratios(probes)) if probes else 0.0

    def _accumulate(self, batch: Batch, totals: UpdateTotals) -> None:
        scores = self._policy.score(batch, temperature=self._spec.temperature)
        loss = self._objective.loss(scores.logprobs, batch)
        loss.value.backward()
        totals.add(batch, scores, loss)

    def _check_mismatch(self, totals: UpdateTotals) -> None:
        """Before any weight has moved in this training step: do the engine's log-probabilities belong to these weights?"""
        limit = self._spec.max_mismatch
        mean = totals.measure_mismatch().get("mismatch/abs_mean", 0.0)
        if limit is not None and not mean <= limit:
            raise MismatchTooLarge(
                f"engine and learner differ by {mean:.3g} in mean |log-probability| on the same tokens, more than "
                f"learner.max_mismatch = {limit:g}. Either a sync did not reach the engine, or their precisions differ: try "
                "engine.dtype and model.dtype float32."
            )

    def _apply_gradient(self, examples: Sequence[Example], totals: UpdateTotals) -> None:
        norm = whole(torch.nn.utils.clip_grad_norm_(self._policy.trainable.values(), self._config.max_grad_norm)).item()
        if not (math.isfinite(norm) and totals.is_finite()):
            totals.drop_mini_batch()
            self._nonfinite.failed(examples, norm=norm, update=self._num_updates + 1)
            return
        self._nonfinite.passed()
        set_learning_rate(self._optimizer, totals.learning_rate)
        self._optimizer.step()
        totals.optimizer_steps += 1
        totals.grad_norm = max(totals.grad_norm, norm)

    async def publish(self, version: int) -> Snapshot | None:
        """The current weights as the engines load them. Of several ranks the first one writes them; the others give None."""
        async with self._weights:
            return await asyncio.to_thread(self._publisher.publish, version)

    async def open_group(self, world_size: int) -> BroadcastSeat:
        """Where engines meet the learner, of several ranks the first, to receive what it sends. See rollout/delivery.py."""
        return self._publisher.open_group(world_size)

    async def send(self, snapshot: Snapshot, seat: BroadcastSeat) -> None:
        """Broadcast a snapshot while the engines receive it. Raises SnapshotGone when the weights have moved on since."""
        async with contextlib.nullcontext() if self._spec.keep_sent else self._weights:
            # To its end even when nobody waits for it any more: ranks that have begun to give their shares cannot stop half-way.
            await to_the_end(asyncio.to_thread(self._publisher.send, snapshot, seat))

    async def close_group(self) -> None:
        self._publisher.close_group()

    async def lend(self, snapshot: Snapshot, count: int) -> tuple[Loan, ...]:
        """Memory with the weights of a snapshot for so many engines. Raises SnapshotGone when they have moved on since."""
        async with self._weights:
            return await to_the_end(asyncio.to_thread(self._publisher.lend, snapshot, count))

    async def take_back(self) -> None:
        await asyncio.to_thread(self._publisher.take_back)

    async def save(self, folder: str) -> None:
        """All that is needed to go on from here, into an existing folder."""
        await asyncio.to_thread(self._save, Path(folder))

    def _save(self, folder: Path) -> None:
        trainable = self._policy.trainable
        counters = {"schedule_step": torch.tensor(self._schedule_step), "num_updates": torch.tensor(self._num_updates)}
        tensors = weight_tensors(trainable) | optimizer_tensors(self._optimizer, trainable)
        write_tensors(tensors | counters | {"rng": torch.get_rng_state()}, folder / LEARNER, self._ranks)
        if self._spec.reference_every and self._policy.reference_weights is not None:
            with self._policy.as_reference():
                write_tensors(weight_tensors(trainable), folder / REFERENCE, self._ranks)

    async def restore(self, folder: str) -> None:
        """Go on from what `save` wrote, with the learning rate, betas and decay of this learner's config."""
        await asyncio.to_thread(self._restore, Path(folder))

    def _restore(self, folder: Path) -> None:
        if (folder / REFERENCE).exists():
            restore_weights(self._policy, folder / REFERENCE)
            self._policy.refresh_reference()
        restore_weights(self._policy, folder / LEARNER)
        counters = {"schedule_step": torch.tensor(0), "num_updates": torch.tensor(0), "rng": torch.get_rng_state()}
        read_tensors(counters, folder / LEARNER, self._ranks)
        restore_optimizer(self._optimizer, self._policy.trainable, folder / LEARNER, self._ranks)
        self._schedule_step = int(counters["schedule_step"])
        self._num_updates = int(counters["num_updates"])
        torch.set_rng_state(counters["rng"])

    async def export(self, folder: str) -> None:
        """The model in Hugging Face form, adapters merged, with its tokenizer: what other programs load."""
        await asyncio.to_thread(self._export, Path(folder))

    def _export(self, folder: Path) -> None:
        write_model(self._policy, self._spec.model_path, folder)

    async def close(self) -> None:
        """Nothing outlives the learner's process."""
        self._publisher.close()
