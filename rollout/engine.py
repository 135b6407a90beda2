"""What every inference engine can do, and the settings they share. The engines themselves are vllm_engine.py and hf_engine.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from rollout.sampling import Sampling
from rollout.types import Generation, Snapshot


class EngineConfig(BaseModel):
    """[engine]: which inference engine samples, how many of them, and how large they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm", "hf"] = Field(default="vllm", description="vllm, or hf: a plain decoding loop over transformers.")
    num_workers: int = Field(default=1, ge=1, description="Rollout workers, each a Ray actor with an engine of its own.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Weights and activations of the engine. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="Longest prompt plus completion in tokens. None: what the model was built for."
    )
    max_num_seqs: int = Field(default=256, ge=1, description="Sequences decoded at the same time by one worker.")
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, le=1.0, description="Share of GPU memory the vLLM engine takes.")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share one engine (vLLM only).")
    heartbeat_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds a worker may take to answer between two steps before it counts as hung and is replaced; a load "
        "may take 5 times as long, a start 15 times. Too short for a compile or a long prompt kills workers that are only busy.",
    )
    transport: Literal["auto", "shm", "gloo", "nccl", "ipc", "adapter"] = Field(
        default="auto",
        description="How weights reach the engines: shm, a file in shared memory; gloo, a broadcast over TCP; nccl, between GPUs; "
        "ipc, memory of the GPU that learner and engines share; adapter, a file with LoRA adapters alone, not merged (vLLM only). "
        "auto: shm on one machine, gloo on several.",
    )
    kv_cache_mb: int = Field(default=256, ge=16, description="Key-value cache on a CPU, in MiB (vLLM only).")


class Engine(Protocol):
    """One model that samples. Its constructor may take a while; all methods are safe to call concurrently."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, n: int, seed: int) -> list[Generation]:
        """n continuations of one prompt; continuation i is sampled with `seed + i`, whatever else is in the batch.

        Raises SyncFailed when no snapshot has been loaded yet, or the last load did not succeed.
        """
        ...

    async def load(self, snapshot: Snapshot) -> None:
        """Replace all weights and drop the prefix cache in the same moment. Returns once every later token uses the new weights.

        Raises SyncFailed when the file's fingerprint differs or a weight is missing, unknown or of another shape; the engine then
        refuses to sample until a load succeeds.
        """
        ...

    async def sleep(self) -> bool:
        """Give the memory of weights and cache up until the next load. False where it stays, as nothing can give it up.

        Until then an engine that sleeps refuses to sample with SyncFailed, and keeps the requests that are under way for later.
        """
        ...

    async def ping(self) -> None:
        """Returns between two steps: at once when the engine is idle or asleep, never when it hangs. Raises WorkerLost when it has
        died."""
        ...

    async def restart(self) -> bool:
        """Start an engine that died again, without weights, and return true; false where its process died with it, or might as well
        have: what is left in a process after a failure of its own cannot be trusted."""
        ...

    async def close(self) -> None:
        """Free the model and end what the engine started."""
        ...
