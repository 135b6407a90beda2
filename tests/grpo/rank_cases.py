"""Real processes that are the ranks of a learner over gloo, and what is asked of them."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import math
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from learner_cases import make_learner, random_rows
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo.learner import Learner
from grpo.metrics import UpdateTotals
from grpo.objectives import Objective
from grpo.policy import load_model
from grpo.ranks import Place, open_meeting, whole
from rollout import broadcast, lending
from rollout.reading import SnapshotReader
from sandbox.errors import SystemFault

Job = Callable[..., Any]


class Processes:
    """Some that wait for work; any number of them are the ranks of a learner for one job."""

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        self._each = [ProcessPoolExecutor(1, mp_context=context, initializer=_prepare) for _ in range(count)]

    def run(self, count: int, job: Job, *args: Any, **options: Any) -> list[Any]:
        """What `job(place, ...)` gives in each of `count` ranks. The error of the first that failed is raised."""
        meeting = open_meeting("127.0.0.1")
        places = [Place(rank, count, ("127.0.0.1", meeting.port)) for rank in range(count)]
        calls: list[Future[Any]] = [self._each[p.rank].submit(_do, job, p, args, options) for p in places]
        return [call.result(timeout=120) for call in calls]

    def close(self) -> None:
        for each in self._each:
            each.shutdown(cancel_futures=True)


def _prepare() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)


def _do(job: Job, place: Place, args: Sequence[Any], options: dict[str, Any]) -> Any:
    try:
        return job(place, *args, **options)
    finally:
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


class Trained(NamedTuple):
    """Metrics of each step without times, and the weights at the end."""

    curve: list[dict[str, float]]
    weights: dict[str, np.ndarray]


def train(
    place: Place,
    model_path: str,
    *,
    steps: range,
    rows: int = 8,
    restore: str | None = None,
    save: str | None = None,
    **options: Any,
) -> Trained:
    """These steps of a run, each on rows of its own."""

    async def work() -> Trained:
        learner = make_learner(model_path, place=place, total_steps=20, **options)
        if restore is not None:
            await learner.restore(restore)
        updates = [await learner.update(random_rows(learner._objective, rows, seed=step)) for step in steps]
        if save is not None:
            await learner.save(save)
        curve = [{k: v for k, v in update.metrics.items() if not k.startswith("time/")} for update in updates]
        return Trained(curve, weights_of(learner))

    return asyncio.run(work())


def weights_of(learner: Learner) -> dict[str, np.ndarray]:
    return {name: whole(weight).numpy(force=True).copy() for name, weight in learner._policy.trainable.items()}


def gradients(
    place: Place, model_path: str, objective: Objective, cases: Sequence[tuple[int, int, int]], *, exact: bool
) -> list[tuple[float, np.ndarray]]:
    """Loss and gradient of one optimizer step, for each case: a seed, rows, tokens per micro-batch. In float64 when `exact`."""
    with pytest.MonkeyPatch.context() as patch:
        if exact:
            patch.setattr("grpo.policy.load_model", lambda *args: load_model(*args).double())
        learner = make_learner(model_path, objective=objective, place=place)
    for share in (learner._policy.reference_weights or {}).values():
        share.mul_(1.1)
    found = []
    for seed, count, budget in cases:
        learner._config = learner._config.model_copy(update={"tokens_per_micro_batch": budget})
        totals = UpdateTotals()
        learner._compute_gradient(learner._with_reference(random_rows(objective, count, seed=seed)), totals)
        grads = [(weight.grad, weight) for weight in learner._policy.trainable.values()]
        flat = [whole(weight if grad is None else grad).detach().flatten() * (grad is not None) for grad, weight in grads]
        found.append((totals.metrics()["loss/value"], torch.cat(flat).numpy()))
    return found


class Alive(TorchDispatchMode):
    """Counts the bytes that tensors made within it hold, and the most they ever held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outcome):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor):
                self._count(tensor.untyped_storage())
        return outcome

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._seen:
            self._seen.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


def publish(place: Place, model_path: str, folder: str, **options: Any) -> tuple[Any, int]:
    """-> the snapshot, and the most bytes that were held on the way to it"""
    learner = make_learner(model_path, place=place, snapshot_folder=folder, **options)
    learner._update(random_rows(learner._objective, 4))
    with Alive() as alive:
        snapshot = learner._publisher.publish(0)
    return snapshot, alive.most


class Sent(NamedTuple):
    """The weights that engines received of two versions, and what the rank was told by sends that could not succeed."""

    weights: list[dict[str, np.ndarray]]
    told: list[str]


