"""How weights get from the learner to the engines, and which way fits where they are. The ways themselves are in delivery.py.

| transport | what happens | for |
|---|---|---|
| shm | the learner writes a file under shared memory, every engine maps it | one machine; the default there |
| gloo | the learner, of several ranks the first, broadcasts over TCP, bucket by bucket | several machines; the default there |
| nccl | the same between GPUs; not yet run on any, so it has to be asked for | GPUs that learner and engines do not share |
| ipc | the learner lends memory with its weights, every engine copies; not yet run on a GPU, so on request | one GPU for all |
| adapter | as shm, but LoRA adapters alone, which vLLM applies beside the base weights | large models with LoRA, on request |
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

from sandbox.errors import UserError

Transport = Literal["shm", "gloo", "nccl", "ipc", "adapter"]


class WeightPlacement(NamedTuple):
    """Where learner and engines run. `gpus_are_shared`: there are not enough for each to have its own; `is_one_gpu`: all of the
    learner and of the engines is on the same."""

    device: str
    num_nodes: int = 1
    gpus_are_shared: bool = False
    is_one_gpu: bool = False


def choose_transport(asked: str, placement: WeightPlacement) -> Transport:
    """What `engine.transport` means where the run is placed. Raises UserError for what cannot work there."""
    device, num_nodes, gpus_are_shared, is_one_gpu = placement
    if asked == "auto":
        return "shm" if num_nodes == 1 else "gloo"
    if asked == "nccl" and device != "cuda":
        raise UserError(
            'engine.transport = "nccl" is for GPUs, and this run is on a CPU. Use auto, or gloo, which does the same there.'
        )
    if asked == "nccl" and gpus_are_shared:
        raise UserError(
            'engine.transport = "nccl" needs a GPU of its own for the learner and for every engine process, and there are too few. '
            "Use auto, or fewer workers."
        )
    if asked == "ipc" and num_nodes > 1:
        raise UserError(
            f'engine.transport = "ipc" lends memory of one machine, and this run has {num_nodes} nodes. Use auto, which broadcasts '
            "between them, or a cluster of one node."
        )
    if asked == "ipc" and device == "cuda" and not is_one_gpu:
        raise UserError(
            'engine.transport = "ipc" lends memory of one GPU, and learner and engines are not all on the same. Use auto, or put '
            'them there: placement = "colocated", learner.num_ranks = 1, and engine.num_workers = 1 where there are more GPUs.'
        )
    return cast(Transport, asked)
