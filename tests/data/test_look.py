"""The first samples of each set are looked at before anything is trained on them."""

import pytest
import torch

from evener.data.dataset import Data, as_data
from evener.data.look import look_at
from evener.errors import InputError

GOOD = torch.zeros(5, 2), torch.zeros(5)


class Gives:
    """A data set whose batches are what a test says; it notes what it was asked for."""

    def __init__(self, batch, length=5):
        self.given, self.length, self.asked = batch, length, []

    def __len__(self):
        return self.length

    def batch(self, indices):
        self.asked.append(indices.tolist())
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


REFUSED = {
    "a tensor": (torch.zeros(2, 3), "of type Tensor, not a pair"),
    "three": ((1, 2, 3), "a tuple of 3, not a pair"),
    "a dictionary": ({"x": 1}, "of type dict, not a pair"),
    "a target of text": ((torch.zeros(2), ["cat", "dog"]), "a list of 2, without a tensor"),
    "a target of nothing": ((torch.zeros(2), None), "of type NoneType, without a tensor"),
}


@pytest.mark.parametrize("where", ["train", "validation", "noisy"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_batch_that_is_no_pair_of_inputs_and_target_is_refused_by_the_name_of_its_set(kind, where):
    batch, says = REFUSED[kind]
    bad = Gives(batch)
    data = {"train": Data(bad), "validation": Data(GOOD, bad), "noisy": Data(GOOD, {"clean": GOOD, "noisy": bad})}
    with pytest.raises(InputError) as error:
        look_at(data[where])
    assert f"{where} set (Gives) is {says}" in error.value.what
    assert error.value.why
    assert error.value.fix


@pytest.mark.parametrize("target", [torch.zeros(2), {"a": torch.zeros(2)}, [torch.zeros(2), "x"], (torch.zeros(2),)])
def test_targets_may_be_put_together_of_tensors(target):
    look_at(Data(Gives((torch.zeros(2), target))))


def test_no_more_than_a_few_samples_of_each_set_are_asked_for():
    train, validation = Gives(GOOD), Gives(GOOD, length=1)
    look_at(Data(train, validation))
    assert (train.asked, validation.asked) == ([[0, 1, 2, 4]], [[0]])


def test_what_the_users_own_data_set_raises_passes_through():
    with pytest.raises(ZeroDivisionError, match="mine"):
        look_at(Data(Gives(ZeroDivisionError("mine"))))


def test_samples_of_unequal_sizes_are_refused_with_the_way_to_put_them_together():
    with pytest.raises(InputError) as error:
        look_at(as_data([(torch.zeros(1), 0), (torch.zeros(2), 1)]))
    assert error.value.what.startswith("samples [0, 1] of list cannot be put together to a batch: stack expects")
    assert "batch(indices)" in error.value.fix
