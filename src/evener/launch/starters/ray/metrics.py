"""What Ray's dashboard shows of a run: gauges by run and task, which its own exporter collects."""

from __future__ import annotations

from ray.util.metrics import Gauge

from evener.report import AnyReport, Progress, Status

#: Name of a gauge -> what it is, and in which unit.
OF_RUN = {
    "evener_global_step": "updates that were applied",
    "evener_steps_per_second": "updates a second",
    "evener_dropped_gradients": "gradients that were not applied, by now",
}
OF_TASK = {
    "evener_examples_per_second": "samples a second that this task computes, or applies",
    "evener_staleness": "updates between the parameters of a gradient and those it was applied to, in the mean",
    "evener_waiting": "1 while this task waits for another one",
}


class Metrics:
    """The gauges of one run."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges = {name: Gauge(name, text, ("run",)) for name, text in OF_RUN.items()}
        self._gauges |= {name: Gauge(name, text, ("run", "task")) for name, text in OF_TASK.items()}

    def hear(self, report: AnyReport) -> None:
        """Take in one report; all but figures is passed over."""
        match report:
            case Progress():
                values = (report.global_step, report.steps_per_second, report.dropped)
                tags = {"run": self._run}
                for name, value in zip(OF_RUN, values, strict=True):
                    self._gauges[name].set(float(value), tags)
            case Status():
                figures = (report.examples_per_second, report.staleness, float(bool(report.waiting_for)))
                tags = {"run": self._run, "task": report.task}
                for name, value in zip(OF_TASK, figures, strict=True):
                    self._gauges[name].set(float(value), tags)
            case _:
                pass
