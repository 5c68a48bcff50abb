"""Whatever people have becomes batches of (inputs, target)."""

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset, random_split

from evener.data.dataset import Data, MapStyle, Tensors, as_data, as_dataset, unit_range
from evener.errors import InputError

INPUTS = torch.arange(12.0).reshape(4, 3)
TARGET = torch.tensor([0, 1, 2, 3])


class Squares:
    """A map-style data set as people write them: no base class, Python numbers."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index * index


def test_tensors_give_the_rows_asked_for_in_that_order():
    inputs, target = Tensors(INPUTS, TARGET).batch(torch.tensor([2, 0, 2]))

    assert torch.equal(inputs, INPUTS[[2, 0, 2]])
    assert target.tolist() == [2, 0, 2]


def test_a_batch_is_a_copy():
    data = Tensors(INPUTS.clone(), TARGET)
    data.batch(torch.tensor([0]))[0].zero_()
    assert torch.equal(data.inputs, INPUTS)


def test_the_transform_sees_only_the_batch():
    images = torch.full((10, 784), 255, dtype=torch.uint8)
    inputs, _ = Tensors(images, torch.zeros(10), transform=unit_range).batch(torch.tensor([1, 2]))

    assert inputs.shape == (2, 784)
    assert inputs.dtype == torch.float32
    assert inputs.max() == 1.0
    assert images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("inputs", "target"), [(INPUTS, TARGET[:3]), (INPUTS, torch.tensor(1)), (torch.tensor(1), TARGET)]
)
def test_tensors_of_different_lengths_are_refused_with_both_shapes(inputs, target):
    with pytest.raises(InputError, match="not one data set") as caught:
        Tensors(inputs, target)
    assert str(list(target.shape)) in str(caught.value)


def test_map_style_samples_are_collated():
    inputs, target = MapStyle(Squares()).batch(torch.tensor([3, 1]))
    assert inputs.tolist() == [[3.0], [1.0]]
    assert target.tolist() == [9, 1]


def test_inputs_may_be_a_dictionary_of_tensors():
    samples = [({"a": torch.tensor(i), "b": torch.tensor(-i)}, i) for i in range(3)]
    inputs, target = as_dataset(samples).batch(torch.tensor([2, 1]))
    assert inputs["b"].tolist() == [-2, -1]
    assert target.tolist() == [2, 1]


@pytest.mark.parametrize("samples", [[1, 2, 3], [(1, 2, 3)], [{"x": 1, "y": 2}]])
def test_samples_that_are_not_pairs_are_refused(samples):
    with pytest.raises(InputError, match="not a pair"):
        as_dataset(samples).batch(torch.tensor([0]))


def test_datasets_pass_through():
    tensors, wrapped = Tensors(INPUTS, TARGET), MapStyle(Squares())
    assert as_dataset(tensors) is tensors
    assert as_dataset(wrapped) is wrapped


def test_numpy_pairs_become_tensors_of_the_dtypes_that_losses_expect():
    made = as_dataset((np.zeros((3, 2)), np.array([0, 1, 2], dtype=">i4")))

    assert isinstance(made, Tensors)
    assert made.inputs.dtype == torch.float32
    assert made.target.dtype == torch.int64
    assert made.target.tolist() == [0, 1, 2]


def test_numpy_images_stay_bytes_and_read_only_arrays_are_fine():
    images = np.broadcast_to(np.uint8(7), (3, 2))
    made = as_dataset((images, np.zeros(3, dtype=bool)))
    assert made.inputs.dtype == torch.uint8
    assert made.target.dtype == torch.bool


def test_a_tensor_dataset_gives_the_same_batches_without_collating():
    made = as_dataset(TensorDataset(INPUTS, TARGET))
    assert isinstance(made, Tensors)
    assert torch.equal(made.batch(torch.tensor([1]))[0], INPUTS[[1]])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    "given",
    [None, 3, "mnist", INPUTS, {"a": 1}, (INPUTS,), (INPUTS, TARGET, TARGET), Endless(), iter([])],
    ids=lambda given: type(given).__name__,
)
def test_anything_else_is_refused_with_a_way_out(given):
    with pytest.raises(InputError, match="not a data set") as caught:
        as_dataset(given)
    assert caught.value.why
    assert "map-style" in caught.value.fix


def test_text_arrays_are_refused():
    with pytest.raises(InputError, match="cannot become a tensor"):
        as_dataset((np.array(["a"]), np.array([1])))


def test_data_normalises_both_parts():
    data = Data(train=(INPUTS, TARGET), validation=Squares())
    assert isinstance(data.train, Tensors)
    assert isinstance(data.validation, MapStyle)


@pytest.mark.parametrize("parts", [{"train": []}, {"train": (INPUTS, TARGET), "validation": (INPUTS[:0], TARGET[:0])}])
def test_an_empty_set_is_refused(parts):
    with pytest.raises(InputError, match="is empty"):
        Data(**parts)


def test_a_recipe_may_return_data_a_pair_or_one_set():
    data = Data(train=(INPUTS, TARGET))
    assert as_data(data) is data
    assert len(as_data((Squares(), (INPUTS, TARGET))).validation) == 4
    assert as_data((Squares(), None)).validation is None
    assert as_data((INPUTS, TARGET)).validation is None
    assert len(as_data(Squares()).train) == 5
    with pytest.raises(InputError, match="a tuple of 3"):
        as_data((1, 2, 3))


def test_a_list_of_data_sets_as_random_split_gives_is_train_and_validation():
    whole = TensorDataset(torch.arange(10.0), torch.arange(10))
    made = as_data(random_split(whole, [7, 3]))
    assert [len(made.train), len(made.validation)] == [7, 3]
    assert len(as_data(list(whole)).train) == 10  # a list of samples is one
    with pytest.raises(InputError, match="a tuple of 3"):
        as_data(random_split(whole, [6, 2, 2]))
