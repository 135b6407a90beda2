"""The run's own engines behind an OpenAI-compatible address, so that the policy of the moment can judge (arXiv:2401.10020)."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollout.sampling import Sampling
from rollout.types import Completion
from sandbox.errors import SystemFault, UserError
from verifiers.judge_options import ENGINE, ENGINE_KEY, ENGINE_URL
from verifiers.types import Message, Task

if TYPE_CHECKING:
    from aiohttp import web

    from verifiers.reward import RewardMix

MAX_BODY_BYTES = 4 << 20


class Sampler(Protocol):
    """What is asked of a Fleet."""

    async def sample(self, task: Task, *, n: int, sampling: Sampling | None, seed: int | None) -> tuple[Completion, ...]: ...


class _Turn(BaseModel):
    role: str
    content: str


class _Question(BaseModel):
    """What of a chat completion request is understood; anything else is refused, not overlooked."""

    model_config = ConfigDict(extra="forbid")

    messages: tuple[_Turn, ...] = Field(min_length=1)
    model: str = ""
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    seed: int | None = None


class EngineApi:
    """`POST /v1/chat/completions` on `host`, answered by `fleet` for whoever has the key. Other requests are refused.

    The same question to the same weights gets the same answer, unless it names another seed.
    """

    def __init__(self, fleet: Sampler) -> None:
        self._fleet = fleet
        self._key = secrets.token_hex(16)

    @contextlib.asynccontextmanager
    async def serve(self, host: str = "127.0.0.1") -> AsyncIterator[dict[str, str]]:
        """Answers for the time of the context; gives the variables by which a judge finds it."""
        from aiohttp import web

        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, 0)
            await site.start()
            port = runner.addresses[0][1]
            yield {ENGINE_URL: f"http://{host}:{port}/v1", ENGINE_KEY: self._key}
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        if not secrets.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {self._key}".encode()):
            return _refusal(401, "this address answers the run's own verifiers alone")
        try:
            question = _Question.model_validate_json(await request.read())
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors())
            return _refusal(400, f"the run's engine does not take this request: {faults}")
        try:
            completion = await self._completion(question)
        except UserError as error:
            return _refusal(400, str(error))
        except SystemFault as error:
            return _refusal(503, str(error))
        return _chat_completion(question.model, completion)

    async def _completion(self, question: _Question) -> Completion:
        turns = tuple(Message(turn.role, turn.content) for turn in question.messages)
        digest = hashlib.blake2b(repr(turns).encode("utf-8", "surrogatepass"), digest_size=8)
        sampling = Sampling(temperature=question.temperature, max_tokens=question.max_tokens)
        seed = int.from_bytes(digest.digest(), "big") >> 2 if question.seed is None else question.seed
        task = Task(f"question/{digest.hexdigest()}", turns, None, "")
        (completion,) = await self._fleet.sample(task, n=1, sampling=sampling, seed=seed)
        return completion


def engine_judges(mixes: Mapping[str, RewardMix]) -> bool:
    """Whether a judge of these mixes asks the run's own engine."""
    components: Sequence[Any] = [component for mix in mixes.values() for _, component in mix.items()]
    return any(component.options.get("base_url") == ENGINE for component in components)


def _refusal(status: int, message: str) -> web.Response:
    from aiohttp import web

    return web.json_response({"error": {"message": message}}, status=status)


def _chat_completion(model: str, completion: Completion) -> web.Response:
    from aiohttp import web

    num_prompt, num_written = len(completion.prompt_ids), len(completion.token_ids)
    return web.json_response(
        {
            "id": f"chatcmpl-{completion.seed}",
            "object": "chat.completion",
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": completion.text},
                    "finish_reason": completion.finish_reason,
                }
            ],
            "usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": num_written,
                "total_tokens": num_prompt + num_written,
            },
        }
    )
