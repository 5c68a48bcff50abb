"""What a recipe's data is: anything that can give the samples of a list of indices as one batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.utils.data as torch_data
from torch import Tensor

from evener.data.loader import FromLoader, Loading, sized
from evener.errors import InputError

#: The inputs of B samples, as the model takes them, and their target, as the loss takes it: mostly tensors [B, ...].
#: A recipe with a `step` may have any other form of it.
Batch = Any


class Dataset(Protocol):
    """A finite number of samples that can be asked for by index, a whole batch at a time."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The samples `indices` (int64 [B]), in that order."""
        ...


class Tensors:
    """Samples that lie in memory: inputs [N, ...] and target [N, ...].

    A batch is one `index_select` a tensor and then `transform` of the inputs, so images may stay uint8 (a
    quarter of the memory of float32) and become floats 100 at a time, while they are in the cache.

    >>> squares = Tensors(torch.arange(4), torch.arange(4) ** 2)
    >>> squares.batch(torch.tensor([3, 1]))
    (tensor([3, 1]), tensor([9, 1]))
    """

    def __init__(self, inputs: Tensor, target: Tensor, *, transform: Callable[[Tensor], Any] | None = None) -> None:
        if inputs.dim() == 0 or target.dim() == 0 or len(inputs) != len(target):
            raise InputError(
                f"inputs of shape {list(inputs.shape)} and target of shape {list(target.shape)} are not one data set.",
                why="the first dimension of both counts the samples.",
                fix="give inputs [N, ...] and target [N, ...] with the same N.",
            )
        self.inputs = inputs
        self.target = target
        self.transform = transform

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> Batch:
        inputs = self.inputs.index_select(0, indices)
        target = self.target.index_select(0, indices)
        return (inputs if self.transform is None else self.transform(inputs)), target


@runtime_checkable
class Randomized(Dataset, Protocol):
    """A data set whose training batches are made with random numbers; `batch` gives them without.

    The numbers follow from the seed and the sample's place in the run (`evener.data.order`), so that batches are
    reproducible and the halves of a large batch are the same as two small ones.
    """

    numbers: int  # for one sample

    def random_batch(self, indices: Tensor, uniform: Tensor) -> Batch:
        """The samples `indices` (int64 [B]); `uniform` (float64 [B, numbers], each 0 <= u < 1) is their chance."""
        ...


class Augmented(Tensors):
    """Samples in memory, distorted at random while they are trained on.

    Args:
        transform: (inputs) -> what the model takes, for evaluation.
        augment: (inputs, uniform float64 [B, numbers]) -> what the model takes, for training. All its chance comes from
            `uniform`; it runs in another thread while the batch before is computed.
        numbers: random numbers that one sample needs.

    >>> jittered = Augmented(torch.zeros(3), torch.arange(3), augment=lambda x, u: x + u[:, 0] / 10, numbers=1)
    >>> jittered.batch(torch.tensor([2]))
    (tensor([0.]), tensor([2]))
    """

    thread_safe = True  # see `evener.data.prefetch`

    def __init__(
        self,
        inputs: Tensor,
        target: Tensor,
        *,
        transform: Callable[[Tensor], Any] | None = None,
        augment: Callable[[Tensor, Tensor], Any],
        numbers: int,
    ) -> None:
        super().__init__(inputs, target, transform=transform)
        self.augment = augment
        self.numbers = numbers

    def random_batch(self, indices: Tensor, uniform: Tensor) -> Batch:
        return self.augment(self.inputs.index_select(0, indices), uniform), self.target.index_select(0, indices)


class MapStyle:
    """A map-style data set of PyTorch (`__getitem__` and `__len__`), batched by its `default_collate`."""

    pairs = True  # whether a sample must be (input, target); not where the recipe's own `step` takes the batch

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor) -> Batch:
        samples = [self.samples[index] for index in indices.tolist()]
        if self.pairs and (not isinstance(samples[0], list | tuple) or len(samples[0]) != 2):
            raise InputError(
                f"a sample of {type(self.samples).__name__} is {_describe(samples[0])}, not a pair (input, target).",
                why="the model is called with the input, the loss with the model's output and the target.",
                fix="let __getitem__ return a tuple (input, target); several inputs or targets go into a tuple or a "
                "dictionary. Inputs and targets that are lists of their own become tensors first: "
                "(torch.stack(X), torch.tensor(Y)).",
            )
        try:
            batch = torch_data.default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            raise InputError(
                f"samples {indices[:2].tolist()} of {type(self.samples).__name__} cannot be put together to a batch: "
                f"{str(error).splitlines()[0]}",
                why="PyTorch's default_collate stacks tensors of one size, numbers, tuples and dictionaries of these.",
                fix="let __getitem__ return tensors of one size (padded, for example); or give an object with "
                "__len__() and batch(indices) that puts its batches together itself.",
            ) from error
        return tuple(batch) if self.pairs else batch


