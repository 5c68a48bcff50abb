"""The next batch is prepared while this one is computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from evener.data.batches import Batches, Numbered
from evener.data.dataset import Batch

#: Takes a batch where it was made and begins to bring it to the model; what it returns ends that where it is used.
Feed = Callable[[Batch], Callable[[], Batch]]

#: A lease, and its batch once it is under way to the model.
Order = tuple[int, Future[Callable[[], Batch]]]

#: Seconds that `close` waits for a batch under way. The thread is a daemon: who hangs longer is left behind.
PATIENCE = 5.0


class Prefetch:
    """Gives batches and prepares the one that is known to come next in a thread of its own.

    A data set has its batches prepared so if it says ``thread_safe = True``: its `batch` may run in another thread
    than training and validation, and takes no random numbers from PyTorch's global generator, which the model uses at
    the same time. `Augmented` says so. Other batches are made when they are needed, as ever.

    The thread begins with the first `prepare` and ends with `close`. What a batch raises there is raised by `batch`, in
    the step that needs it and with its traceback; a batch that nobody asks for raises nothing.

    Args:
        batches: lease -> batch.
        clock: seconds; for `waited`.
        feed: how batches come to the model; None: the model takes them as they are.
    """

    def __init__(
        self, batches: Numbered, clock: Callable[[], float] = time.monotonic, *, feed: Feed | None = None
    ) -> None:
        self._batches = batches
        self._clock = clock
        self._feed = feed or _as_it_is
        self._useful = bool(getattr(batches.dataset, "thread_safe", False))
        self._ahead: Order | None = None
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        #: Seconds that the last call of `batch` took: what training waited for data.
        self.waited = 0.0

    def batch(self, lease: int, count: int = 0) -> Batch:
        """The batch of a lease, prepared or not; or so many samples from the `lease`-th on."""
        since = self._clock()
        try:
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                if ahead[0] == lease:
                    return ahead[1].result()()
                ahead[1].exception()  # only ends the wait: a data set makes one batch at a time
            return self._begin(lease, count)()
        finally:
            self.waited = self._clock() - since

    def prepare(self, lease: int) -> None:
        """Begin with the batch that `batch` will be asked for next; -1 if that is not known or there is none."""
        if lease < 0 or not self._useful:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._orders, self._begin), daemon=True)
            self._thread.name = "prefetch"
            self._thread.start()
        self._ahead = (lease, Future())
        self._orders.put(self._ahead)

    def _begin(self, lease: int, count: int = 0) -> Callable[[], Batch]:
        if not count:
            return self._feed(self._batches.batch(lease))
        assert isinstance(self._batches, Batches), "a loader's batches are as they are"
        return self._feed(self._batches.stretch(lease, count))

    def close(self) -> None:
        """End the thread, after the batch under way."""
        thread, self._thread, self._ahead = self._thread, None, None
        if thread is not None:
            self._orders.put(None)
            thread.join(PATIENCE)


def _as_it_is(batch: Batch) -> Callable[[], Batch]:
    return lambda: batch


def _work(orders: queue.SimpleQueue[Order | None], begin: Callable[[int], Callable[[], Batch]]) -> None:
    while (order := orders.get()) is not None:
        lease, future = order
        try:
            future.set_result(begin(lease))
        except BaseException as error:
            future.set_exception(error)
        del order, future  # else the batch would stay in memory until the next
