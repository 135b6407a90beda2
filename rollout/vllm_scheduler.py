"""vLLM's scheduler with a short way through the steps in which every request decodes one token: nearly all steps of a rollout.

vLLM looks at every request anew in every step: for images, adapters, drafts, connectors, room in the cache, something to send. With
a small model on a CPU that takes as long as the model does. Here a step that only decodes is scheduled in one pass, and what it
sampled stays with the scheduler until its request ends. Everything else is done by vLLM's own methods. What is sampled, and with
which log-probabilities, is the same to the bit.

For an engine in the process that drives it (`vllm_inprocess.py`): whoever changes the weights must `release` what is held before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

ADMIT_EVERY = 8  # steps
FULL_ENOUGH = 7 / 8


class Sampled(NamedTuple):
    """One token that was sampled."""

    token: int
    logprob: float
    rank: int


@dataclass(eq=False, slots=True)
class Held:
    """What a request has sampled and its client has not been told yet, and what can end it."""

    request: Request
    stop_token_ids: frozenset[int | None]
    most_tokens: int  # prompt and output, when it ends for its length
    sampled: list[Sampled] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request, max_model_len: int) -> Held:
        params = request.sampling_params
        assert params is not None
        stop_ids = {*(params.stop_token_ids or ()), params.eos_token_id}
        return cls(request, frozenset(stop_ids), min(max_model_len, request.num_prompt_tokens + request.max_tokens))

    def add(self, sampled: Sampled, block_size: int) -> bool:
        """Keep a token. True when it ends the request."""
        self.sampled.append(sampled)
        self.request._output_token_ids.append(sampled.token)
        tokens = self.request._all_token_ids
        tokens.append(sampled.token)
        if len(tokens) % block_size == 0:
            self.request.update_block_hashes()
        return sampled.token in self.stop_token_ids or len(tokens) >= self.most_tokens

    def output(self) -> EngineCoreOutput:
        """All of it, as if it had been sampled in one step."""
        tokens, logprobs, ranks = zip(*self.sampled, strict=True)
        self.sampled = []
        return EngineCoreOutput(
            self.request.request_id,
            list(tokens),
            new_logprobs=LogprobsLists(
                np.array(tokens, np.int32)[:, None], np.array(logprobs, np.float32)[:, None], np.array(ranks, np.int64)
            ),
        )


class DecodeScheduler(Scheduler):
    """Requests of one token a step that are sampled with their own log-probability, as `vllm_engine.py` asks for, take the short
    way; while there is any other, all take vLLM's.

    Waiting requests join at once while fewer than `FULL_ENOUGH` of the seats are taken, else every `ADMIT_EVERY` steps: a step that
    admits goes the long way.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        groups = self.kv_cache_config.kv_cache_groups
        special = (
            self.lora_config,
            self.connector,
            self.ec_connector,
            self.aux_output_connector,
            self.num_spec_tokens,
            self.use_pp,
            self.use_v2_model_runner,
            self.return_sampling_mask,
            self.enable_kv_cache_events,
            self.finished_req_ids_dict is not None,
            self.log_stats,
            self.scheduler_config.async_scheduling,
        )
        self._can_shorten = not any(special) and len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
        self._held: dict[str, Held] = {}
        self._shortened: SchedulerOutput | None = None
        self._steps_to_admit = 0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        starting = self._starting_blocks() if self._can_shorten else None
        if starting is None:
            self._steps_to_admit = ADMIT_EVERY
            self._shortened = None
            return super().schedule(throttle_prefills)
        self._steps_to_admit -= 1
        self._shortened = self._decode_step(starting)
        return self._shortened

    def _starting_blocks(self) -> list[int] | None:
        """The running requests whose next token needs a new block of the cache. None: this step is not only decoding."""
        running, block_size, held = self.running, self.block_size, self._held
        if not running or self._pause_state != PauseState.UNPAUSED or self._shall_admit():
            return None
        starting = []
        for i, request in enumerate(running):
            num_computed = request.num_computed_tokens
            if len(request._all_token_ids) - num_computed != 1 or request.request_id not in held:
                return None
            if num_computed % block_size == 0:
                starting.append(i)
        return starting if len(starting) <= self.kv_cache_manager.block_pool.get_num_free_blocks() else None

    def _shall_admit(self) -> bool:
        if not self.waiting and not self.kv_holding_waiting:
            return False
        num_running = len(self.running)
        return num_running < self.max_num_active_reqs and (
            self._steps_to_admit <= 0 or num_running < FULL_ENOUGH * self.max_num_active_reqs
        )

    def _decode_step(self, starting: list[int]) -> SchedulerOutput:
        """One token for every running request."""
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        running = self.running
        ids = [request.request_id for request in running]
        blocks: list[tuple[list[int], ...] | None] = [None] * len(running)
        for i in starting:
            allocated = self.kv_cache_manager.allocate_slots(running[i], 1)
            assert allocated is not None, "a block was free when the step was planned"
            blocks[i] = allocated.get_block_ids(allow_none=True)
        cached = CachedRequestData(
            req_ids=ids,
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=blocks,
            num_computed_tokens=[request.num_computed_tokens for request in running],
            num_output_tokens=[len(request._output_token_ids) for request in running],
        )
        for request in running:
            request.num_computed_tokens += 1
        self.prev_step_scheduled_req_ids = set(ids)
        output = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=dict.fromkeys(ids, 1),
            total_num_scheduled_tokens=len(ids),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
            preempted_req_ids=self.reset_preempted_req_ids,
            new_block_ids_to_zero=self._get_new_block_ids_to_zero(),
        )
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        if scheduler_output is self._shortened:
            return {0: EngineCoreOutputs(outputs=self._decoded(model_runner_output))}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for each in outputs.values():
            each.outputs = [told for output in each.outputs for told in self._told(output)]
        for request in self.running if self._can_shorten else ():
            if request.request_id not in self._held and _is_plain(request):
                self._held[request.request_id] = Held.of(request, self.max_model_len)
        return outputs

    def _decoded(self, step: ModelRunnerOutput) -> list[EngineCoreOutput]:
        """Keep what a step of decoding has sampled; the outputs of the requests that ended with it."""
        assert step.logprobs is not None, "every request that is held asks for log-probabilities"
        tokens = [token for (token,) in step.sampled_token_ids]
        rows = [*map(Sampled, tokens, step.logprobs.logprobs[:, 0].tolist(), step.logprobs.sampled_token_ranks.tolist())]
        ended = []
        for request_id, row in step.req_id_to_index.items():
            holder = self._held.get(request_id)  # None: aborted during the step
            if holder is not None and holder.add(rows[row], self.block_size):
                ended.append(holder)
        if ended:
            self.running = remove_all(self.running, {holder.request for holder in ended})
        return [self._ended(holder) for holder in ended]

    def _ended(self, holder: Held) -> EngineCoreOutput:
        request, output = holder.request, holder.output()
        has_stopped = check_stop(request, self.max_model_len)
        assert has_stopped, "the stop ids and the length are all that ends a plain request"
        output.finish_reason, output.stop_reason = request.get_finished_reason(), request.stop_reason
        del self._held[request.request_id]
        self._free_request(request)
        return output

    def _told(self, output: EngineCoreOutput) -> Sequence[EngineCoreOutput]:
        """What the client is told now of an output that vLLM has made."""
        holder = self._held.get(output.request_id)
        if holder is None:
            return (output,)
        if output.finish_reason is None and output.new_logprobs is not None and len(output.new_token_ids) == 1:
            logprobs = output.new_logprobs
            holder.sampled.append(
                Sampled(output.new_token_ids[0], float(logprobs.logprobs[0, 0]), int(logprobs.sampled_token_ranks[0]))
            )
            return ()
        if output.finish_reason is not None:
            del self._held[output.request_id]
        return (holder.output(), output) if holder.sampled else (output,)

    def release(self) -> list[EngineCoreOutput]:
        """All that is held, for whoever labels it with the weights that have sampled it."""
        return [holder.output() for holder in self._held.values() if holder.sampled]

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        finished = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished


def _is_plain(request: Request) -> bool:
    """Whether its stop ids and its length are all that ends a request, and its tokens with their log-probabilities all it gives."""
    params = request.sampling_params
    return (
        params is not None
        and params.num_logprobs == 0
        and params.prompt_logprobs is None
        and params.min_tokens == 0
        and params.repetition_detection is None
        and request.client_index == 0
        and not (request.use_structured_output or request.has_encoder_inputs or request.resumable)
    )