@dataclass(frozen=True)
class Data:
    """What a recipe trains on and what it is judged by. Each may be anything that `as_dataset` takes."""

    train: Dataset
    validation: Dataset | Mapping[str, Dataset] | None = None  # or several, by name

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", _filled(self.train, "train"))
        if isinstance(self.validation, Mapping):
            named = {str(name): _filled(given, f"validation set {name!r},") for name, given in self.validation.items()}
            object.__setattr__(self, "validation", named)
        elif self.validation is not None:
            object.__setattr__(self, "validation", _filled(self.validation, "validation"))

    def of_any_form(self) -> Data:
        """For a recipe whose own `step` takes the batches."""
        for dataset in (self.train, *self.validations.values()):
            if isinstance(dataset, MapStyle):
                dataset.pairs = False
        return self

    def sized(self, train: int, validation: int) -> Data:
        """With these batch sizes, for loaders that have none of their own (`evener.loader`)."""
        judged = {name: sized(dataset, validation) for name, dataset in self.validations.items()}
        return Data(sized(self.train, train), judged if isinstance(self.validation, Mapping) else judged.get(""))

    @property
    def validations(self) -> Mapping[str, Dataset]:
        """The validation sets by name; a single one has none: "".

        Figures are called ``validation_loss``, or ``validation_NAME_loss``.
        """
        if self.validation is None:
            return {}
        return self.validation if isinstance(self.validation, Mapping) else {"": self.validation}


def as_data(made: object) -> Data:
    """Take what a recipe's `data()` may return: `Data`, (train, validation), or train alone.

    Two tensors or arrays are one data set (inputs, target); any other pair is (train, validation). There may be several
    validation sets, in a dictionary by name.
    """
    if isinstance(made, Data):
        return made
    if isinstance(made, dict) and "train" in made and set(made) <= {"train", "validation"}:
        return Data(**made)
    if isinstance(made, list) and made and all(isinstance(part, torch_data.Dataset) for part in made):
        made = tuple(made)  # of `random_split`
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], torch_data.DataLoader | Loading):
        made = tuple(made)
    if isinstance(made, tuple) and len(made) == 2 and not _is_array(made[0]):
        return Data(train=made[0], validation=made[1])
    return Data(train=as_dataset(made))


def as_dataset(given: object) -> Dataset:
    """Make a `Dataset` of whatever people have.

    - an object with `batch(indices)` and a length stays as it is;
    - (inputs, target), two tensors or two numpy arrays, become `Tensors`;
    - a map-style data set of PyTorch, or a list of samples, becomes `MapStyle`;
    - a DataLoader makes its own batches (`evener.data.loader`).

    Raises:
        InputError: it is none of these.
    """
    if isinstance(given, torch_data.DataLoader):
        return FromLoader(given)
    if isinstance(given, Loading):
        return FromLoader(given.made(1), given)
    if _gives_batches(given):
        return given  # type: ignore[return-value]
    if isinstance(given, tuple) and len(given) == 2 and all(map(_is_array, given)):
        return Tensors(_tensor(given[0]), _tensor(given[1], target=True))
    if isinstance(given, torch_data.TensorDataset) and len(given.tensors) == 2:
        return Tensors(*given.tensors)  # the same batches, without a Python call for each sample
    if _is_map_style(given):
        return MapStyle(given)
    raise InputError(
        f"{_describe(given)} is not a data set.",
        why="batches are asked for by index, so that every worker's batch follows from the seed and its lease alone.",
        fix="give a pair (inputs, target) of tensors or arrays, a map-style torch data set, "
        "an object with __len__() and batch(indices), or a DataLoader.",
    )


def unit_range(images: Tensor) -> Tensor:
    """Turn pixels uint8 0..255 into float32 0..1, any shape."""
    return images.to(torch.float32).mul_(1 / 255)


def _filled(given: object, name: str) -> Dataset:
    dataset = as_dataset(given)
    if len(dataset) == 0:
        raise InputError(
            f"the {name} set is empty.",
            why="there is nothing to take a batch from.",
            fix="check the path or the filter that it is made with"
            + ("." if name == "train" else ", or leave the validation set out (None)."),
        )
    return dataset


def _gives_batches(given: object) -> bool:
    """Whether it has a method `batch(indices)`; people's own data sets may call something else so."""
    batch = getattr(given, "batch", None)
    if not callable(batch) or not hasattr(given, "__len__"):
        return False
    if not hasattr(given, "__getitem__"):
        return True
    try:
        names = list(inspect.signature(batch).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) == 1 or (bool(names) and names[0].startswith(("ind", "idx")))


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_map_style(given: object) -> bool:
    # An IterableDataset has one that raises, which is found out too late.
    refused = (Tensor, np.ndarray, tuple, dict, str, bytes, torch_data.IterableDataset)
    return not isinstance(given, refused) and hasattr(given, "__getitem__") and hasattr(given, "__len__")


def _tensor(array: Any, *, target: bool = False) -> Tensor:
    """A tensor of the dtype that PyTorch's layers and losses expect: numpy's defaults (float64, int32) fail there."""
    if isinstance(array, Tensor):
        return array
    kind = array.dtype.kind
    if kind not in "biuf":
        raise InputError(
            f"an array of dtype {array.dtype} cannot become a tensor.",
            why="tensors hold numbers.",
            fix="encode it as numbers first, classes as 0, 1, 2, ...",
        )
    wanted: Any = array.dtype.newbyteorder("=")
    if kind == "f":
        wanted = np.float32
    elif target and kind in "iu":
        wanted = np.int64
    # A copy: the array may be read-only (a memory map, a broadcast), and tensors cannot be.
    return torch.from_numpy(np.array(array, dtype=wanted, order="C"))


def _describe(given: object) -> str:
    if isinstance(given, Tensor):
        return f"a tensor of shape {list(given.shape)}"
    if isinstance(given, tuple):
        return f"a tuple of {len(given)} ({', '.join(type(item).__name__ for item in given)})"
    return f"an object of type {type(given).__name__}"
