"""The policy as a torch model: loading, adapters, log-probabilities of completions, and its weights in the engine's names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grpo.batch import Batch, Example, micro_batches, micro_packs
from grpo.config import LoraConfig
from grpo.packing import enable_packing, packed_hidden, padded_hidden
from grpo.token_scores import TokenScores, token_scores
from rollout.errors import ModelError
from rollout.weights import model_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Policy:
    """A causal language model that scores completions at a temperature.

    Master weights are float32; with `compute_dtype` bfloat16 the forward pass is autocast. There is never dropout. With adapters
    the base weights are frozen, and the reference is the model with its adapters switched off until `refresh_reference`. Otherwise
    it is a copy of the trainable weights, which `keep_reference` makes at the start; `reference_device` is where it waits. On a CPU
    rows go through the model without padding, and the prompt of a group once, where the model allows it.
    """

    def __init__(
        self,
        model_path: str,
        *,
        lora: LoraConfig,
        compute_dtype: torch.dtype,
        device: str,
        keep_reference: bool = False,
        reference_device: str | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        self.device = device
        self._compute_dtype = compute_dtype
        self.model = load_model(model_path, device)
        # TODO when measured on a GPU: there packing may call for another attention kernel, so rows are padded.
        self.is_packed = device == "cpu" and enable_packing(self.model)
        self._adapters = add_adapters(self.model, lora) if lora.rank > 0 else None
        self.reference_weights: dict[str, Tensor] | None = None
        self._reference_device = reference_device or device
        if keep_reference and self._adapters is None:
            self.refresh_reference()
        if activation_checkpointing:
            checkpoint_activations(self.model)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def max_length(self) -> int | None:
        """Tokens that a row may have, prompt and completion together; None when the model names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """Make the policy as it is now its own reference."""
        copies = {name: weight.detach().to(self._reference_device, copy=True) for name, weight in self.trainable.items()}
        self.reference_weights = copies

    def restore_reference(self, weights: dict[str, Tensor]) -> None:
        self.reference_weights = {name: weight.to(self._reference_device) for name, weight in weights.items()}

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within, the policy is its reference. For scoring without gradient: the weights are put back afterwards as they were."""
        if self.reference_weights is None:
            assert self._adapters is not None, "a policy without adapters was not told to keep its reference"
            with self._adapters.disable_adapter(), torch.no_grad():
                yield
            return
        current = {name: weight.data for name, weight in self.trainable.items()}
        try:
            for name, weight in self.trainable.items():
                weight.data = self.reference_weights[name].to(weight.device)
            with torch.no_grad():
                yield
        finally:
            for name, weight in self.trainable.items():
                weight.data = current[name]

    def score(self, batch: Batch, *, temperature: float) -> TokenScores:
        """Log-probability of every completion token under softmax(logits / temperature), and the entropy there. [B, T]

        Both are 0 outside the completions.
        """
        row, step = batch.mask.nonzero(as_tuple=True)
        with self._autocast():
            before = packed_hidden(self.model, batch) if self.is_packed else padded_hidden(self.model, batch)
            weight, bias = head_weights(self.model)
            dtype = None if self._compute_dtype == torch.float32 else self._compute_dtype
            logprobs, entropy = token_scores(before, weight, bias, batch.token_ids[row, step], temperature=temperature, dtype=dtype)
        outside = logprobs.new_zeros(batch.mask.shape)
        return TokenScores(outside.index_put((row, step), logprobs), outside.index_put((row, step), entropy))

    def micro_batches(self, rows: Sequence[Example], *, tokens_per_micro_batch: int, rows_per_unit: int = 1) -> list[list[int]]:
        """Which rows to score together: those of one prompt, or, padded, those of one length."""
        cut = micro_packs if self.is_packed else micro_batches
        return cut(rows, tokens_per_micro_batch=tokens_per_micro_batch, rows_per_unit=rows_per_unit)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self._compute_dtype)

    def engine_weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Every weight in Hugging Face names and the engine's dtype; adapters merged, second names of tied weights left out.

        Adapters are merged on a copy: merging in place and taking them out again would leave rounding behind at every publish.
        """
        second_names = model_weights(self.model).aliases
        for name, tensor in self.model.state_dict().items():
            if ".lora_" in name or name in second_names:
                continue
            layer = name.removesuffix(".base_layer.weight")
            if layer != name:
                adapted: Any = self.model.get_submodule(layer)
                tensor = tensor + adapted.get_delta_weight("default").detach()
            yield name.replace(".base_layer.", "."), tensor.to(device="cpu", dtype=dtype).contiguous()


def load_model(model_path: str, device: str = "cpu") -> PreTrainedModel:
    """A causal language model in float32 and evaluation mode. Raises ModelError when there is none or the learner cannot use it."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"{model_path}: no causal language model can be loaded ({type(error).__name__}: {reason}). Expected a folder with "
            "config.json and safetensors, or a name on the Hugging Face hub that can be reached."
        ) from None
    model, info = loading
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{model_path}: {len(missing)} weights of {type(model).__name__} are not in its files, first {missing[0]}; they would "
            "be random. Give the folder of a whole causal language model."
        )
    model.to(device).eval()
    check_logits(model)
    return model


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """Refuse a model that does more to its logits than apply the head: scores would silently differ from the engine's.

    The head is made to answer with logits so large that no cap or scale would leave them as they are.
    """
    head = model.get_output_embeddings()
    head_inputs: list[Tensor] = []

    def large(logits: Tensor) -> Tensor:
        return torch.linspace(-100, 100, logits.shape[-1], device=logits.device).expand_as(logits)

    def answer(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        head_inputs.append(inputs[0])
        return large(logits)

    is_plain = head is not None
    if head is not None:
        ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
        with head.register_forward_hook(answer):
            logits = model(input_ids=ids, use_cache=False).logits
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        is_plain = torch.equal(logits, large(logits)) and torch.allclose(hidden, head_inputs[0], rtol=1e-4, atol=1e-4)
    if not is_plain:
        raise ModelError(
            f"{type(model).__name__} does not compute its logits by a plain output head (it caps or scales them, or has none), "
            "which the learner does not support. Use a model family that does, such as Qwen2, Qwen3 or Llama."
        )


def head_weights(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the output head; with adapters on it, those of the sum, through which the adapters learn."""
    head: Any = model.get_output_embeddings()
    layer = getattr(head, "base_layer", head)
    if layer is head or head.disable_adapters:
        return layer.weight, layer.bias
    return layer.weight + head.get_delta_weight("default"), layer.bias


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Have every decoder layer compute its activations again in the backward pass instead of keeping them."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        # transformers does so in training mode only. The modules inside stay in evaluation mode: no dropout.
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


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
