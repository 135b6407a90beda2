"""The engine for machines without vLLM: a plain decoding loop over a transformers model, in a thread of its own.

The loop itself is `hf_decoder.py`. Full-attention decoders only; max_num_seqs rows share one padded key-value cache, so it is the
setting to lower when memory runs out.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rollout.admission import SyncGate, check_prompt
from rollout.engine import EngineConfig
from rollout.errors import ModelError, SyncFailed
from rollout.sampling import Sampling
from rollout.snapshot import verify
from rollout.types import Generation, Snapshot
from rollout.weights import ModelWeights, check_fit, model_weights

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from rollout.hf_decoder import Decoder


class HfEngine:
    """An Engine (see engine.py) over transformers. At temperature 0 the log-probabilities are those of temperature 1.

    A load does not wait for requests in flight: they go on with the new weights, and their `version_spans` say where they
    crossed. A load that fails ends them with SyncFailed.
    """

    def __init__(self, model_path: str, config: EngineConfig, *, stop_token_ids: Sequence[int], device: str) -> None:
        from rollout.engine_thread import EngineThread
        from rollout.reading import SnapshotReader

        self._gate = SyncGate()
        self._thread = EngineThread(lambda: _make_decoder(model_path, config, stop_token_ids, device), name="hf-engine")
        model = self._thread.engine.model
        self._weights: ModelWeights = model_weights(model)
        self._reader = SnapshotReader(device=device)
        self._vocab_size: int = model.config.get_text_config().vocab_size
        self._max_model_len = self._thread.engine.max_model_len

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, n: int, seed: int) -> list[Generation]:
        """See Engine. A completion that reaches the model's length ends there with finish reason length, as vLLM's do.

        Raises PromptTooLong or PromptError for a prompt that cannot be continued, WorkerLost when the engine has died.
        """
        from rollout.hf_decoder import Request

        check_prompt(prompt_ids, max_model_len=self._max_model_len, vocab_size=self._vocab_size)
        await self._gate.enter()
        # All greedy continuations are one.
        rows = 1 if sampling.temperature == 0 else n
        request = Request(uuid.uuid4().hex, tuple(prompt_ids), sampling.temperature, sampling.max_tokens, rows, seed)
        generations = await self._thread.request(request.id, lambda decoder: decoder.add(request))
        return generations * (n // rows)

    async def load(self, snapshot: Snapshot) -> None:
        """See Engine."""
        async with self._gate.loading(snapshot):
            await self._thread.call(lambda decoder: self._load(decoder, snapshot))

    async def sleep(self) -> bool:
        """See Engine."""
        async with self._gate.falling_asleep():
            await self._thread.call(lambda decoder: decoder.fall_asleep())
        return True

    async def ping(self) -> None:
        """See Engine."""
        await self._thread.call(lambda decoder: None)

    async def restart(self) -> bool:
        """See Engine."""
        return False

    async def close(self) -> None:
        """See Engine."""
        await asyncio.to_thread(self._thread.stop)
        self._reader.close()

    def _load(self, decoder: Decoder, snapshot: Snapshot) -> None:
        try:
            verify(snapshot)
            check_fit(snapshot, self._weights)
            self._copy_weights(decoder.model, snapshot)
        except SyncFailed as error:
            self._reader.close()
            for request_id in decoder.abort_all():
                self._thread.settle(request_id, error)
            raise
        decoder.start_over(snapshot.version)

    def _copy_weights(self, model: PreTrainedModel, snapshot: Snapshot) -> None:
        import torch
        from safetensors import SafetensorError

        targets = dict(model.named_parameters()) | {name: model.get_buffer(name) for name in self._weights.optional}
        try:
            with torch.no_grad(), closing(self._reader.read(snapshot)) as weights:
                for name, tensor in (each for some in weights for each in some):
                    if name not in self._weights.aliases:
                        _awake(targets[name], tensor.shape).copy_(tensor)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise SyncFailed(
                f"version {snapshot.version} was copied into the model in part only: {error}. Load it again."
            ) from error


def _awake(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The weight, with memory again if it was given up in sleep."""
    if weight.shape != shape:
        weight.data = weight.data.new_empty(shape)
    return weight


def _make_decoder(model_path: str, config: EngineConfig, stop_token_ids: Sequence[int], device: str) -> Decoder:
    from transformers import AutoModelForCausalLM

    from rollout.hf_decoder import Decoder

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=_dtype(config, device))
    except (OSError, ValueError) as error:
        raise ModelError(f"the model {model_path} cannot be loaded: {error}") from error
    max_model_len = _max_model_len(model_path, config, model.config.get_text_config())
    _check_attention(model_path, model, max_model_len)
    model.to(device)
    return Decoder(model, stop_token_ids=stop_token_ids, max_model_len=max_model_len, max_num_seqs=config.max_num_seqs)


def _dtype(config: EngineConfig, device: str) -> torch.dtype:
    import torch

    if config.dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    return getattr(torch, config.dtype)


def _max_model_len(model_path: str, config: EngineConfig, model_config: PretrainedConfig) -> int:
    longest: int = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ModelError(f"engine.max_model_len is {config.max_model_len}, but {model_path} was built for {longest}. Lower it.")
    return config.max_model_len or longest


def _check_attention(model_path: str, model: PreTrainedModel, max_model_len: int) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or (window is not None and not hasattr(config, "layer_types"))
    fits = kinds <= {"full_attention", "sliding_attention"} and not (slides and (window or 0) < max_model_len)
    if not fits or config._attn_implementation != "sdpa":
        raise ModelError(
            f"the hf engine decodes full attention only, and {model_path} has {', '.join(sorted(kinds))} "
            f'(window {window}, {config._attn_implementation}). Use engine.kind = "vllm".'
        )
