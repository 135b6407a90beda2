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

    async def close(self) -> None:
        """Free the model and end what the engine started."""
        ...
