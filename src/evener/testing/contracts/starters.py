"""What every starter promises of the tasks that it starts: see `Starter` and `Running` in launch/starters/process.py.

The tasks are real ones. What they do is the code of a recipe that the contract writes into the current directory; so
they must find modules there, and run on this machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from evener.control.control import Assignment, Stop
from evener.control.told import LEFT
from evener.errors import PREEMPTED
from evener.launch.starters.process import Running, Starter
from evener.report import AnyReport, Failed, Line, Published
from evener.transport.channel import wait

Wanted = TypeVar("Wanted")

#: Every wait ends with an error after this. No test asks how long one took.
SECONDS = 60.0
#: A recipe that leaves two processes behind, one of them in a group of its own, and then serves as it should.
PARENT = """
import subprocess
started = [subprocess.Popen(["sleep", "1000"], process_group=group) for group in (None, 0)]
print(*(child.pid for child in started))
from evener.recipes.mnist import mnist as recipe
"""
SERVES = "from evener.recipes.mnist import mnist as recipe"


def until(condition: Callable[[], Wanted]) -> Wanted:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    """Dead, whether or not somebody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Watched:
    """One life of a task, and all that it has reported."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.heard: list[AnyReport] = []

    def listen(self) -> None:
        if self.running.open:
            for source in wait([self.running], 0.1):
                assert source is self.running
                self.heard += self.running.reports()

    def first(self, kind: type[Wanted]) -> Wanted:
        """The first report of a kind."""

        def look() -> list[Wanted]:
            self.listen()
            return [report for report in self.heard if isinstance(report, kind)]

        return until(look)[0]

    def printed(self, count: int) -> list[Line]:
        """So many lines that it has printed; a starter may say things of its own, as "run"."""

        def look() -> list[Line]:
            self.listen()
            lines = [report for report in self.heard if isinstance(report, Line) and report.task != "run"]
            return lines if len(lines) >= count else []

        return until(look)

    def end(self) -> str:
        """How it ended, when all is read."""

        def over() -> bool:
            self.listen()
            return not self.running.open and self.running.ended() is not None

        until(over)
        how = self.running.ended()
        assert how is not None
        return how


class StarterContract:
    """Who inherits overrides `starter`, and `broken`."""

    @pytest.fixture
    def starter(self, place: Path) -> Iterator[Starter]:
        """Starts ps:0 and worker:0 where the current directory is `place`."""
        raise NotImplementedError

    @pytest.fixture
    def broken(self, place: Path) -> Iterator[Starter]:
        """One that cannot start a task, for whatever reason it may have."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty directory that is the current one, of the tasks too."""
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.fixture
    def run(self, starter: Starter, place: Path) -> Iterator[Callable[..., Watched]]:
        """Start a task that runs this code; all are closed at the end, and then their starter."""
        lives: list[Running] = []

        def start(code: str, job: str = "ps") -> Watched:
            module = f"errand_{len(lives)}"
            (place / f"{module}.py").write_text(code)
            lives.append(starter.start(assignment(place, f"{module}:recipe", job)))
            return Watched(lives[-1])

        yield start
        for running in lives:
            running.kill()
            running.close()

    # --- how it ended

    @pytest.mark.parametrize(
        ("code", "how"),
        [
            ("os._exit(3)", "ended with status 3"),
            ("os._exit(0)", ""),
            (f"os._exit({PREEMPTED})", LEFT),
            ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ],
        ids=["3", "well", "told to leave", "by a signal"],
    )
    def test_how_a_task_ended_is_seen(self, run: Callable[..., Watched], code: str, how: str) -> None:
        assert run(f"import os\n{code}").end() == how

    def test_a_task_that_lives_has_not_ended_and_one_that_says_nothing_keeps_nobody_waiting(
        self, run: Callable[..., Watched], starter: Starter
    ) -> None:
        task = run("import time\nprint('begun')\ntime.sleep(1000)")
        task.printed(1)

        assert task.running.reports() == []
        assert (task.running.open, task.running.ended()) == (True, None)

    def test_two_tasks_end_apart(self, run: Callable[..., Watched]) -> None:
        one, other = run("import time\ntime.sleep(1000)"), run("import os\nos._exit(3)", job="worker")

        assert other.end() == "ended with status 3"
        assert one.running.ended() is None

    def test_a_task_that_has_ended_may_be_started_again(self, run: Callable[..., Watched]) -> None:
        first = run("import os\nos._exit(3)")
        first.end()
        first.running.close()

        assert run("import os\nos._exit(5)").end() == "ended with status 5"

    # --- what it says

    def test_what_it_prints_comes_line_by_line_with_its_name(self, run: Callable[..., Watched]) -> None:
        task = run("import time\nprint('one', end=' '); print('two')\nprint('three\\nfour')\ntime.sleep(1000)")

        assert task.printed(3) == [Line("ps:0", "one two"), Line("ps:0", "three"), Line("ps:0", "four")]

    def test_what_it_said_last_is_heard_although_it_has_ended(self, run: Callable[..., Watched]) -> None:
        task = run("import os\nprint('the last words')\nos._exit(3)")
        task.end()

        assert task.printed(1) == [Line("ps:0", "the last words")]

    def test_a_task_that_cannot_begin_its_work_says_why_and_its_log_says_where(
        self, run: Callable[..., Watched]
    ) -> None:
        task = run("raise LookupError('no such animal')")

        assert "no such animal" in str(task.first(Failed))
        assert task.end() == "ended with status 1"
        assert task.running.host
        assert "no such animal" in Path(task.running.log).read_text()

    def test_a_start_that_fails_is_a_life_that_is_over_and_says_why(self, broken: Starter, place: Path) -> None:
        """It raises nothing: a launcher may try again, or go on without this task."""
        running = broken.start(assignment(place, "mnist", "ps"))
        how = running.ended()

        assert not running.open
        assert how is not None and how.startswith("cannot start: ") and len(how) > len("cannot start: ...")
        assert running.reports() == []
        assert running.pid == 0
        assert running.host
        running.order(Stop("late"))
        running.kill()
        running.close()
        broken.close()

    # --- orders, and its end

    def test_orders_arrive(self, run: Callable[..., Watched]) -> None:
        task = run(SERVES)
        assert task.first(Published).task == "ps:0"
        task.running.order(Stop("enough"))

        assert task.end() == ""

    def test_nothing_that_is_asked_of_a_task_that_has_ended_is_an_error(self, run: Callable[..., Watched]) -> None:
        task = run("import os\nos._exit(3)")
        task.end()
        for _ in range(2):
            task.running.order(Stop("late"))
            task.running.kill()
            task.running.close()

        assert task.running.ended() == "ended with status 3"

    def test_kill_ends_it_and_what_it_has_started(self, run: Callable[..., Watched]) -> None:
        task = run(PARENT)
        task.first(Published)
        children = [int(pid) for pid in task.printed(1)[0].text.split()]
        assert not any(map(gone, children))
        task.running.kill()

        assert task.end() == "was killed by SIGKILL"
        until(lambda: all(map(gone, children)))

    def test_nothing_of_it_is_left_when_it_and_its_starter_are_closed(
        self, run: Callable[..., Watched], starter: Starter
    ) -> None:
        task = run(PARENT + "import os\nprint(os.getpid())")
        task.first(Published)
        pids = [int(pid) for line in task.printed(2) for pid in line.text.split()]
        assert len(pids) == 3 and os.getpid() not in pids and not any(map(gone, pids))
        task.running.close()
        starter.close()

        until(lambda: all(map(gone, pids)))


def assignment(place: Path, recipe: str, job: str) -> Assignment:
    settings = {"recipe": recipe, "logdir": str(place / "run"), "ps": 1, "workers": 1, "train_steps": 5}
    return Assignment(job, 0, settings, "run")
