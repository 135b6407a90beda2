"""The learner: examples in, new weights out. A plain class; grpo/cluster.py makes an actor of it."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grpo.batch import Batch, Example, make_batch, micro_batches, token_weights
from grpo.config import LearnerConfig, ModelConfig
from grpo.metrics import UpdateTotals
from grpo.objectives import Objective
from grpo.policy import Policy, load_model
from rollout.snapshot import write_snapshot
from rollout.types import Snapshot
from rollout.weights import model_weights
from sandbox.errors import SystemFault, UserError


class MismatchTooLarge(SystemFault):
    """Engine and learner disagree about the same tokens under the same weights: the gradient would be wrong."""


class NotFinite(SystemFault):
    """The loss or its gradient is not a finite number; the weights are as they were before the optimizer step."""


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """All that is needed to make a learner.

    `total_steps` are optimizer steps, for the schedule; `max_tokens` is the completion budget; `max_mismatch` is None when
    completions may come from older weights, whose log-probabilities rightly differ.
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
        self._schedule_step = 0  # mini-batches done, those without a gradient included: the schedule ends when the run does

    async def update(self, examples: Sequence[Example]) -> Update:
        """One training step: `mini_batches` optimizer steps over the examples, each row used once.

        A mini-batch without a gradient moves nothing. Raises MismatchTooLarge before any weight has moved, NotFinite before the
        optimizer step it concerns.
        """
        return await asyncio.to_thread(self._update, list(examples))

    def _update(self, examples: list[Example]) -> Update:
        started = time.perf_counter()
        totals = UpdateTotals()
        share = len(examples) / self._config.mini_batches
        for i in range(self._config.mini_batches):
            self._learn(examples[round(i * share) : round((i + 1) * share)], totals)
        return Update(totals.metrics() | {"time/update_s": time.perf_counter() - started})

    def _learn(self, examples: list[Example], totals: UpdateTotals) -> None:
        """One optimizer step, if there is anything to learn."""
        totals.learning_rate = self._config.learning_rate * rate_factor(self._schedule_step, self._config, self._spec.total_steps)
        self._schedule_step += 1
        if self._compute_gradient(examples, totals):
            if not totals.optimizer_steps:
                self._check_mismatch(totals)
            self._apply_gradient(totals)

    def _compute_gradient(self, examples: list[Example], totals: UpdateTotals) -> bool:
        """Leave the gradient of the loss over these examples with the weights. False when no example has one."""
        lengths = torch.tensor([len(example.token_ids) for example in examples])
        weights = token_weights(lengths, self._objective.average, max_tokens=self._spec.max_tokens).tolist()
        # Rows without a gradient keep their place in the weights, and are not sent through the model at all.
        taught = [i for i, example in enumerate(examples) if self._has_gradient(example)]
        rows = [examples[i] for i in taught]
        totals.count(examples, rows)
        self._optimizer.zero_grad()
        for indices in micro_batches(rows, tokens_per_micro_batch=self._config.tokens_per_micro_batch):
            batch = make_batch([rows[i] for i in indices], [weights[taught[i]] for i in indices], device=self._policy.device)
            self._accumulate(batch, totals)
        return bool(rows)

    def _has_gradient(self, example: Example) -> bool:
        return bool(example.token_ids) and (example.advantage != 0 or self._objective.needs_zero_advantages)

    def _accumulate(self, batch: Batch, totals: UpdateTotals) -> None:
        temperature = self._spec.temperature
        if self._objective.needs_reference:
            ref_logprobs = self._policy.score_reference(batch, temperature=temperature)
            batch = dataclasses.replace(batch, ref_logprobs=ref_logprobs)
        scores = self._policy.score(batch, temperature=temperature)
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

    def _apply_gradient(self, totals: UpdateTotals) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self._policy.trainable.values(), self._config.max_grad_norm).item()
        if not math.isfinite(norm):
            raise NotFinite(
                f"the gradient norm is {norm}. The weights are as before this optimizer step. Lower learner.learning_rate, or use "
                "model.dtype = float32."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = totals.learning_rate
        self._optimizer.step()
        totals.optimizer_steps += 1
        totals.grad_norm = max(totals.grad_norm, norm)

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
        state = {"optimizer": self._optimizer.state_dict(), "schedule_step": self._schedule_step, "rng": torch.get_rng_state()}
        torch.save(state, folder / "optimizer.pt")

    async def restore(self, folder: str) -> None:
        """Go on from what `save` wrote, with the learning rate, betas and decay of this learner's config."""
        await asyncio.to_thread(self._restore, Path(folder))

    def _restore(self, folder: Path) -> None:
        from safetensors.torch import load_file

        saved, trainable = load_file(folder / "trainable.safetensors"), self._policy.trainable
        check_same_weights(saved, trainable, where=str(folder))
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(saved[name])
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        options = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict(state["optimizer"] | {"param_groups": options})
        self._schedule_step = state["schedule_step"]
        torch.set_rng_state(state["rng"])

    async def export(self, folder: str) -> None:
        """The model in Hugging Face form, adapters merged, with its tokenizer: what other programs load."""
        await asyncio.to_thread(self._export, Path(folder))

    def _export(self, folder: Path) -> None:
        from rollout.prompting import load_tokenizer

        model = load_model(self._spec.model_path)
        missing, unexpected = model.load_state_dict(dict(self._policy.engine_weights(torch.float32)), strict=False)
        if odd := sorted({*missing, *unexpected} - model_weights(model).aliases.keys()):
            raise SystemFault(f"{folder}: the policy and {self._spec.model_path} differ in {len(odd)} weights, first {odd[0]}.")
        model.save_pretrained(folder)
        load_tokenizer(self._spec.model_path).save_pretrained(folder)

    async def close(self) -> None:
        """Nothing outlives the learner's process."""


def check_same_weights(saved: Mapping[str, Tensor], trainable: Mapping[str, Tensor], *, where: str) -> None:
    """Raise UserError unless the weights of a checkpoint have the names and shapes of those that are trained."""
    found, expected = ({name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (saved, trainable))
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if odd:
        raise UserError(
            f"{where}: its weights are not those of this model: {len(odd)} differ, first {odd[0]}, with shape "
            f"{found.get(odd[0], 'none')} there and {expected.get(odd[0], 'none')} here. Resume with the model and model.lora it "
            "was saved with, or start over with --fresh."
        )


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
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, fused=True)


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
