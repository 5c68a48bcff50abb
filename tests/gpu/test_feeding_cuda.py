"""Batches on their way to a real GPU; skipped elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from evener.data.batches import Batches
from evener.data.dataset import Augmented
from evener.data.prefetch import Prefetch
from evener.worker.compute.feeding import GpuFeed, feed_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here (torch.cuda.is_available() is False)"),
]
GPU = torch.device("cuda:0")


def test_every_tensor_of_a_batch_arrives_with_its_values():
    packed = pack_sequence([torch.arange(3.0), torch.arange(2.0)])
    inputs = {"image": torch.randn(4, 5), "more": (torch.arange(4), [packed])}
    there, target = GpuFeed(GPU)((inputs, torch.arange(4)))()

    assert there["image"].device == there["more"][1][0].data.device == target.device == GPU
    assert torch.equal(there["image"].cpu(), inputs["image"])
    assert torch.equal(there["more"][1][0].data.cpu(), packed.data)
    assert target.tolist() == [0, 1, 2, 3]


def test_batches_that_follow_each_other_fast_are_each_their_own():
    images = torch.arange(4000).float().repeat(300, 1).T.contiguous()
    data = Augmented(images, torch.arange(4000), augment=lambda x, u: x + 1, numbers=1)
    batches = Batches(data, batch_size=64, seed=1)
    prefetch = Prefetch(batches, feed=GpuFeed(GPU))
    busy = torch.randn(2000, 2000, device=GPU)
    try:
        for lease in range(50):
            inputs, target = prefetch.batch(lease)
            prefetch.prepare(lease + 1)
            busy = busy @ busy * 1e-3  # the copy of the next batch happens meanwhile
            assert torch.equal(inputs, (target.float() + 1).unsqueeze(1).expand(64, 300)), lease
            del inputs, target
    finally:
        prefetch.close()


def test_a_model_on_one_gpu_is_fed_and_others_move_their_inputs_themselves():
    cpu = torch.device("cpu")
    assert isinstance(feed_for({"a": GPU, "b": GPU}), GpuFeed)
    assert feed_for({"a": GPU, "b": cpu}) is feed_for({"a": cpu}) is feed_for(None) is None


@pytest.mark.parametrize(
    "inputs",
    [
        torch.arange(4.0).view(4, 1).expand(4, 3),
        torch.eye(4).to_sparse(),
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 4).T,
        pack_sequence([torch.arange(2.0), torch.arange(3.0)], enforce_sorted=False),
    ],
    ids=["expanded", "sparse", "channels last", "transposed", "unsorted"],
)
def test_whatever_a_plain_copy_takes_arrives(inputs):
    there, _ = GpuFeed(GPU)((inputs, torch.arange(4)))()

    assert there.data.device == GPU
    if isinstance(inputs, torch.Tensor):
        torch.testing.assert_close(there.cpu().to_dense(), inputs.to_dense())
        assert inputs.is_sparse or there.is_contiguous() or there.stride() == inputs.stride()
    else:
        assert torch.equal(there.sorted_indices.cpu(), inputs.sorted_indices)
