"""What vLLM imports into its worker processes, and nobody else: how they load a snapshot. Named by `worker_extension_cls`.

A snapshot is read from the file where the learner wrote it or from memory that it lends, or received from its broadcast. vLLM's
layerwise reload puts the weights where the kernels want them; what it leaves undone on a CPU, and after an update that failed, is
done here.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info
from vllm.platforms import current_platform

from rollout.reading import SnapshotReader
from rollout.types import BroadcastSeat, Loan, Snapshot, WeightSpec

BACKEND = "grpo"

# bfloat16 kernels use the tile registers of CPUs that have them; a process that never asked Linux for them is killed (SIGILL).
torch.cpu._init_amx()

if current_platform.is_cpu():
    import rollout.vllm_cpu  # noqa: F401


@dataclass
class SnapshotInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand: all that is needed comes with each update."""


@dataclass
class SnapshotUpdate(WeightTransferUpdateInfo):
    """The fields of a Snapshot; what is nested in one arrives as lists and dictionaries."""

    version: int
    path: str
    fingerprint: str
    layout: list[list[Any]]
    seat: dict[str, Any] | None
    loan: dict[str, Any] | None

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.version,
            self.path,
            self.fingerprint,
            layout=tuple(WeightSpec(name, dtype, tuple(shape)) for name, dtype, shape in self.layout),
            seat=None if self.seat is None else BroadcastSeat(**self.seat),
            loan=None if self.loan is None else Loan(**self.loan),
        )


class SnapshotTransfer(WeightTransferEngine[SnapshotInit, SnapshotUpdate]):
    """Loads whole snapshots: from a file that this process can map into its memory, from the learner's broadcast or its memory."""

    init_info_cls = SnapshotInit
    update_info_cls = SnapshotUpdate

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reader = SnapshotReader(device=str(self.device))

    def init_transfer_engine(self, init_info: SnapshotInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SnapshotUpdate) -> None:
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
        load_weights: Any = self.model.load_weights
        with disable_mtp_completeness_check(), closing(self._reader.read(update_info.snapshot(), rank=rank)) as weights:
            for some in weights:
                load_weights(iter(some))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_packed_head(self.model)

    def shutdown(self) -> None:
        self._reader.close()


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
    """Mixed into vLLM's worker: more calls for `collective_rpc`."""

    def abandon_weight_update(self) -> None:
        """Undo a weight update that failed or never finished, so that another can start."""
        put_back_layers(self.get_model())  # type: ignore[attr-defined]
        self._weight_update_active = False

    def leave_broadcast(self) -> None:
        """Leave the group of the last broadcast, so that nobody in it waits for this process."""
        self.weight_transfer_engine.shutdown()  # type: ignore[attr-defined]


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SnapshotTransfer)