def send(place: Place, model_path: str, **options: Any) -> Sent:
    """Broadcasts to an engine in the first rank's process: one that nobody receives to its end before each that is received."""

    broadcast.BUCKET_BYTES = 2000  # several buckets

    async def work() -> Sent:
        learner = make_learner(model_path, place=place, transport="gloo", **options)
        received, told = [], []
        for version in (0, 1):
            snapshot = await learner.publish(version)
            assert snapshot is not None
            seat = await learner.open_group(2) if place.rank == 0 else None
            leaving = asyncio.ensure_future(asyncio.to_thread(_receive, snapshot, seat, buckets=1))
            told += [type(each).__name__ for each in await asyncio.gather(_send(learner, snapshot, seat), return_exceptions=True)]
            await asyncio.gather(leaving, return_exceptions=True)
            seat = await learner.open_group(2) if place.rank == 0 else None
            reading = asyncio.ensure_future(asyncio.to_thread(_receive, snapshot, seat))
            await _send(learner, snapshot, seat)
            received.append(await reading)
            await learner.update(random_rows(learner._objective, 4, seed=version))
        if not learner._spec.keep_sent:
            told += [type(each).__name__ for each in await asyncio.gather(_send(learner, snapshot, seat), return_exceptions=True)]
        await learner.close()
        return Sent(received, told)

    return asyncio.run(work())


def lend(place: Place, model_path: str, **options: Any) -> Sent:
    """Lends to an engine in the first rank's process, before and after an update, and once when the weights have moved on."""

    lending.BUCKET_BYTES = 2000  # several buckets

    async def work() -> Sent:
        learner = make_learner(model_path, place=place, transport="ipc", **options)
        received, told = [], []
        for version in (0, 1):
            snapshot = await learner.publish(version)
            assert snapshot is not None
            loans = await learner.lend(snapshot, 2) if place.rank == 0 or not learner._spec.keep_sent else ()
            for loan in loans if place.rank == 0 else ():
                weights = SnapshotReader().read(dataclasses.replace(snapshot, loan=loan))
                received.append({name: tensor.float().numpy().copy() for some in weights for name, tensor in some})
            if place.rank == 0:
                await learner.take_back()
            await learner.update(random_rows(learner._objective, 4, seed=version))
        if not learner._spec.keep_sent:
            told = [type(each).__name__ for each in await asyncio.gather(learner.lend(snapshot, 1), return_exceptions=True)]
        await learner.close()
        return Sent(received, told)

    return asyncio.run(work())


async def _send(learner: Learner, snapshot: Any, seat: Any) -> None:
    if seat is not None or not learner._spec.keep_sent:
        await learner.send(snapshot, seat)


def _receive(snapshot: Any, seat: Any, *, buckets: int | None = None) -> dict[str, np.ndarray]:
    """What comes, of so many buckets; nothing in the ranks that only give their shares."""
    if seat is None:
        return {}
    found: dict[str, np.ndarray] = {}
    reader = SnapshotReader()
    for i, some in enumerate(reader.read(dataclasses.replace(snapshot, seat=dataclasses.replace(seat, first_rank=1)))):
        if i == buckets:
            break
        found |= {name: tensor.float().numpy().copy() for name, tensor in some}
    if buckets is not None:
        reader.close()
    return found


def fail_to_publish(place: Place, model_path: str, folder: str) -> str:
    learner = make_learner(model_path, place=place, snapshot_folder=folder)
    try:
        learner._publisher.publish(0)
    except SystemFault as error:
        return str(error)
    return ""


def export(place: Place, model_path: str, folder: str, **options: Any) -> None:
    learner = make_learner(model_path, place=place, **options)
    learner._update(random_rows(learner._objective, 4))
    learner._export(Path(folder))


def fail(place: Place, model_path: str, fault: str, **options: Any) -> str:
    """What every rank raises when a step cannot be learnt from, and whether its weights stayed as they were."""
    learner = make_learner(model_path, place=place, **options)
    before = weights_of(learner)
    rows = random_rows(learner._objective, 6)
    if fault == "nan":
        rows[0] = dataclasses.replace(rows[0], behavior_logprobs=(math.nan,) * len(rows[0].token_ids))
    told = ""
    for _ in range(4):
        try:
            metrics = learner._update(rows).metrics
        except SystemFault as error:
            told = f"{type(error).__name__}: {error}"
            break
        assert metrics["learner/nonfinite_steps"] == 1
    assert all(np.array_equal(before[name], after) for name, after in weights_of(learner).items())
    return told
