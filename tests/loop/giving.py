"""Who gives batches to a loader, by a test's word."""

from evener.loop.hand import Hand


class Pool:
    """Gives leases as a test says. A `Gives`.

    Args:
        answers: what each `draw` brings; when there are no more, nothing.
        waits: what each `wait` brings; [] ends the run.
        steps: whether the program takes a step after each batch.
    """

    def __init__(self, answers=(), waits=(), first=()):
        self.hand, self.stopped = Hand(), False
        self.answers, self.waits = list(answers), list(waits)
        self.hand.add(list(first))
        self.wants, self.given_up, self.passes, self.ended = [], [], 0, []
        self.left_out = 0
        self.size = 0  # samples of a lease that is a stretch of them

    @property
    def number(self):
        return self.passes - 1

    @property
    def begun(self):
        return self.passes

    def draw(self, want):
        self.wants.append(want)
        if self.answers:
            self.hand.add(self.answers.pop(0))

    def wait(self):
        self.given_up.append(self.hand.take())
        leases = self.waits.pop(0) if self.waits else []
        self.hand.add(leases, self.size)
        self.stopped = self.stopped or not leases

    def passing(self):
        self.passes += 1
        return self.passes <= self.left_out or self.stopped

    def passed(self, *, whole):
        self.ended.append(whole)


class Epochs(Pool):
    """Gives all leases there are, as many as are wanted, epoch by epoch; the run ends after two."""

    def __init__(self):
        super().__init__(first=[0])
        self.next, self.fence = 1, 4

    def draw(self, want):
        super().draw(want)
        last = min(self.fence, self.next + want - self.hand.count)
        self.hand.add(list(range(self.next, last)))
        self.next = max(self.next, last)

    def wait(self):
        if self.next == self.fence:
            self.fence += 4
        self.waits = [[self.next]] if self.next < 8 else []
        self.next += 1
        super().wait()
