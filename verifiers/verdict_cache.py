"""Scores that were given before, so that what many completions say is judged once."""

from __future__ import annotations

from collections.abc import Hashable

from verifiers.types import Outcome, Score


class VerdictCache:
    """The newest `size` scores of one verifier with one set of options, by reference and extracted answer.

    Lives no longer than its verifier, so that a change of code, of versions or of options never meets an old score. What ran out
    of time is not kept: on a quieter machine it might not.
    """

    def __init__(self, size: int = 65536) -> None:
        self._size = size
        self._scores: dict[Hashable, Score] = {}
        self._num_hits = 0

    def get(self, key: Hashable) -> Score | None:
        score = self._scores.get(key)
        self._num_hits += score is not None
        return score

    def keep(self, key: Hashable, score: Score) -> None:
        if score.outcome is not Outcome.TIMEOUT:
            if len(self._scores) >= self._size:
                del self._scores[next(iter(self._scores))]
            self._scores[key] = score

    def counters(self) -> dict[str, int]:
        """Scores that were known, since the last call."""
        hits, self._num_hits = self._num_hits, 0
        return {"known": hits}
