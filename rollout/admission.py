"""What an engine lets in: prompts it can continue, while it holds one whole snapshot, and between two loads where asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rollout.errors import PromptError, PromptTooLong, SyncFailed
from rollout.types import Snapshot


class SyncGate:
    """Shut before the first load, during a load, after one that failed, and in sleep: a request is added before a load or after."""

    def __init__(self) -> None:
        self._loading = asyncio.Lock()
        self._refusal: str | None = "no snapshot has been loaded yet"
        self._version = 0

    async def enter(self) -> int:
        """Wait for a load in progress, if any, then return the version that is loaded. Raises SyncFailed when there is none."""
        while self._loading.locked():
            async with self._loading:
                pass
        if self._refusal is not None:
            raise SyncFailed(f"this engine has no weights to sample with: {self._refusal}. Load a snapshot.")
        return self._version

    @asynccontextmanager
    async def loading(self, snapshot: Snapshot) -> AsyncIterator[None]:
        """Load a snapshot in the body. When the body fails or is cancelled, the gate stays shut until another load succeeds."""
        async with self._loading:
            self._refusal = f"the load of version {snapshot.version} did not finish"
            try:
                yield
            except SyncFailed as error:
                self._refusal = f"the load of version {snapshot.version} failed, because {error}"
                raise
            self._refusal = None
            self._version = snapshot.version

    @asynccontextmanager
    async def falling_asleep(self) -> AsyncIterator[None]:
        """Give the weights up in the body. The gate stays shut until a load succeeds."""
        async with self._loading:
            self._refusal = "it sleeps, and has given them up"
            yield


class Turns:
    """Counts the requests under way, and holds new ones back, so that weights can change while none is."""

    def __init__(self) -> None:
        self._num_running = 0
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._has_ended = asyncio.Event()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A request, which begins when none are held back."""
        await self._is_open.wait()
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1
            self._has_ended.set()

    async def hold(self) -> None:
        """Hold new requests back until the release, and return when those under way have ended."""
        self._is_open.clear()
        while self._num_running:
            self._has_ended.clear()
            await self._has_ended.wait()

    def release(self) -> None:
        self._is_open.set()


def check_prompt(prompt_ids: Sequence[int], *, max_model_len: int, vocab_size: int) -> None:
    """Raise PromptTooLong or PromptError unless the engine can continue the prompt by at least one token."""
    if len(prompt_ids) >= max_model_len:
        raise PromptTooLong(
            f"the prompt has {len(prompt_ids)} tokens, but the engine holds {max_model_len} for prompt and completion together. "
            "Shorten the prompt, or raise engine.max_model_len."
        )
    if not prompt_ids:
        raise PromptError("the prompt has no tokens; an engine needs at least one to continue.")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise PromptError(
            f"the prompt has token ids from {min(prompt_ids)} to {max(prompt_ids)}, but the model's are 0 to {vocab_size - 1}. "
            "Use the tokenizer that belongs to the model."
        )
