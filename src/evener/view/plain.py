"""What people see of a run: a live table in a terminal, plain lines in a pipe or a file, and the last words of a run.

A view only hears reports; it never asks a task anything. It has no timer of its own for what it says: a report
comes at least every 0.2 s while a run lives, so whatever a limit holds back is said with a later report.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from evener.report import AnyReport, Evaluated, Failed, Line, Progress, Status
from evener.result import Result
from evener.view.waits import LastingWaits

#: Seconds between two plain lines of progress.
HEARTBEAT = 5.0
#: Seconds between two plain lines about waiting, of one task or of the run.
WAIT_LIMIT = 1.0
#: Seconds after which a task that still waits for the same is told of again.
STILL_WAITING = 10.0
#: The name before lines that belong to no task.
RUN = "run"
_COUNTER = re.compile(r"\s*\(\d+ s\b[^)]*\)")


class View(Protocol):
    """Shows a run to a person. Nothing that happens to the stream may harm the run."""

    def hear(self, report: AnyReport) -> None:
        """Take in one report; cheap, since one-process runs call it from the training loop."""

    def say(self, text: str) -> None:
        """One line from the launcher itself."""

    def close(self) -> None:
        """Show the last state and give the terminal back. Safe to call twice."""


def make_view(*, stream: TextIO, tasks: Sequence[str], title: str, clock: Callable[[], float]) -> View:
    """A live view if `stream` is a terminal that can redraw lines, else plain lines.

    `isatty` is asked besides rich, because FORCE_COLOR makes rich call any pipe a terminal. Terminals that cannot move
    the cursor (TERM=dumb) or cannot show the characters of the table get plain lines as well.

    Args:
        stream: where people look; it is never closed.
        tasks: the rows, in order: "ps:0", "worker:0", ... Others get a row when they first report.
        title: one line on top: what is trained, by whom.
        clock: seconds, monotonic.
    """
    if stream.isatty():
        from rich.console import Console

        from evener.view.live import LiveView

        console = Console(file=stream, highlight=False)
        if console.is_terminal and console.is_interactive and console.encoding.lower().startswith("utf"):
            return LiveView(console=console, tasks=tasks, title=title, clock=clock)
    return PlainView(stream=stream, tasks=tasks, title=title, clock=clock)


class PlainView:
    """One line for one event, flushed at once: for pipes, files, CI and `kubectl logs`.

    Progress comes every 5 s; a wait is told as soon as it has lasted 2 s or changes, but at most once a second, and
    again every 10 s while it lasts.
    """

    def __init__(self, *, stream: TextIO, tasks: Sequence[str], title: str, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._start = clock()
        self._width = max(len(name) for name in (RUN, *tasks))
        self._silent = False
        self._waits = LastingWaits(clock)
        # of the run
        self._told_at = -math.inf
        self._told = ""  # for whom the run waits, as last printed
        # of each task
        self._wait_told_at: dict[str, float] = {}
        self._wait_told: dict[str, str] = {}
        self._wait_held: dict[str, str] = {}  # came within the second after the last one; said with a later report
        self.say(title)

    def hear(self, report: AnyReport) -> None:
        match self._waits.seen(report):
            case Line() as report:
                self._print(report.task, report.text)
            case Progress() as progress:
                self._hear_progress(progress)
            case Status() as status:
                self._hear_status(status)
            case Evaluated() as report:
                self._print(RUN, metrics_line(report))
        if self._wait_held:
            self._tell_waits()

    def say(self, text: str) -> None:
        self._print(RUN, text)

    def close(self) -> None:
        """Every line was flushed when it was printed."""

    def _hear_progress(self, progress: Progress) -> None:
        sentence = _COUNTER.sub("", progress.waiting_for)
        if not sentence:
            self._told = ""
        changed = bool(sentence) and sentence != self._told
        now = self._clock()
        if now - self._told_at < (WAIT_LIMIT if changed else HEARTBEAT):
            return
        self._told_at, self._told = now, sentence
        waiting = f"; waiting for: {progress.waiting_for}" if sentence else ""
        self._print(RUN, ", ".join([step_text(progress), *figures(progress), *eta(progress)]) + waiting)

    def _hear_status(self, status: Status) -> None:
        sentence = _COUNTER.sub("", status.waiting_for)
        if not sentence:
            self._wait_told.pop(status.task, None)
        told_at = self._wait_told_at.get(status.task, -math.inf)
        news = sentence != self._wait_told.get(status.task) or self._clock() - told_at >= STILL_WAITING
        if sentence and news:
            self._wait_held[status.task] = status.waiting_for
        else:
            self._wait_held.pop(status.task, None)

    def _tell_waits(self) -> None:
        now = self._clock()
        for task, sentence in list(self._wait_held.items()):
            if now - self._wait_told_at.get(task, -math.inf) >= WAIT_LIMIT:
                self._wait_told_at[task] = now
                self._wait_told[task] = _COUNTER.sub("", sentence)
                del self._wait_held[task]
                self._print(task, f"waiting for {sentence}")

    def _print(self, who: str, text: str) -> None:
        if self._silent:
            return
        prefix = f"{self._clock() - self._start:6.1f}s  {who:<{self._width}}  "
        try:
            for line in text.splitlines():
                self._stream.write(printable(prefix + line, self._stream.encoding) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # Nobody reads any more (`evener train ... | head`). Python flushes the rest at its exit and would fail
            # there again, with exit code 120 for a run that went well; so the rest goes nowhere.
            self._silent = True
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except (OSError, ValueError):  # closed, or its disk is full
            self._silent = True


# --- texts that several views share


def printable(text: str, encoding: str | None) -> str:
    """`text` with escapes for what `encoding` cannot say: an odd file name must not end a run."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def rate(value: float) -> str:
    """Three digits where they matter: 53000, 530, 5.3, 0.053."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds for people: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def step_text(progress: Progress) -> str:
    """How far; `train_steps` is 0 where the end is not known."""
    return f"global step {progress.global_step}" + (f"/{progress.train_steps}" if progress.train_steps else "")


def figures(progress: Progress) -> list[str]:
    """How fast and how well. A loss that is NaN is one that nobody has told yet."""
    loss = [] if math.isnan(progress.loss) else [f"loss {progress.loss:.4f}"]
    speeds = [f"{rate(progress.steps_per_second)} steps/s", f"{rate(progress.examples_per_second)} examples/s"]
    return [*speeds, *loss, f"dropped {progress.dropped}"]


def eta(progress: Progress) -> list[str]:
    """How long still, at the present speed; nothing where that cannot be known."""
    left = progress.train_steps - progress.global_step
    if left <= 0 or progress.steps_per_second <= 0:
        return []
    return [f"ETA {duration(left / progress.steps_per_second)}"]


def metrics_line(evaluated: Evaluated) -> str:
    """An evaluation in one line."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in evaluated.values.items())
    return f"{'final evaluation' if evaluated.final else 'evaluation'} at global step {evaluated.global_step}: {values}"


