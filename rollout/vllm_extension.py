"""What vLLM imports into its worker processes, and nobody else: the `shm` weight transport. Named by `worker_extension_cls`.

A snapshot is read from the file where the learner wrote it. vLLM's layerwise reload puts the weights where the kernels want them;
what it leaves undone on a CPU, and after an update that failed, is done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

BACKEND = "shm"

# bfloat16 kernels use the tile registers of CPUs that have them; a process that never asked Linux for them is killed (SIGILL).
torch.cpu._init_amx()


@dataclass
class SharedFileInit(WeightTransferInitInfo):
    """Nothing to agree on: the file's path comes with each update."""


@dataclass
class SharedFileUpdate(WeightTransferUpdateInfo):
    """A safetensors file with all weights of the model, in Hugging Face names."""

    path: str


class SharedFileTransfer(WeightTransferEngine[SharedFileInit, SharedFileUpdate]):
    """Loads whole snapshots from a file that this process can map into its memory."""

    init_info_cls = SharedFileInit
    update_info_cls = SharedFileUpdate

    def init_transfer_engine(self, init_info: SharedFileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedFileUpdate) -> None:
        with safe_open(update_info.path, framework="pt") as file:
            # By name, so that one layer is complete before the next begins: a layer is buffered until all of it is there.
            load_weights: Any = self.model.load_weights
            load_weights((name, file.get_tensor(name)) for name in sorted(file.keys()))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_packed_head(self.model)

    def shutdown(self) -> None:
        pass


def refresh_packed_head(model: nn.Module) -> None:
    """Pack the output head anew. On a CPU it multiplies with a packed copy of its weight; when the weight is tied to the embedding,
    the reload fills it through the embedding and never learns that the head has a copy."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def put_back_layers(model: nn.Module) -> None:
    """Give layers that wait for weights their old tensors back. The values may be a mixture; the model is whole in structure, and
    the next update starts from nothing instead of going on with what this one had buffered."""
    for layer in model.modules():
        waiting = get_layerwise_info(layer)
        if waiting.can_load():
            _place_kernel_tensors(layer, waiting)
            waiting.reset()


class WorkerExtension:
    """Mixed into vLLM's worker: one more call for `collective_rpc`."""

    def abandon_weight_update(self) -> None:
        """Undo a weight update that failed or never finished, so that another can start."""
        put_back_layers(self.get_model())  # type: ignore[attr-defined]
        self._weight_update_active = False


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SharedFileTransfer)
