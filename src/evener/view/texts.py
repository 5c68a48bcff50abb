"""What several views say in the same words."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from evener.report import Evaluated, Failed, Progress
from evener.result import Result

#: The name before lines that belong to no task.
RUN = "run"


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
