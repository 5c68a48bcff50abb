"""TFRecord files as a data set that is asked for by index, as every data set of a recipe is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evener.data.dataset import Batch
from evener.data.tfrecord.files import Files, JoinedFiles, find
from evener.data.tfrecord.schema import Features, Schema, UnfitRecord
from evener.errors import ConfigError, InputError


class TFRecords:
    """The Examples of TFRecord files.

    Only where each record begins lies in memory (16 bytes a record); a batch reads its records from disk and compares
    their checksums. Sample i is record i of the files in their order, so batches depend on (seed, lease) alone, as
    with data in memory, and workers need no files of their own.

    Args:
        files: a path, a pattern such as "data/train-*.tfrecord" or several of these; plain or gzip (which is unpacked
            into memory).
        features: name -> (dtype, shape) of what is read, see `Schema`.
        inputs: the feature that is the model's input; several names make a dict.
        target: the feature that is the target; numbers.
        transform: what is done to the inputs of a batch, as in `Tensors`.
        skip_bad_records: leave damaged records out (`skipped` counts them) instead of raising. Everything is read and
            checked once then, before training, and remembered beside the file.
        cache_index: keep an index beside each plain file, `.NAME.evener-index`, where the directory can be written.
        thread_safe: the next batch is read while one is computed (`evener.data.prefetch`). None: if there is no
            `transform`, for one that asks PyTorch for random numbers would take the model's.

    Raises:
        InputError: files missing, damaged or cut short: names file, record and byte.
        ConfigError: a feature that cannot be read so.
    """

    def __init__(  # noqa: PLR0913  # all but the first are by keyword
        self,
        files: Files,
        *,
        features: Features,
        inputs: str | Sequence[str],
        target: str,
        transform: Callable[[Any], Any] | None = None,
        skip_bad_records: bool = False,
        cache_index: bool = True,
        thread_safe: bool | None = None,
    ) -> None:
        self.schema = Schema(features)
        self.inputs = inputs if isinstance(inputs, str) else tuple(inputs)
        self.target = target
        self.transform = transform
        self.thread_safe = transform is None if thread_safe is None else thread_safe
        _check_names(self.schema, self.inputs, target)
        self._joined = JoinedFiles(find(files), skip_bad_records=skip_bad_records, cache_index=cache_index)

    def __len__(self) -> int:
        return len(self._joined)

    @property
    def skipped(self) -> int:
        """Bad records that were left out; more than one may be lost where a length was damaged, and counts once."""
        return self._joined.skipped

    def batch(self, indices: Tensor) -> Batch:
        """The samples `indices` (int64 [B]): inputs [B, ...] and target [B, ...].

        Raises:
            InputError: a record is damaged, or is not as `features` says.
        """
        numbers = indices.numpy().astype(np.int64, copy=False)
        made = self.read(numbers)
        inputs: Any = made[self.inputs] if isinstance(self.inputs, str) else {n: made[n] for n in self.inputs}
        return (inputs if self.transform is None else self.transform(inputs)), made[self.target]

    def read(self, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
        """All features of records `numbers` (int64 [B]): name -> tensor [B, *shape], or a list of bytes."""
        try:
            return self.schema.batch(self._joined.records(numbers))
        except UnfitRecord as unfit:
            raise misfit(self._joined.place(int(numbers[unfit.row])), unfit) from None


def misfit(place: str, unfit: UnfitRecord) -> InputError:
    """A record whose checksums are right, but which is not what the schema says."""
    return InputError(
        f"{place} does not fit: {unfit.reason}.",
        why="its checksum is right, so it was written like this.",
        fix="name the features that it has, with their dtypes and shapes.",
    )


def _check_names(schema: Schema, inputs: str | Sequence[str], target: str) -> None:
    for name in (*([inputs] if isinstance(inputs, str) else inputs), target):
        if name not in schema.features:
            raise ConfigError(
                f"there is no feature {name!r} to be an input or the target.",
                why=f"the features that are read are: {', '.join(schema.features) or 'none'}.",
                fix="add it to features, or name one of these.",
            )
    if schema.features[target][0] == "bytes":
        raise ConfigError(
            f"the target {target!r} is read as bytes.",
            why="a target is a tensor.",
            fix='read it as numbers, for example ("int64", []).',
        )
