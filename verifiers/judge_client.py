"""Asks an OpenAI-compatible endpoint (`/v1/chat/completions`): patient with what passes, at once about what does not.

Nothing here knows what is asked. The key stands in no message: an endpoint that repeats it is quoted without.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from verifiers.types import Message

if TYPE_CHECKING:
    import aiohttp

FIRST_WAIT_S = 1.0
MAX_WAIT_S = 30.0
MAX_BODY_BYTES = 4 * 2**20
MAX_QUOTED = 300
MIN_SECRET = 8
PASSING = (408, 409, 425, 429)  # and every 5xx


class NoAnswer(Exception):
    """The endpoint gave no answer, or may not be asked. The message says why and what to do; `passes`: later it may answer."""

    def __init__(self, reason: str, *, passes: bool = False) -> None:
        super().__init__(reason)
        self.passes = passes


class _Trouble(Exception):
    """One request failed; `passes` says whether another may not, `wait_s` how long the endpoint asks to wait (None: nothing)."""

    def __init__(self, reason: str, *, passes: bool, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.passes, self.wait_s = passes, wait_s


class Reply(NamedTuple):
    """What was said. `is_cut`: it ran out of tokens. `num_tokens` by the endpoint's own count; None when it tells none."""

    text: str
    is_cut: bool
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a service may ask for as long as it lives: HTTP requests, and tokens by the endpoint's own count. None: any number."""

    max_calls: int | None = None
    max_total_tokens: int | None = None


class ChatClient:
    """One model of one endpoint, asked by at most `max_concurrent` requests at a time.

    `request` is what every request holds beside its messages. What may pass (no connection, 429, 5xx, an answer that breaks off) is
    tried `max_retries` times more, after a wait that doubles, on top of what the endpoint asks for.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        request: Mapping[str, Any],
        *,
        timeout_s: float,
        max_retries: int,
        max_concurrent: int,
        budget: Budget,
    ) -> None:
        import aiohttp  # noqa: F401  # not in the middle of the first request

        self._url = f"{base_url}/chat/completions"
        self._key = key
        self._request = dict(request)
        self._timeout_s, self._max_retries, self._budget = timeout_s, max_retries, budget
        self._places = asyncio.Semaphore(max_concurrent)
        self._session: aiohttp.ClientSession | None = None
        self._num_calls = self._num_tokens = 0
        self._counts: Counter[str] = Counter()

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        give_up_at: float,
        schema: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Reply:
        """The answer to a chat. Raises NoAnswer, which happens before the monotonic clock shows `give_up_at`."""
        body = {**self._request, "messages": [message._asdict() for message in messages]}
        if seed is not None:
            body["seed"] = seed
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
        content = json.dumps(body).encode("ascii")
        async with self._places:
            for attempt in range(self._max_retries + 1):
                try:
                    return await self._once(content, max(0.001, min(self._timeout_s, give_up_at - time.monotonic())))
                except _Trouble as trouble:
                    tried = f" ({attempt + 1} requests)" if attempt else ""
                    if not trouble.passes or attempt == self._max_retries:
                        raise NoAnswer(f"{trouble}{tried}", passes=trouble.passes) from None
                    # On top of what it asks for, or all who were refused at one time would come back at one time.
                    wait_s = backoff_s(attempt) + (trouble.wait_s or 0.0)
                    if time.monotonic() + wait_s >= give_up_at:
                        told = "" if trouble.wait_s is None else f"; it asks to wait {trouble.wait_s:g} s, which is too long"
                        raise NoAnswer(f"{trouble}{tried}{told}", passes=True) from None
                self._counts["retries"] += 1
                await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def counters(self) -> dict[str, int]:
        """Requests, repeated ones among them, and tokens, since the last call."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _once(self, content: bytes, timeout_s: float) -> Reply:
        import aiohttp

        self._spend_call()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            # A redirected request would carry the key to somebody else.
            posting = self._opened().post(self._url, data=content, headers=headers, allow_redirects=False)
            async with asyncio.timeout(timeout_s), posting as response:
                body = self._without_key(await _bounded(response.content))
                status, answer_headers = response.status, response.headers
        except TimeoutError:
            raise _Trouble(f"{self._url} did not answer within {timeout_s:.3g} s. Raise timeout_s?", passes=True) from None
        except aiohttp.ClientConnectorError as error:
            told = f"no connection to {self._url}: {error}. Start the server, or mend base_url"
            raise _Trouble(told, passes=True) from None
        except aiohttp.ClientError as error:
            raise _Trouble(f"{self._url} broke off: {type(error).__name__}: {error}"[:MAX_QUOTED], passes=True) from None
        if status != 200:
            raise _refused(status, answer_headers, body, self._url, has_key=self._key is not None)
        return self._understood(body)

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made where the loop runs."""
        import aiohttp

        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)  # `_places` is the limit
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self._session

    def _spend_call(self) -> None:
        budget = self._budget
        if budget.max_calls is not None and self._num_calls >= budget.max_calls:
            raise NoAnswer(f"the budget of {budget.max_calls:,} calls is used up. Raise max_calls to go on")
        if budget.max_total_tokens is not None and self._num_tokens >= budget.max_total_tokens:
            raise NoAnswer(f"the budget of {budget.max_total_tokens:,} tokens is used up. Raise max_total_tokens to go on")
        self._num_calls += 1
        self._counts["calls"] += 1

    def _understood(self, body: bytes) -> Reply:
        """What an answer with status 200 holds."""
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text, is_cut = choice["message"].get("content"), choice.get("finish_reason") == "length"
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            told = f"{self._url} sent no chat completion, but {_quoted(body)}. Is base_url that of an OpenAI-compatible API?"
            raise _Trouble(told, passes=True) from None
        usage = answer.get("usage")
        num_tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(num_tokens, int) and num_tokens >= 0:
            self._num_tokens += num_tokens
            self._counts["tokens"] += num_tokens
        elif self._budget.max_total_tokens is not None:
            told = f"{self._url} does not say how many tokens it used, so max_total_tokens cannot be kept to. Set max_calls instead"
            raise _Trouble(told, passes=False)
        num_written = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return Reply(text if isinstance(text, str) else "", is_cut, num_written if isinstance(num_written, int) else None)

    def _without_key(self, body: bytes) -> bytes:
        # Before any of it is cut: half a key is half a secret. A short one, for a server that wants just any, is none, and may
        # stand in an answer by chance.
        return body.replace(self._key.encode("ascii"), b"***") if self._key and len(self._key) >= MIN_SECRET else body


def backoff_s(attempt: int) -> float:
    """How long to wait after failure number `attempt`, from 0: twice as long each time, less up to half of it at random."""
    return min(MAX_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)


def retry_after_s(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as such or as a date. None when it says nothing of use."""
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header.strip())
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


