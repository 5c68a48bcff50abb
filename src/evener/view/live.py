"""The view for a terminal: a table of tasks and a progress bar that stay, lines that scroll above them."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evener.report import AnyReport, Evaluated, Failed, Finished, Line, Progress, Published, Status
from evener.view.texts import RUN, eta, figures, metrics_line, printable, rate, step_text
from evener.view.waits import LastingWaits

#: Seconds between two drawings.
PERIOD = 0.25
#: Lines of a terminal that tasks may not fill: title, table head, bar, figures, waiting (2), the prompt.
OTHER_LINES = 7
_COLORS = {"starting": "dim", "training": "green", "serving": "green", "waiting": "yellow", "failed": "bold red"}


class LiveView:
    """A table with one line a task, and below it the progress of the run.

    `hear` and `say` only note what came; a thread draws it, at most four times a second and only if something came.
    So a training loop never waits for a terminal, not even for one that Ctrl-S has stopped.

    Args:
        console: where to draw. What else is printed to a terminal meanwhile scrolls above the table.
        tasks: the rows, in order.
        title: the line on top.
        clock: seconds, monotonic.
    """

    def __init__(self, *, console: Console, tasks: Sequence[str], title: str, clock: Callable[[], float]) -> None:
        self._console = console
        self._title = title
        self._clock = clock
        self._start = clock()
        self._rows = {task: Status(task, "starting") for task in tasks}
        self._progress: Progress | None = None
        self._waits = LastingWaits(clock)
        self._lines: deque[str] = deque(maxlen=10_000)
        self._missed = 0  # lines that had no room there
        self._changed = True
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._draw_often, name="view", daemon=True)
        self._live = Live(
            self, console=console, auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
        )  # fmt: skip
        atexit.register(self.close)  # the cursor comes back even if nobody closes
        with _lost_terminal():
            self._live.start(refresh=True)
        self._thread.start()

    def hear(self, report: AnyReport) -> None:
        match self._waits.seen(report):
            case Line() as report:
                self._note(report.task, report.text)
            case Evaluated() as report:
                self._note(RUN, metrics_line(report))
            case Status() as report:
                self._rows[report.task] = _carried(self._rows.get(report.task), report)
            case Published() as report:
                self._rows[report.task] = Status(report.task, "serving")
            case Progress() as report:
                self._progress = report
                self._owner("serving", report.global_step)
            case Finished() as report:
                if self._progress is not None:
                    self._progress = replace(self._progress, global_step=report.global_step, waiting_for="")
                self._owner("done", report.global_step)
            case Failed() as report:
                self._rows[report.task] = replace(
                    self._rows.get(report.task, Status(report.task, "failed")), state="failed", waiting_for=""
                )
        self._changed = True

    def say(self, text: str) -> None:
        self._note(RUN, text)

    def close(self) -> None:
        """Draw the last state, which stays on the screen, and show the cursor again."""
        self._closing.set()
        try:
            self._thread.join(timeout=2.0)
            with _lost_terminal():
                self._draw()
        finally:
            with _lost_terminal():
                self._live.stop()
        atexit.unregister(self.close)

    def _note(self, who: str, text: str) -> None:
        width = max(map(len, self._rows), default=0)
        for line in text.splitlines():
            self._missed += len(self._lines) == self._lines.maxlen
            self._lines.append(f"{self._clock() - self._start:6.1f}s  {who:<{width}}  {line}")

    def _owner(self, state: str, step: int) -> None:
        """ps:0 owns the global step and tells of itself by telling of the run."""
        if "ps:0" in self._rows:
            self._rows["ps:0"] = Status("ps:0", state, step)

    # --- drawing, in the thread

    def _draw_often(self) -> None:
        with _lost_terminal():
            while not self._closing.wait(PERIOD):
                self._draw()

    def _draw(self) -> None:
        """Lines come in one piece: each print draws the table again below it."""
        if getattr(self._console.file, "behind", False) and not self._closing.is_set():
            return  # the last drawing is still on its way: it is the newest that people want to see
        missed, self._missed = self._missed, 0
        lines = [f"({missed} lines were not shown)"] if missed else []
        lines += [self._lines.popleft() for _ in range(len(self._lines))]
        changed, self._changed = self._changed, False
        if lines:
            self._console.print(Text(printable("\n".join(lines), self._console.encoding)), soft_wrap=True)
        elif changed:
            self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        progress = self._progress
        yield Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")
        yield self._table(wide=options.max_width >= 80, room=max(1, console.size.height - OTHER_LINES))
        if progress is None:
            return
        yield _bar(progress)
        yield Text(", ".join(figures(progress)), no_wrap=True, overflow="ellipsis")
        if progress.waiting_for:
            yield Text(f"waiting for: {progress.waiting_for}", style="yellow")
        elif not self._closing.is_set():
            yield Text("")  # kept free, so that the table does not jump with every wait

    def _table(self, *, wide: bool, room: int) -> Table:
        rows = list(self._rows.values())  # in one step: `hear` may add a row at any time
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1), header_style="dim")
        for head in ("task", "state"):
            table.add_column(head, no_wrap=True)
        for head, short in (("step", "step"), ("examples/s", "ex/s"), ("staleness", "stale")):
            table.add_column(head if wide else short, no_wrap=True, justify="right")
        table.add_column("waiting for", no_wrap=True, overflow="ellipsis", ratio=1)
        shown, rest = (rows, []) if len(rows) <= room else (rows[: room - 1], rows[room - 1 :])
        for row in shown:
            worker = not row.task.startswith("ps:")
            table.add_row(
                row.task, Text(row.state, style=_COLORS.get(row.state, "")), f"{row.step}",
                rate(row.examples_per_second) if worker else "", f"{row.staleness:.1f}" if worker else "",
                Text(row.waiting_for),
            )  # fmt: skip
        if rest:
            states = ", ".join(f"{n} {state}" for state, n in Counter(row.state for row in rest).most_common())
            table.add_row(f"{len(rest)} more", "", "", "", "", Text(states))
        return table


def _bar(progress: Progress) -> Table:
    total = progress.train_steps or None  # None: a bar that does not know its end
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    percent = [f"{100 * progress.global_step // total}%"] if total else []
    bar = ProgressBar(total=total, completed=progress.global_step, pulse=total is None, animation_time=0.0)
    grid.add_row(step_text(progress), bar, " ".join([*percent, *eta(progress)]))
    return grid


def _carried(old: Status | None, new: Status) -> Status:
    """A task that tells only that it waits, or ends, keeps the figures that it told before; a new life does not."""
    if old is None or new.step or new.state == "starting":
        return new
    speed = 0.0 if new.state == "waiting" else old.examples_per_second
    return replace(new, step=old.step, staleness=old.staleness, examples_per_second=speed)


@contextlib.contextmanager
def _lost_terminal() -> Iterator[None]:
    """A window that was closed must not end the run; rich turns a broken pipe into SystemExit."""
    with contextlib.suppress(OSError, ValueError, SystemExit):
        yield