# --- the last words of a run


def failure_block(failed: Failed, host: str = "", log: str = "") -> str:
    """The last thing a person sees of a run that failed: who, what, why, how to mend it, where to look.

    The traceback stands last and once, so that its last line, the error itself, is the last line on the screen.
    """
    who = f"{failed.task} on {host}" if host else failed.task
    what = f": {failed.what}" if failed.what else "."
    facts = {"why": failed.why, "fix": failed.fix, "context": failed.context, "log": log}
    lines = [f"{who} failed with {failed.kind}{what}", *(f"  {name}: {text}" for name, text in facts.items() if text)]
    lines = [line.rstrip().replace("\n", "\n    ") for line in lines]  # what belongs together is indented together
    if failed.traceback:
        lines += ["", failed.traceback.rstrip()]
    return "\n".join(lines)


def installed(name: str, start: Path) -> str:
    """How to call a program of this environment from `start`: its name, or its path where the shell finds none."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside, start)


def seen_from(start: Path | None, path: str) -> str:
    """A path as a person writes it who is in the directory `start`; one that does not lie below it stays."""
    return str(Path(path).relative_to(start)) if start and path and Path(path).is_relative_to(start) else path


def summary(result: Result, program: Callable[[str], str] = str, start: Path | None = None) -> str:
    """The last thing a person sees of a run that finished: how good, how fast, and what to type next.

    Args:
        program: "evener" -> how it is called here.
        start: where the person is; paths below it are shown from there.
    """
    checkpoint, logdir = seen_from(start, result.checkpoint), seen_from(start, result.logdir)
    rows = _validation_rows(result)
    rows["global step"] = f"{result.global_step}; {result.examples} examples in {result.seconds:.1f} s"
    rows["speed"] = f"{rate(result.steps_per_second)} steps/s, {rate(result.examples_per_second)} examples/s"
    if result.ps:
        rows["dropped gradients"] = f"{result.dropped_gradients}"
        rows["staleness"] = f"mean {result.mean_staleness:.2f}, max {result.max_staleness}"
    if checkpoint:
        rows["checkpoint"] = checkpoint
        if result.recipe.endswith(".py"):  # a program with a loop of its own, which alone can evaluate it
            rows["for plain PyTorch"] = shlex.join([program("evener"), "export", logdir, "model.pt"])
        else:
            rows["evaluate it"] = shlex.join([program("evener"), "eval", result.recipe, "--checkpoint", checkpoint])
    if logdir:
        rows["TensorBoard logs"] = logdir
        rows["look at them"] = shlex.join([program("tensorboard"), "--logdir", logdir])
    width = max(len(name) for name in rows)
    return "\n".join([f"{result.recipe}: {result.reason}", *(f"  {n:<{width}}  {text}" for n, text in rows.items())])


def _validation_rows(result: Result) -> dict[str, str]:
    """One row a metric, accuracy first: its value, and its value with EMA beside it."""
    known = {
        "validation_accuracy": result.validation_accuracy,
        "validation_accuracy_ema": result.validation_accuracy_ema,
        "validation_loss": result.validation_loss,
    }
    values: Mapping[str, float] = {n: v for n, v in known.items() if v is not None} | result.validation
    rows: dict[str, list[str]] = {}
    for name, value in values.items():
        metric = name.removesuffix("_ema")
        rows.setdefault(metric.replace("_", " "), []).append(f"{value:.4f}{' with EMA' if name != metric else ''}")
    return {metric: ", ".join(texts) for metric, texts in rows.items()}
