"""How weights get from the learner to the engines, and which way fits where they are. The ways themselves are in delivery.py.

| transport | what happens | for |
|---|---|---|
| shm | the learner writes a file under shared memory, every engine maps it | one machine; the default there |
| gloo | the learner, of several ranks the first, broadcasts over TCP, bucket by bucket | several machines; the default there |
| nccl | the same between GPUs; not yet run on any, so it has to be asked for | GPUs that learner and engines do not share |
| adapter | as shm, but LoRA adapters alone, which vLLM applies beside the base weights | large models with LoRA, on request |
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

from sandbox.errors import UserError

Transport = Literal["shm", "gloo", "nccl", "adapter"]


class WeightPlacement(NamedTuple):
    """Where learner and engines run. `gpus_are_shared`: there are not enough for each to have its own."""

    device: str
    num_nodes: int = 1
    gpus_are_shared: bool = False


def choose_transport(asked: str, placement: WeightPlacement) -> Transport:
    """What `engine.transport` means where the run is placed. Raises UserError for what cannot work there."""
    device, num_nodes, gpus_are_shared = placement
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
    return cast(Transport, asked)
