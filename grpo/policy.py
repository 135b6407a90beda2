"""The policy as a torch model: loading, adapters, log-probabilities of completions, and its weights in the engine's names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo.batch import Batch
from grpo.config import LoraConfig
from rollout.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits held at one time: beyond this many elements they are made chunk by chunk, and again in the backward pass.
MAX_LOGITS = 1 << 25


class TokenScores(NamedTuple):
    """logprobs [B, T], with gradient, 0 outside the completions; entropy [B, T] in nats, without."""

    logprobs: Tensor
    entropy: Tensor


class Policy:
    """A causal language model that scores completions at a temperature.

    Master weights are float32; with `compute_dtype` bfloat16 the forward pass is autocast. With adapters the base weights are frozen, and
    `reference()` switches the adapters off; without, it needs `keep_reference`, which holds a frozen copy.
    """

    def __init__(
        self,
        model_path: str,
        *,
        lora: LoraConfig,
        compute_dtype: torch.dtype,
        device: str,
        keep_reference: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        model = load_model(model_path)
        if activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.has_adapters = lora.rank > 0
        self._reference = (
            load_model(model_path).requires_grad_(False).eval().to(device) if keep_reference and not self.has_adapters else None
        )
        self.model: nn.Module = add_adapters(model, lora) if self.has_adapters else model
        self.model.to(device).train()
        self.device = device
        self._compute_dtype = compute_dtype
        check_logits(model, device)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def score(self, batch: Batch, *, temperature: float) -> TokenScores:
        """Log-probability of every completion token under softmax(logits / temperature), and the entropy there."""
        return self._score(self._base_model(), batch, temperature)

    @torch.no_grad()
    def score_reference(self, batch: Batch, *, temperature: float) -> Tensor:
        """Log-probabilities under the frozen policy this one started from. [B, T]"""
        if self._reference is not None:
            return self._score(self._reference, batch, temperature).logprobs
        assert self.has_adapters, "a policy without adapters was not told to keep its reference"
        with self.model.disable_adapter():  # type: ignore[operator]
            return self._score(self._base_model(), batch, temperature).logprobs

    def _base_model(self) -> nn.Module:
        return self.model.get_base_model() if self.has_adapters else self.model  # type: ignore[operator]

    def _score(self, model: nn.Module, batch: Batch, temperature: float) -> TokenScores:
        with self._autocast():
            # Rows are padded on the right and attention is causal: no completion token can see padding, so no attention mask is needed.
            hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # type: ignore[operator]
            steps = torch.arange(batch.token_ids.shape[1], device=hidden.device)
            before = (batch.prompt_lengths[:, None] - 1 + steps).clamp(max=hidden.shape[1] - 1)
            rows = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(before)
            picked = hidden[rows[batch.mask], before[batch.mask]]
            logprobs, entropy = _token_scores(model, picked, batch.token_ids[batch.mask], temperature)
        empty = torch.zeros(batch.mask.shape, device=hidden.device)
        return TokenScores(empty.masked_scatter(batch.mask, logprobs), empty.masked_scatter(batch.mask, entropy))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self._compute_dtype)

    def engine_weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Every weight in Hugging Face names and the engine's dtype, adapters merged, tied copies left out."""
        tied = tied_weight_names(self._base_model())
        for name, tensor in merged_weights(self.model):
            if name not in tied:
                yield name, tensor.detach().to(device="cpu", dtype=dtype).contiguous()


def load_model(model_path: str) -> PreTrainedModel:
    """A causal language model in float32. Raises ModelError when there is none."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"{model_path}: no causal language model can be loaded ({type(error).__name__}: {reason}). Expected a folder with config.json "
            "and safetensors, or a name on the Hugging Face hub that can be reached."
        ) from None


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> nn.Module:
    """The model with LoRA adapters on the target layers, everything else frozen."""
    import peft

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha or 2 * lora.rank, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.target_modules = {targets!r} does not fit this model: {error}") from None


@torch.no_grad()
def check_logits(model: PreTrainedModel, device: str) -> None:
    """Refuse a model that does more to its logits than apply the head: scores would silently differ from the engine's."""
    ids = torch.arange(8, device=device)[None] % model.config.vocab_size
    expected = model(input_ids=ids, use_cache=False).logits
    actual = model.get_output_embeddings()(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(actual.float(), expected.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{type(model).__name__} transforms its logits after the output head (soft-capping or scaling), which the learner does not "
            "support. Use a model family without it, such as Qwen2, Qwen3 or Llama."
        )


def _token_scores(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """hidden [M, H], targets [M] -> logprobs [M], entropy [M]; the [M, V] logits exist only chunk by chunk when they are large."""
    head = model.get_output_embeddings()  # type: ignore[operator]

    def scores(hidden_chunk: Tensor, target_chunk: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden_chunk).float() / temperature
        normalizer = logits.logsumexp(-1)
        with torch.no_grad():
            entropy = normalizer - ((logits - normalizer[:, None]).exp() * logits).sum(-1)
        return logits.gather(-1, target_chunk[:, None])[:, 0] - normalizer, entropy

    vocabulary = head.weight.shape[0]
    if len(targets) * vocabulary <= MAX_LOGITS:
        return scores(hidden, targets)
    size = max(1, MAX_LOGITS // vocabulary)
    chunks = [
        checkpoint(scores, hidden_chunk, target_chunk, use_reentrant=False)
        for hidden_chunk, target_chunk in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in chunks]), torch.cat([entropy for _, entropy in chunks])


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of the model as if it had no adapters: each adapted layer with its adapter's product added, on a copy.

    Merging in place and taking it out again would leave rounding behind in the base weights at every publish.
    """
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        merged = tensor + deltas[layer] if layer != name and layer in deltas else tensor
        yield name.removeprefix("base_model.model.").replace(".base_layer.", "."), merged


def tied_weight_names(model: nn.Module) -> frozenset[str]:
    """Names in the state dict that share memory with an earlier one, such as a head tied to the embedding."""
    seen: set[int] = set()
    tied: set[str] = set()
    for name, tensor in model.state_dict().items():
        key = name.replace(".base_layer.", ".")
        if tensor.data_ptr() in seen and tensor.numel():
            tied.add(key)
        seen.add(tensor.data_ptr())
    return frozenset(tied)
