"""The next batch in a thread: the same batches, errors where they belong, and no thread is left."""

import threading
import traceback
import weakref

import pytest
import torch

from evener.data.batches import Batches
from evener.data.dataset import Augmented, Tensors
from evener.data.prefetch import Prefetch

DEADLINE = 60.0  # seconds, for what happens at once


class Slow:
    """A data set that makes a batch when it is told to, and notes in which thread."""

    thread_safe = True

    def __init__(self, *, bad=()):
        self.bad, self.made, self.threads = bad, [], []
        self.go = threading.Event()
        self.go.set()

    def __len__(self):
        return 100

    def batch(self, indices):
        first = int(indices[0])
        assert self.go.wait(DEADLINE)
        self.made.append(first)
        self.threads.append(threading.current_thread().name)
        if first in self.bad:
            raise ValueError(f"sample {first} is bad")
        return indices, indices


def in_order(dataset):
    batches = Batches(dataset, batch_size=10, seed=0)
    batches.order.shuffle = False
    return batches


@pytest.fixture
def opened():
    made = []

    def open_(dataset, **options):
        made.append(Prefetch(in_order(dataset), **options))
        return made[-1]

    yield open_
    for prefetch in made:
        prefetch.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_the_prepared_batch_is_the_one_that_would_have_been_made():
    images = torch.arange(100.0)
    augmented = Augmented(images, images, augment=lambda x, u: x + u[:, 0], numbers=1)
    plain, prefetch = Batches(augmented, batch_size=7, seed=3), Prefetch(Batches(augmented, batch_size=7, seed=3))
    for lease in range(30):
        inputs, target = prefetch.batch(lease)
        prefetch.prepare(lease + 1)
        assert torch.equal(inputs, plain.batch(lease)[0])
        assert torch.equal(target, plain.batch(lease)[1])
    prefetch.close()


def test_it_is_made_in_a_thread_before_it_is_asked_for(opened):
    data = Slow()
    prefetch = opened(data)
    prefetch.prepare(0)
    prefetch.batch(0)
    prefetch.batch(1)
    prefetch.prepare(2)
    prefetch.batch(2)

    assert data.made == [0, 10, 20]
    assert data.threads == ["prefetch", "MainThread", "prefetch"]


def test_a_batch_that_was_used_is_not_kept_until_the_next(opened):
    gone = threading.Event()
    prefetch = opened(Slow())
    prefetch.prepare(0)
    batch = prefetch.batch(0)
    weakref.finalize(batch[0], gone.set)
    del batch
    assert gone.wait(DEADLINE)


def test_a_lease_that_was_not_expected_is_made_at_once_after_the_one_under_way(opened):
    data = Slow()
    prefetch = opened(data)
    prefetch.prepare(1)

    assert prefetch.batch(5)[1][0] == 50
    assert data.made == [10, 50]
    assert prefetch.batch(1)[1][0] == 10  # what was prepared in vain is not kept


def test_an_error_is_raised_in_the_step_that_needs_the_batch_with_the_users_traceback(opened):
    prefetch = opened(Slow(bad=[10]))
    prefetch.batch(0)
    prefetch.prepare(1)
    with pytest.raises(ValueError, match="sample 10 is bad") as raised:
        prefetch.batch(1)

    assert any(frame.name == "batch" and "raise ValueError" in frame.line for frame in traceback.extract_tb(raised.tb))
    prefetch.prepare(2)
    assert prefetch.batch(2)[1][0] == 20


def test_the_error_of_a_batch_that_nobody_needs_is_nobodys(opened):
    prefetch = opened(Slow(bad=[10]))
    prefetch.prepare(1)
    assert prefetch.batch(2)[1][0] == 20


def test_nothing_is_prepared_where_nothing_comes(opened):
    data = Slow()
    prefetch = opened(data)
    prefetch.batch(0)
    prefetch.prepare(-1)
    prefetch.close()

    assert data.made == [0]


def test_data_sets_that_do_not_say_that_threads_are_safe_stay_in_the_training_thread(opened):
    data = Slow()
    data.thread_safe = False
    for prefetch in (opened(data), opened(Tensors(torch.zeros(100), torch.zeros(100)))):
        prefetch.prepare(1)
        assert prefetch._thread is None
        prefetch.batch(1)
    assert data.threads == ["MainThread"]


def test_closing_waits_for_the_batch_under_way_and_ends_the_thread(opened):
    data = Slow()
    data.go.clear()
    prefetch = opened(data)
    prefetch.prepare(1)
    thread = prefetch._thread
    join = thread.join
    thread.join = lambda seconds: (data.go.set(), join(seconds))  # the batch is made once somebody waits for it
    prefetch.close()

    assert not thread.is_alive()
    assert data.made == [10]


def test_the_wait_is_measured(opened):
    times = iter([1.0, 1.5, 7.0, 7.125])
    prefetch = opened(Slow(), clock=lambda: next(times))
    prefetch.batch(0)
    assert prefetch.waited == 0.5
    prefetch.batch(1)
    assert prefetch.waited == 0.125


@pytest.mark.parametrize("prepared", [True, False])
def test_a_feed_begins_where_a_batch_is_made_and_ends_where_it_is_used(opened, prepared):
    threads = []

    def feed(batch):
        threads.append(threading.current_thread().name)

        def end():
            threads.append(threading.current_thread().name)
            return batch[0] + 1000, batch[1]

        return end

    prefetch = opened(Slow(), feed=feed)
    if prepared:
        prefetch.prepare(3)
    inputs, target = prefetch.batch(3)

    assert (inputs[0], target[0]) == (1030, 30)
    assert threads == ["prefetch" if prepared else "MainThread", "MainThread"]
