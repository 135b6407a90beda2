"""Token ids and log-probabilities that stay the bytes they came as until somebody asks for them.

The driver of a run passes tens of thousands of completions a step on, from the workers to the learner and to a file, and looks at
few of their numbers: making Python objects of all of them was a third of its work.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

R = TypeVar("R", bound="PackedRow")

HELD = ("token_ids", "behavior_logprobs")


class Packed(NamedTuple):
    """int64 token ids, and float64 log-probabilities or None, as bytes."""

    token_ids: bytes
    logprobs: bytes | None


class PackedRow:
    """Base of a frozen dataclass with slots whose fields `token_ids` and `behavior_logprobs` may stay packed.

    Whoever reads one of them gets the tuple: both are unpacked then. `==`, `hash`, `repr` and `dataclasses.replace` read them.
    """

    __slots__ = ("_packed",)

    if TYPE_CHECKING:
        token_ids: tuple[int, ...]
        behavior_logprobs: tuple[float, ...] | None
        _packed: Packed
    else:

        def __getattr__(self, name: str) -> Any:
            """Called for slots that hold nothing."""
            if name not in HELD:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            token_ids, logprobs = self._packed
            object.__setattr__(self, "token_ids", struct.unpack(f"{len(token_ids) // 8}q", token_ids))
            unpacked = None if logprobs is None else struct.unpack(f"{len(logprobs) // 8}d", logprobs)
            object.__setattr__(self, "behavior_logprobs", unpacked)
            return getattr(self, name)

    @property
    def packed(self) -> Packed:
        if not hasattr(self, "_packed"):
            logprobs = self.behavior_logprobs
            of_logprobs = None if logprobs is None else struct.pack(f"{len(logprobs)}d", *logprobs)
            return Packed(struct.pack(f"{len(self.token_ids)}q", *self.token_ids), of_logprobs)
        return self._packed

    @property
    def num_completion_tokens(self) -> int:
        """As many as there are in `token_ids`, which stay packed."""
        return len(self._packed.token_ids) // 8 if hasattr(self, "_packed") else len(self.token_ids)

    @property
    def has_logprobs(self) -> bool:
        """Whether `behavior_logprobs`, which stay packed, is not None."""
        return (self._packed.logprobs if hasattr(self, "_packed") else self.behavior_logprobs) is not None

    def holding(self: R, packed: Packed) -> R:
        """This new row itself, with other tokens and log-probabilities."""
        for name in HELD:
            object.__delattr__(self, name)
        object.__setattr__(self, "_packed", packed)
        return self

    def changed(self: R, **changes: Any) -> R:
        """`dataclasses.replace` of other fields than the held ones, which stay packed."""
        if not hasattr(self, "_packed"):
            return dataclasses.replace(self, **changes)  # type: ignore[type-var]
        others = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in HELD}  # type: ignore[arg-type]
        return type(self)(**others | changes, token_ids=(), behavior_logprobs=None).holding(self._packed)  # type: ignore[call-arg]
