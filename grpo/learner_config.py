"""What can be set about the policy and how it learns, and whether the packages for it are here."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sandbox.errors import UserError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraConfig(_Part):
    """[model.lora]: train adapters instead of all weights (LoRA, arXiv:2106.09685)."""

    rank: int = Field(default=0, ge=0, description="Rank of the adapters; 0 trains all weights.")
    alpha: int | None = Field(default=None, ge=1, description="Adapters are scaled by alpha / rank. None: 2 * rank.")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="Layers that get adapters; all-linear leaves out the head."
    )


class ModelConfig(_Part):
    """[model]: the policy."""

    path: str = Field(
        default="tiny", description="Model folder or hub name; `tiny` makes the embedded half-million-parameter model."
    )
    start_from: str | None = Field(
        default=None,
        description="Config file of an earlier stage: its final model is used, and it is trained first when it has not been.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Precision of the learner's forward pass; master weights stay float32. auto: bfloat16 on a GPU."
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="Adapters.")


class LearnerConfig(_Part):
    """[learner]: from a loss to new weights. AdamW (arXiv:1711.05101)."""

    learning_rate: float = Field(default=1e-6, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps over which the learning rate rises from 0 to its peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="What it does after that, down to 0 at the end."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay, on matrices only.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's moving averages.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw",
        description="How AdamW keeps its moments: adamw in float32, 8 bytes a weight; adamw_8bit (arXiv:2110.02861) those of large "
        "matrices, but not the embedding's, in 8 bits, 2.1 bytes a weight. It needs the extra adamw-8bit.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    mini_batches: int = Field(
        default=1, ge=1, description="Optimizer steps per training step; each takes its share of the rows once."
    )
    tokens_per_micro_batch: int = Field(default=16384, ge=1, description="Tokens in one forward pass, padding included.")
    num_ranks: int = Field(
        default=1,
        ge=1,
        description="Processes that learn together: each holds its share of the weights (FSDP2) and learns its share of the rows. "
        "On a GPU each needs one of its own.",
    )
    activation_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")
    max_mismatch: float = Field(
        default=0.05, gt=0, description="Stop when engine and learner disagree by more than this mean |log-probability| on policy."
    )
    reference_every: int = Field(
        default=0, ge=0, description="Training steps after which the policy becomes the new reference; 0: it stays where it began."
    )
    reference_on_cpu: bool = Field(
        default=False, description="Keep the reference's weights in the computer's memory while they are not needed."
    )


def check_optimizer(config: LearnerConfig) -> None:
    """Raise UserError where the package of the chosen optimizer is not installed."""
    if config.optimizer == "adamw_8bit":
        check_torchao('learner.optimizer is "adamw_8bit"', otherwise="use --set learner.optimizer=adamw, which needs nothing more")


def check_torchao(wanted_because: str, *, otherwise: str) -> None:
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            f"{wanted_because}, but the package torchao is not installed. pip install 'grpo-reasoning[adamw-8bit]', or {otherwise}."
        )