async def _bounded(stream: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in stream.iter_chunked(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _Trouble(f"its answer has more than {MAX_BODY_BYTES // 2**20} MiB", passes=False)
    return b"".join(parts)


def _refused(status: int, headers: Mapping[str, str], body: bytes, url: str, *, has_key: bool) -> _Trouble:
    """What a status other than 200 means, and what to do about it."""
    error = _error(body)
    told = f"{url} answered {status}: {error.get('message') or _quoted(body)}"[: 2 * MAX_QUOTED].rstrip(". ")
    if status in (401, 403):
        mend = "Does the variable of key_variable hold the right key" if has_key else "Name the variable with the key: key_variable"
        return _Trouble(f"{told}. {mend}", passes=False)
    if status == 404:
        return _Trouble(f"{told}. Either it has no such model, or base_url is wrong (most end in /v1)", passes=False)
    if 300 <= status < 400:
        return _Trouble(f"{url} sends on elsewhere, which is not followed. Give the right base_url", passes=False)
    if error.get("code") == "insufficient_quota" or error.get("type") == "insufficient_quota":
        return _Trouble(told, passes=False)
    if status in PASSING or status >= 500:
        return _Trouble(told, passes=True, wait_s=retry_after_s(headers.get("Retry-After")))
    return _Trouble(told, passes=False)


def _error(body: bytes) -> dict[str, Any]:
    """The error that an endpoint describes; empty where it describes none."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _quoted(body: bytes) -> str:
    """The beginning of an answer in one line."""
    text = " ".join(body[: 4 * MAX_QUOTED].decode("utf-8", "replace").split())
    return repr(text[:MAX_QUOTED]) if text else "nothing"
