"""LoRA adapters (arXiv:2106.09685): put on a model, and as peft and vLLM load them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo.learner_config import LoraConfig
from grpo.ranks import whole
from rollout.errors import ModelError
from rollout.weights import model_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from grpo.policy import Policy


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Put LoRA adapters on the target layers and freeze everything else, in place. -> what switches the adapters off and on"""
    import peft

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha or 2 * lora.rank, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    try:
        adapters = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.target_modules = {targets!r} does not fit this model: {error}") from None
    for names in model_weights(model).aliases.items():
        if any(".base_layer." in name for name in names):
            raise ModelError(
                f"model.lora.target_modules = {targets!r} includes a weight that serves in two places ({' and '.join(names)}): the "
                "adapter of one would change the other when merged. Leave the embedding and the head out."
            )
    return adapters  # type: ignore[return-value]


def adapter_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the adapters on the CPU, in peft's names. Of several ranks as `Policy.engine_weights`."""
    for name, parameter in policy.trainable.items():
        weight = whole(parameter.detach())
        if policy.ranks.is_first:
            yield file_name(name), weight.to(device="cpu", dtype=dtype).contiguous()


def adapter_layout(policy: Policy, dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """What `adapter_weights` will give, in its order."""
    return {file_name(name): (dtype, tuple(parameter.shape)) for name, parameter in policy.trainable.items()}


def file_name(name: str) -> str:
    """The name that a weight of an adapter has in peft's files."""
    return "base_model.model." + name.replace(".default.", ".")
