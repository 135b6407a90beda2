"""The policy as a torch model: loading, adapters, log-probabilities of completions, and its weights in the engine's names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grpo.adapters import add_adapters
from grpo.batch import Batch, Example, deal, make_batch, micro_batches, micro_packs
from grpo.learner_config import LoraConfig
from grpo.packing import enable_packing, packed_hidden, padded_hidden
from grpo.ranks import ALONE, Ranks, own_share, whole
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
    it is a copy of the trainable weights, which `keep_reference` makes at the start; `reference_device` is where it waits. Rows go
    through the model without padding, and the prompt of a group once, where the model allows it. With several ranks each holds a
    share of every weight, and what goes through the model, or gives weights, must be called by all.
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
        ranks: Ranks | None = None,
    ) -> None:
        self.device = device
        self.ranks = ranks or Ranks(ALONE, device)
        self._compute_dtype = compute_dtype
        # What is shared out is moved to the device share by share, as the whole may be too large for one: it is tried on the CPU.
        self.model = load_model(model_path, device if self.ranks.count == 1 else "cpu")
        self.is_packed = enable_packing(self.model)
        self._adapters = add_adapters(self.model, lora) if lora.rank > 0 else None
        self.reference_weights: dict[str, Tensor] | None = None
        self._reference_device = reference_device or device
        if activation_checkpointing:
            checkpoint_activations(self.model)
        self._scores = Computation(self.model, self._score)
        self.ranks.shard(self._scores, decoder_layers(self.model))
        if keep_reference and self._adapters is None:
            self.refresh_reference()

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
        shares = {name: own_share(weight) for name, weight in self.trainable.items()}
        self.reference_weights = {name: share.to(self._reference_device, copy=True) for name, share in shares.items()}

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within, the policy is its reference, for scoring and saving. The weights are put back afterwards as they were."""
        if self.reference_weights is None:
            assert self._adapters is not None, "a policy without adapters was not told to keep its reference"
            with self._adapters.disable_adapter(), torch.no_grad():
                yield
            return
        self._swap_with(self.reference_weights)
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap_with(self.reference_weights)

    @torch.no_grad()
    def _swap_with(self, others: dict[str, Tensor]) -> None:
        """In place, one weight at a time: there is never a third copy, and a share stays where the ranks look for it."""
        for name, weight in self.trainable.items():
            share = own_share(weight)
            kept = share.clone()
            share.copy_(others[name])
            others[name].copy_(kept)

    def score(self, batch: Batch, *, temperature: float) -> TokenScores:
        """Log-probability of every completion token under softmax(logits / temperature), and the entropy there. [B, T]

        Both are 0 outside the completions.
        """
        return self._scores(batch, temperature)

    def score_nothing(self) -> Tensor:
        """Take part while other ranks score a micro-batch that this one has none for. -> 0, whose gradient is 0 for every weight"""
        anything = make_batch([Example((0,), (0,), None, 0.0)], [0.0], device=self.device)
        return 0.0 * self.score(anything, temperature=1.0).logprobs.sum()

    def _score(self, batch: Batch, temperature: float) -> TokenScores:
        row, step = batch.mask.nonzero(as_tuple=True)
        with self._autocast():
            before = packed_hidden(self.model, batch) if self.is_packed else padded_hidden(self.model, batch)
            weight, bias = head_weights(self.model)
            dtype = None if self._compute_dtype == torch.float32 else self._compute_dtype
            logprobs, entropy = token_scores(before, weight, bias, batch.token_ids[row, step], temperature=temperature, dtype=dtype)
        outside = logprobs.new_zeros(batch.mask.shape)
        return TokenScores(outside.index_put((row, step), logprobs), outside.index_put((row, step), entropy))

    def micro_batches(self, rows: Sequence[Example], *, tokens_per_micro_batch: int, rows_per_unit: int = 1) -> list[list[int]]:
        """Which of the rows this rank scores together: those of one prompt, or, padded, those of one length.

        There are as many micro-batches on every rank; an empty one is a turn to `score_nothing`.
        """
        cut = micro_packs if self.is_packed else micro_batches
        turns: list[list[list[int]]] = []
        for share in deal(rows, self.ranks.count, rows_per_unit=rows_per_unit):
            chosen = cut([rows[i] for i in share], tokens_per_micro_batch=tokens_per_micro_batch, rows_per_unit=rows_per_unit)
            turns.append([[share[i] for i in indices] for indices in chosen])
        own = turns[self.ranks.rank]
        return own + [[]] * (max(map(len, turns)) - len(own))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self._compute_dtype)

    def engine_weights(self, dtype: torch.dtype, *, device: str = "cpu") -> Iterator[tuple[str, Tensor]]:
        """Every weight in Hugging Face names and the engine's dtype; adapters merged, second names of tied weights left out.

        Adapters are merged on a copy: merging in place and taking them out again would leave rounding behind at every publish.
        Of several ranks each must come to the end; the first one gets the weights, gathered one at a time, the others nothing.
        """
        for name, tensor in self._published().items():
            layer = name.removesuffix(".base_layer.weight")
            if layer != name:
                adapted: Any = self.model.get_submodule(layer)
                tensor = tensor + adapted.get_delta_weight("default").detach()
            weight = whole(tensor)
            if self.ranks.is_first:
                yield engine_name(name), weight.to(device=device, dtype=dtype).contiguous()
            del weight  # before the next one is gathered

    def engine_layout(self, dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `engine_weights` will give, in its order."""
        return {engine_name(name): (dtype, tuple(tensor.shape)) for name, tensor in self._published().items()}

    def _published(self) -> dict[str, Tensor]:
        second_names = model_weights(self.model).aliases
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if ".lora_" not in name and name not in second_names}

    @property
    def adapters(self) -> PeftModel:
        """What switches the adapters off and on, and saves them."""
        assert self._adapters is not None, "a policy that trains all weights has no adapters"
        return self._adapters


class Computation(nn.Module):
    """A computation with a model as a module of its own: what ranks share out is whole while it runs."""

    def __init__(self, model: nn.Module, compute: Callable[..., TokenScores]) -> None:
        super().__init__()
        self.model = model
        self._compute = compute

    def forward(self, *args: Any) -> TokenScores:
        return self._compute(*args)


def engine_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def compute_dtype(name: str, device: str) -> torch.dtype:
    """The dtype that a config names; auto is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        name = "bfloat16" if device == "cuda" else "float32"
    return getattr(torch, name)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


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
