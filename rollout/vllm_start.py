"""Starting vLLM: with which arguments, in which process, and where its sockets are. Light to import; vLLM is not."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

from rollout.engine import EngineConfig
from rollout.environment import environment
from rollout.errors import ModelError
from sandbox.ownership import owned_folder, sweep_folders

SOCKETS = "grpo-vllm-"  # folders of the sockets through which AsyncLLM talks to its process
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
COMPILED_NORMS = "vllm_c_on_cpu"  # see vllm_cpu.py
SOCKET_VARIABLE = "VLLM_RPC_BASE_PATH"


def engine_arguments(
    model_path: str, config: EngineConfig, device: str, *, in_process: bool, adapter_rank: int = 0, can_sleep: bool = False
) -> dict[str, Any]:
    """What vLLM is started with."""
    arguments: dict[str, Any] = {
        "model": model_path,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # nothing from the model folder's generation_config.json, whose penalties the learner ignores
        "dtype": {"cpu": "float32"}.get(device, "bfloat16") if config.dtype == "auto" else config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        # A prompt cut in two rewinds its request's seeded generator, which raises on a CPU: prompts are taken whole.
        "enable_chunked_prefill": device != "cpu",
        "logprobs_mode": "processed_logprobs",  # the default ones are taken before temperature
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "weight_transfer_config": {"backend": "grpo"},
        "worker_extension_cls": "rollout.vllm_extension.WorkerExtension",
    }
    if can_sleep:
        arguments["enable_sleep_mode"] = True
    if in_process:
        arguments["scheduler_cls"] = "rollout.vllm_scheduler.DecodeScheduler"
    if adapter_rank:
        # One at a time: a load waits for the requests that use the one before. vLLM knows some ranks only.
        largest = next((rank for rank in LORA_RANKS if rank >= adapter_rank), adapter_rank)
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": largest}
    if device == "cpu":
        # A block of the default 128 tokens is never full, hence never shared, in a short prompt.
        return arguments | {
            "enforce_eager": True,
            "kv_cache_memory_bytes": config.kv_cache_mb << 20,
            "block_size": 32,
            "ir_op_priority": {name: [COMPILED_NORMS] for name in ("rms_norm", "fused_add_rms_norm")},
        }
    return arguments | {"gpu_memory_utilization": config.gpu_memory_utilization}


def make_llm(
    model_path: str, config: EngineConfig, device: str, *, in_process: bool, adapter_rank: int = 0, can_sleep: bool = False
) -> Any:
    """Start vLLM. Raises ModelError when it cannot run this model with these settings."""
    from vllm import AsyncEngineArgs, EngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from rollout.vllm_inprocess import InProcessLLM

    gc.freeze()  # vLLM collects garbage when it starts: what was imported is none, and most of what it would look at
    arguments = engine_arguments(model_path, config, device, in_process=in_process, adapter_rank=adapter_rank, can_sleep=can_sleep)
    try:
        if in_process:
            llm: Any = InProcessLLM(EngineArgs(**arguments))
        else:
            # A killed process leaves its sockets: in a folder that the next one sweeps, instead of loose in the temporary folder.
            # The variable does not stay, as a program that this process starts later may outlive the folder.
            socket_folder().mkdir(exist_ok=True)
            with environment({SOCKET_VARIABLE: str(socket_folder())}):
                llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except ValueError as error:
        raise ModelError(f"vLLM cannot run the model {model_path}: {error}") from error
    if device == "cpu":
        _check_head_size(model_path, llm)
    return llm


@functools.cache
def socket_folder() -> Path:
    """One for this process: vLLM may remember the first that it is told."""
    sweep_folders(SOCKETS)
    return owned_folder(SOCKETS)


def _check_head_size(model_path: str, llm: Any) -> None:
    # vLLM starts with any size, and dies in the first step with one that its CPU kernels lack.
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size, supported = llm.model_config.get_head_size(), CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        llm.shutdown()
        raise ModelError(
            f"vLLM on a CPU cannot run the model {model_path}: its attention heads have size {size}, and vLLM has kernels for "
            f'{", ".join(map(str, supported))}. Use engine.kind = "hf".'
        )
