"""The learner: examples in, new weights out. A plain class; grpo/cluster.py makes an actor of it."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grpo.batch import Batch, Example, make_batch, micro_batches, token_weights
from grpo.config import LearnerConfig, ModelConfig
from grpo.metrics import mismatch_metrics
from grpo.objectives import Objective
from grpo.objectives.surrogate import Loss
from grpo.policy import Policy, TokenScores
from rollout.snapshot import write_snapshot
from rollout.types import Snapshot
from sandbox.errors import SystemFault


class MismatchTooLarge(SystemFault):
    """Engine and learner disagree about the same tokens under the same weights: the gradient would be wrong."""


class NotFinite(SystemFault):
    """The loss or its gradient is not a finite number; the weights are as they were before the step."""


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """All that is needed to make a learner.

    `total_steps` are optimizer steps, for the schedule; `max_tokens` is the completion budget; `max_mismatch` is None when completions may
    come from older weights, whose log-probabilities rightly differ.
    """

    model_path: str
    model: ModelConfig
    learner: LearnerConfig
    objective: Objective
    temperature: float
    max_tokens: int
    max_mismatch: float | None
    total_steps: int
    seed: int
    device: str
    engine_dtype: str
    snapshot_folder: str
    num_threads: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What one training step did, by metric name."""

    metrics: dict[str, float]


class Learner:
    """Policy, optimizer and schedule; `update` is one training step."""

    def __init__(self, spec: LearnerSpec) -> None:
        if spec.num_threads is not None:
            torch.set_num_threads(spec.num_threads)
        torch.manual_seed(spec.seed)
        self._spec = spec
        self._config = spec.learner
        self._objective = spec.objective
        self._policy = Policy(
            spec.model_path,
            lora=spec.model.lora,
            compute_dtype=compute_dtype(spec.model.dtype, spec.device),
            device=spec.device,
            keep_reference=spec.objective.needs_reference,
            activation_checkpointing=spec.learner.activation_checkpointing,
        )
        self._optimizer = make_optimizer(self._policy, spec.learner)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: rate_factor(step, spec.learner, spec.total_steps)
        )

    async def update(self, examples: Sequence[Example]) -> Update:
        """One training step: `mini_batches` optimizer steps over the examples, each row used once."""
        return await asyncio.to_thread(self._update, list(examples))

    def _update(self, examples: list[Example]) -> Update:
        started = time.perf_counter()
        totals = _Totals()
        share = math.ceil(len(examples) / self._config.mini_batches)
        for start in range(0, len(examples), share):
            self._optimizer_step(examples[start : start + share], totals)
        return Update(totals.metrics() | {"time/update_s": time.perf_counter() - started})

    def _optimizer_step(self, examples: list[Example], totals: _Totals) -> None:
        lengths = torch.tensor([len(example.token_ids) for example in examples])
        weights = token_weights(lengths, self._objective.average, max_tokens=self._spec.max_tokens).tolist()
        # Rows without a gradient keep their place in the weights, and are not sent through the model at all.
        taught = [i for i, example in enumerate(examples) if self._objective.needs_zero_advantages or example.advantage != 0]
        totals.rows += len(examples)
        totals.skipped += len(examples) - len(taught)
        self._optimizer.zero_grad(set_to_none=True)
        rows = [examples[i] for i in taught]
        for indices in micro_batches(rows, tokens_per_micro_batch=self._config.tokens_per_micro_batch):
            batch = make_batch([rows[i] for i in indices], [weights[taught[i]] for i in indices], device=self._policy.device)
            self._accumulate(batch, totals)
        totals.optimizer_steps += 1
        self._check_mismatch(totals)
        if taught:
            self._apply_gradient(totals)

    def _check_mismatch(self, totals: _Totals) -> None:
        """Before any weight has moved in this training step: do the engine's log-probabilities belong to these weights?"""
        limit = self._spec.max_mismatch
        mean = totals.mismatch().get("mismatch/abs_mean", 0.0)
        if totals.optimizer_steps == 1 and limit is not None and not mean <= limit:
            raise MismatchTooLarge(
                f"engine and learner differ by {mean:.3g} in mean |log-probability| on the same tokens, more than learner.max_mismatch = "
                f"{limit:g}. Either a sync did not reach the engine, or their precisions differ: try engine.dtype and model.dtype float32."
            )

    def _accumulate(self, batch: Batch, totals: _Totals) -> None:
        if self._objective.needs_reference:
            batch = _with_reference(batch, self._policy.score_reference(batch, temperature=self._spec.temperature))
        scores = self._policy.score(batch, temperature=self._spec.temperature)
        loss = self._objective.loss(scores.logprobs, batch)
        loss.value.backward()
        totals.add(batch, scores, loss)

    def _apply_gradient(self, totals: _Totals) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable.values(), self._config.max_grad_norm)
        if not torch.isfinite(norm):
            raise NotFinite(
                f"the gradient norm is {norm.item()}. The weights are unchanged. Lower learner.learning_rate, or use model.dtype = float32."
            )
        totals.grad_norm = max(totals.grad_norm, norm.item())
        totals.learning_rate = self._schedule.get_last_lr()[0]
        self._optimizer.step()
        self._schedule.step()

    async def publish(self, version: int) -> Snapshot:
        """The current weights as the engines load them."""
        return await asyncio.to_thread(self._publish, version)

    def _publish(self, version: int) -> Snapshot:
        weights = self._policy.engine_weights(getattr(torch, self._spec.engine_dtype))
        return write_snapshot(weights, version=version, folder=Path(self._spec.snapshot_folder))

    async def save(self, folder: str) -> None:
        """All that is needed to go on from here, into an existing folder."""
        await asyncio.to_thread(self._save, Path(folder))

    def _save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {name: tensor.detach().contiguous() for name, tensor in self._policy.trainable.items()},
            folder / "trainable.safetensors",
        )
        state = {"optimizer": self._optimizer.state_dict(), "schedule": self._schedule.state_dict(), "rng": torch.get_rng_state()}
        torch.save(state, folder / "optimizer.pt")

    async def restore(self, folder: str) -> None:
        """Go on from what `save` wrote."""
        await asyncio.to_thread(self._restore, Path(folder))

    def _restore(self, folder: Path) -> None:
        from safetensors.torch import load_file

        saved = load_file(folder / "trainable.safetensors")
        trainable = self._policy.trainable
        if saved.keys() != trainable.keys():
            odd = sorted(saved.keys() ^ trainable.keys())[:3]
            raise SystemFault(f"{folder}: its weights are not those of this model (differing names: {', '.join(odd)}).")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(saved[name])
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])

    async def export(self, folder: str) -> None:
        """The model in Hugging Face form, adapters merged, with its tokenizer: what other programs load."""
        await asyncio.to_thread(self._export, Path(folder))

    def _export(self, folder: Path) -> None:
        from grpo.policy import load_model
        from rollout.prompting import load_tokenizer

        model = load_model(self._spec.model_path)
        model.load_state_dict(dict(self._policy.engine_weights(torch.float32)), strict=False)
        model.save_pretrained(folder)
        load_tokenizer(self._spec.model_path).save_pretrained(folder)

    async def close(self) -> None:
        """Nothing outlives the learner's process."""


