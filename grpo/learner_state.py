"""Tensors of a checkpoint: each rank writes its share, and any other number of ranks reads them (torch.distributed.checkpoint)."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from grpo.learner_config import check_torchao
from grpo.optimizer import empty_state
from grpo.ranks import Ranks
from sandbox.errors import UserError

Shapes = dict[str, tuple[int, ...]]
LEARNER, REFERENCE = "learner", "reference"  # folders of a checkpoint, the second one only where the reference has moved
WEIGHTS, OPTIMIZER = "weights/", "optimizer/"  # what their names begin with; optimizer/NAME/PART


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Into a folder that is not there yet. All ranks must call; what each of them holds in full is written once."""
    with _plain_errors():
        save(dict(tensors), storage_writer=FileSystemWriter(folder), no_dist=ranks.count == 1)


def read_tensors(tensors: Mapping[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Fill these tensors with those written under their names. All ranks must call."""
    with _plain_errors():
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=ranks.count == 1)


def written_shapes(folder: Path) -> Shapes:
    """Names and shapes of what was written there."""
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """The error of the rank that failed, instead of one that is no Exception; and no warning that a single rank is alone."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def weight_tensors(trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {WEIGHTS + name: weight.detach() for name, weight in trainable.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What the optimizer knows of each weight, such as its moments; nothing of weights that it has not moved yet."""
    return {
        f"{OPTIMIZER}{name}/{part}": value for name, weight in trainable.items() for part, value in optimizer.state[weight].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], folder: Path, ranks: Ranks) -> None:
    """Give the optimizer what `optimizer_tensors` said when it was written. Its learning rate, betas and decay stay.

    Moments written in 8 bits are read into float32 ones, and the other way round, when the config has another optimizer now.
    """
    written = written_shapes(folder)
    for name, weight in trainable.items():
        has_moved = any(key.rpartition("/")[0] == OPTIMIZER + name for key in written)
        optimizer.state[weight] = empty_state(optimizer, weight) if has_moved else {}
    if not (tensors := optimizer_tensors(optimizer, trainable)):
        return
    try:
        read_tensors(tensors, folder, ranks)
    except pickle.UnpicklingError:  # torch reads a class of torchao's only where torchao has said what it is
        check_torchao(f"{folder}: its moments have 8 bits", otherwise="start over with --fresh")
        importlib.import_module("torchao.optim")
        read_tensors(tensors, folder, ranks)


def check_same_weights(written: Shapes, trainable: Mapping[str, Tensor], *, where: Path) -> None:
    """Raise UserError unless the weights of a checkpoint have the names and shapes of those that are trained."""
    found = {name.removeprefix(WEIGHTS): shape for name, shape in written.items() if name.startswith(WEIGHTS)}
    expected = {name: tuple(weight.shape) for name, weight in trainable.items()}
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if odd:
        raise UserError(
            f"{where}: its weights are not those of this model: {len(odd)} differ, first {odd[0]}, with shape "
            f"{found.get(odd[0], 'none')} there and {expected.get(odd[0], 'none')} here. Resume with the model and model.lora it "
            "was saved with, or start over with --fresh."
        )
