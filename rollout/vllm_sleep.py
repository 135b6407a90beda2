"""vLLM's sleep mode: an engine on a GPU that gives the memory of its weights and its cache up, and takes it back around a load.

Not yet run on a GPU, and vLLM has it nowhere else (`Platform.is_sleep_mode_available`).
"""

from __future__ import annotations

from typing import Any

DROP_WEIGHTS, KEEP_WEIGHTS = 2, 1  # vLLM's levels; kept ones wait in the computer's memory


class SleepMode:
    """Of one engine, which is given anew to each method. `keeps_weights`: a load brings no others, as with adapters."""

    def __init__(self, *, keeps_weights: bool) -> None:
        self._level = KEEP_WEIGHTS if keeps_weights else DROP_WEIGHTS
        self._is_asleep = False

    async def begin(self, llm: Any) -> None:
        """Fall asleep. Requests under way are kept, and compute their context anew afterwards."""
        self._is_asleep = True
        await llm.sleep(level=self._level, mode="keep")

    async def wake_weights(self, llm: Any) -> None:
        """Give the weights memory again, before a load: with what they were if they were kept, with anything if not."""
        if self._is_asleep:
            await llm.wake_up(tags=["weights"])

    async def end(self, llm: Any) -> None:
        """Give the cache memory again, now that nothing more is needed for the weights; vLLM samples from here on."""
        if self._is_asleep:
            await llm.wake_up(tags=["kv_cache"])
            self._is_asleep = False