class _Totals:
    """What the micro-batches of a training step add up to."""

    def __init__(self) -> None:
        self.rows = 0
        self.skipped = 0
        self.optimizer_steps = 0
        self.grad_norm = 0.0
        self.learning_rate = 0.0
        self._tokens = 0
        self._loss = 0.0
        self._sums: dict[str, float] = {"policy/entropy": 0.0}
        self._differences: list[Tensor] = []

    def add(self, batch: Batch, scores: TokenScores, loss: Loss) -> None:
        self._tokens += int(batch.completion_lengths.sum())
        self._loss += loss.value.item()
        for name, value in (loss.sums | {"policy/entropy": scores.entropy.sum()}).items():
            self._sums[name] = self._sums.get(name, 0.0) + value.item()
        if batch.behavior_logprobs is not None and self.optimizer_steps == 0:
            self._differences.append((scores.logprobs.detach() - batch.behavior_logprobs)[batch.mask].cpu())

    def mismatch(self) -> dict[str, float]:
        """Of the first optimizer step only: the later ones are meant to differ from the engine."""
        return mismatch_metrics(torch.cat(self._differences)) if self._differences else {}

    def metrics(self) -> dict[str, float]:
        return {
            "loss/value": self._loss / self.optimizer_steps,
            "policy/grad_norm": self.grad_norm,
            "policy/learning_rate": self.learning_rate,
            "learner/rows": self.rows,
            "learner/skipped_fraction": self.skipped / self.rows,
            "learner/optimizer_steps": self.optimizer_steps,
            **{name: value / max(1, self._tokens) for name, value in self._sums.items()},
            **self.mismatch(),
        }


def _with_reference(batch: Batch, ref_logprobs: Tensor) -> Batch:
    return dataclasses.replace(batch, ref_logprobs=ref_logprobs)


def compute_dtype(name: str, device: str) -> torch.dtype:
    """The dtype that a config names; auto is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        name = "bfloat16" if device == "cuda" else "float32"
    return getattr(torch, name)


def make_optimizer(policy: Policy, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; gains and biases are left alone."""
    trainable = list(policy.trainable.values())
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas)


def rate_factor(step: int, config: LearnerConfig, total_steps: int) -> float:
    """What the peak learning rate is multiplied with at optimizer step `step` (0 is the first)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    if config.schedule == "linear":
        return 1.0 - progress
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
