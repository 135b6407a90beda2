"""What every engine must do with weights that the learner lends it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from engine_models import ENGINES, PROMPT, EngineBench, make_engine, model_folder
from torch import Tensor

from rollout import lending
from rollout.broadcast import spec_of
from rollout.engine import Engine
from rollout.errors import SyncFailed
from rollout.lending import Lender
from rollout.sampling import Sampling
from rollout.snapshot import snapshot_folder
from rollout.types import Snapshot

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Bench(EngineBench):
    """With the learner's end that lends."""

    def __init__(self, engine: Engine, *, is_tied: bool) -> None:
        super().__init__(engine, is_tied=is_tied)
        self.lender = Lender(device="cpu")

    def lend(self, weights: dict[str, Tensor]) -> Snapshot:
        self.version += 1
        snapshot = Snapshot(self.version, layout=tuple(spec_of(*named) for named in weights.items()))
        self.lender.fill(snapshot, weights.items())
        (loan,) = self.lender.loans(1)
        assert len(loan.handles) > 1
        return dataclasses.replace(snapshot, loan=loan)

    async def load(self, weights: dict[str, Tensor]) -> None:
        """Lend until the engine has loaded."""
        try:
            await self.engine.load(self.lend(weights))
        finally:
            self.lender.release()


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, False], ids=["tied", "untied"])
async def bench(kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lending, "BUCKET_BYTES", 20_000)  # half a layer: several buckets
        bench = Bench(
            make_engine(kind, model_folder(tmp_path_factory.mktemp("engine"), is_tied=request.param)), is_tied=request.param
        )
        yield bench
        await bench.engine.close()
        bench.lender.close()
    assert list(snapshot_folder("lent").iterdir()) == []


async def test_weights_that_were_lent_are_sampled_with_after_they_were_taken_back(bench: Bench):
    for seed in (1, 2):
        await bench.load(bench.weights(seed))
        await bench.check(seed)


async def test_a_file_after_a_loan_and_a_loan_after_a_file(bench: Bench, tmp_path: Path):
    await bench.load(bench.weights(1))
    await bench.load_file(2, tmp_path)
    await bench.check(2)
    await bench.load(bench.weights(1))
    await bench.check(1)


async def test_memory_that_is_not_as_it_was_lent_stops_the_sampling_until_a_load_succeeds(bench: Bench):
    good = bench.weights(1)

    def damaged() -> Snapshot:
        snapshot = bench.lend(good)
        assert snapshot.loan is not None
        file = Path(os.fsdecode(snapshot.loan.handles[1]))
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
        return snapshot

    def taken_back() -> Snapshot:
        snapshot = bench.lend(good)
        bench.lender.release()
        return snapshot

    for spoilt, cause in ((damaged, "another digest"), (taken_back, "cannot be opened")):
        await bench.load(bench.weights(2))
        with pytest.raises(SyncFailed, match=cause):
            await bench.engine.load(spoilt())
        with pytest.raises(SyncFailed, match=cause):
            await bench.engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await bench.load(good)
    await bench.check(1)


async def test_loans_that_do_not_fit_the_model_are_refused_before_they_are_opened(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    good = bench.weights(1)
    first = next(name for name in good if name.endswith("q_proj.weight"))
    bad = {
        "missing": {name: weight for name, weight in good.items() if ".layers.1." not in name},
        "unknown": good | {"extra.weight": good[first]},
        "shape": good | {first: good[first][:5]},
    }
    for cause, weights in bad.items():
        await bench.load(good)
        with pytest.raises(SyncFailed, match=cause):
            await bench.load(weights)
        with pytest.raises(SyncFailed, match=cause):
            await bench.engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await bench.load(good)
    await bench.check(1)
