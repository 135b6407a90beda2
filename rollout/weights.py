"""Which weights a model has, and whether a snapshot holds just these. Reading them into an engine is the engine's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rollout.errors import ModelError, SyncFailed
from rollout.types import Snapshot

if TYPE_CHECKING:
    from torch.nn import Module

Shapes = dict[str, tuple[int, ...]]


class ModelWeights(NamedTuple):
    """Names and shapes of what a snapshot must hold; of what it may hold besides (buffers); and second names of tied weights."""

    required: Shapes
    optional: Shapes
    aliases: dict[str, str]


def model_weights(model: Module) -> ModelWeights:
    """The weights of a transformers model, on whatever device, the meta device included."""
    required = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    every_name = model.named_parameters(remove_duplicate=False)
    aliases = {name: first_names[id(parameter)] for name, parameter in every_name if name not in required}
    optional = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in required and name not in aliases}
    return ModelWeights(required, optional, aliases)


def weights_of_folder(model_path: str) -> ModelWeights:
    """The weights that the model's config asks for, found without reading any."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(f"the model {model_path} cannot be loaded: {error}") from error
    return model_weights(model)


def check_fit(snapshot: Snapshot, weights: ModelWeights) -> None:
    """Raise SyncFailed unless the snapshot holds all weights of the model, in their shapes, and nothing unknown."""
    found = {spec.name: spec.shape for spec in snapshot.layout} if snapshot.is_sent else _shapes_in_file(snapshot, weights)
    _check_names(snapshot.version, {name: shape for name, shape in found.items() if name not in weights.aliases}, weights)


def check_adapter(snapshot: Snapshot, weights: ModelWeights, *, rank: int) -> None:
    """Raise SyncFailed unless the snapshot holds adapters of this rank, or less, for layers of the model: both halves of each."""
    found = _shapes_in_file(snapshot, weights)
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in found}
    for layer in sorted(layers):
        shape = weights.required.get(f"{layer}.weight", ())
        halves = [found.get(f"base_model.model.{layer}.lora_{half}.weight", (0, 0)) for half in "AB"]
        width = halves[0][0]
        if len(shape) != 2 or not 1 <= width <= rank or halves != [(width, shape[1]), (shape[0], width)]:
            raise SyncFailed(
                f"the adapter of version {snapshot.version} does not fit the model: for {layer or next(iter(found))}, whose weight "
                f"is {shape or 'not there'}, it has {halves[0]} and {halves[1]}. Publish adapters of rank {rank} at most, of the "
                "model that the engine was started with."
            )
    if len(found) != 2 * len(layers) or not layers:
        raise SyncFailed(
            f"the adapter of version {snapshot.version} has {len(found)} weights for {len(layers)} layers, not two each."
        )


def _shapes_in_file(snapshot: Snapshot, weights: ModelWeights) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(snapshot.path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for alias, name in weights.aliases.items():
                if alias in found and name in found and not file.get_tensor(alias).equal(file.get_tensor(name)):
                    raise SyncFailed(f"the snapshot of version {snapshot.version} has two values for one weight: {name}, {alias}.")
    except (OSError, SafetensorError) as error:
        raise SyncFailed(f"the snapshot {snapshot.path} is not a safetensors file: {error}. Publish it again.") from error
    return found


def _check_names(version: int, found: Mapping[str, tuple[int, ...]], weights: ModelWeights) -> None:
    known = weights.required | weights.optional
    missing = [name for name in weights.required if name not in found]
    unknown = [name for name in found if name not in known]
    misshapen = [f"{name} {shape} for {known[name]}" for name, shape in found.items() if known.get(name, shape) != shape]
    for names, fault in ((missing, "missing"), (unknown, "unknown to the model"), (misshapen, "of another shape")):
        if names:
            raise SyncFailed(
                f"the snapshot of version {version} does not fit the model: {len(names)} weights are {fault}, first {names[0]}. "
                "Publish all weights of the model that the engine was started with, LoRA merged."
            )
