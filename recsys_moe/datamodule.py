"""Memory-mapped training tensors -> batches, in an order that can be resumed anywhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.errors import RequestError
from recsys_moe.order import epoch_order
from recsys_moe.spec import FeatureSpec


class Split:
    """The memory-mapped tensors of one split of a features folder."""

    def __init__(self, features: Path, split: str, spec: FeatureSpec) -> None:
        folder = features / "tensors" / split
        splits = [path.name for path in sorted((features / "tensors").glob("*"))]
        if split not in splits:
            wanted = f"a split of {features} ({', '.join(splits) or 'it has none'})"
            raise RequestError(f"split={split}", wanted=wanted, got=repr(split), choices=splits)
        self.spec = spec
        self.codes = _mapped(folder / "codes.npy", spec.num_slots)
        self.numbers = _mapped(folder / "numbers.npy", spec.num_numbers)
        self.labels = _mapped(folder / "labels.npy", len(spec.tasks))
        self.known = _mapped(folder / "known.npy", len(spec.tasks))
        self.weights = _mapped(folder / "weights.npy") if spec.row_weight else None
        self.users = _mapped(folder / "users.npy") if spec.user else None
        self.num_rows = len(self.labels)

    def batch(self, rows: slice | NDArray[np.int64]) -> Batch:
        """Copy some rows out of the maps."""
        labels_BT = torch.from_numpy(self.labels[rows].astype(np.float32))
        known_BT = torch.from_numpy(self.known[rows].astype(np.float32))
        return Batch(
            codes=_tensor(self.codes[rows]),
            numbers=_tensor(self.numbers[rows]),
            labels=dict(zip(self.spec.task_names, labels_BT.unbind(1), strict=True)),
            known=dict(zip(self.spec.task_names, known_BT.unbind(1), strict=True)),
            weights=torch.ones(len(labels_BT))
            if self.weights is None
            else _tensor(self.weights[rows]),
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all rows in their own order."""
        for start in range(0, self.num_rows, batch_size):
            yield self.batch(slice(start, start + batch_size))


class TrainLoader:
    """Shuffled batches of a split, each row once an epoch, from any step on.

    The state is (epoch, step) of the next batch, and it is final before a batch is handed out: a
    trainer that stops after the last batch never comes back to hear that the epoch is over.
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.epoch = self.step = 0

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return -(-self.split.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the epoch."""
        order = epoch_order(
            self.split.num_rows,
            seed=self.seed,
            epoch=self.epoch,
            start=self.step * self.batch_size,
        )
        ahead = np.empty(0, np.int64)
        for step in range(self.step, len(self)):
            while len(ahead) < self.batch_size and (rows := next(order, None)) is not None:
                ahead = np.concatenate([ahead, rows])
            rows, ahead = ahead[: self.batch_size], ahead[self.batch_size :]
            last = step + 1 == len(self)
            self.epoch, self.step = (self.epoch + 1, 0) if last else (self.epoch, step + 1)
            yield self.split.batch(rows)

    def state_dict(self) -> dict[str, Any]:
        """Return where the next batch is, and what the position depends on."""
        return {"epoch": self.epoch, "step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state says; another data set, batch size or seed is refused."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise RequestError(f"resume, {name}", wanted=str(state[name]), got=str(value))
        self.epoch, self.step = state["epoch"], state["step"]

    def _identity(self) -> dict[str, int]:
        return {"rows": self.split.num_rows, "batch_size": self.batch_size, "seed": self.seed}


class ValidLoader:
    """All rows of a split in their own order."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.split, self.batch_size = split, batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.split.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        return self.split.batches(self.batch_size)


class DataModule(LightningDataModule):
    """Train and validation batches of a features folder.

    The position in the data is part of this module's state: Lightning hands a loader its own state
    back only in the middle of an epoch, so a run resumed between two epochs would repeat the first.
    """

    def __init__(self, features: Path, spec: FeatureSpec, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.train, self.valid = Split(features, "train", spec), Split(features, "valid", spec)
        self.train_loader = TrainLoader(self.train, batch_size, seed)
        self.valid_loader = ValidLoader(self.valid, max(batch_size, 8192))

    def train_dataloader(self) -> TrainLoader:
        """Return shuffled batches."""
        return self.train_loader

    def val_dataloader(self) -> ValidLoader:
        """Return ordered batches."""
        return self.valid_loader

    def state_dict(self) -> dict[str, Any]:
        """Return where training is in the data."""
        return self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self.train_loader.load_state_dict(state_dict)


def _mapped(path: Path, width: int | None = None) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RequestError(
            str(path), wanted="a tensor file of the features", got=str(error)
        ) from None
    if width is not None and array.shape[1:] != (width,):
        raise RequestError(str(path), wanted=f"{width} columns", got=f"shape {array.shape}")
    return array


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))
