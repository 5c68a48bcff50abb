"""The actor of one life, without Ray around it: a real process, its orders and its reports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evener.control import control
from evener.control.control import Assignment, Stop
from evener.control.told import LEFT
from evener.launch.starters.ray.host import TaskHost
from evener.launch.starters.ray.told import Heard, Start, mark_of
from evener.report import AnyReport, Failed, Line, Published

pytestmark = pytest.mark.slow
SECONDS = 60.0
SERVES = "from evener.recipes.mnist import mnist as recipe"


class Driver:
    """Calls the actor as the launcher does, one call after the other."""

    def __init__(self, host: TaskHost) -> None:
        self.host, self.loop = host, asyncio.new_event_loop()
        self._stream = control.reports()
        self.heard: list[AnyReport] = []
        self.last = Heard()

    def do(self, call: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(call, SECONDS))

    def listen(self, kind: type[AnyReport] | None = None) -> str | None:
        """Until there is such a report; None: until its end."""
        while self.last.how is None and not (kind and any(isinstance(report, kind) for report in self.heard)):
            self.last = self.do(self.host.hear())
            self.heard += self._stream.feed(self.last.reports)
        return self.last.how


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("started", "shipped"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "shipped")
    return tmp_path


@pytest.fixture
def begun(place: Path) -> Iterator[Any]:
    """An actor that was ordered to begin with this code; `drains` says whether its node is to go away."""
    drivers: list[Driver] = []

    def begin(
        code: str, *, where: str = "started", mark: int | None = None, drains: Any = lambda node: False
    ) -> Driver:
        (place / where / "errand.py").write_text(code)
        directory = str(place / "started")
        start = Start(directory, mark_of(directory) if mark is None else mark, str(place / "run"), "token",
                      shipped={"recipe": "errand.py:recipe"})  # fmt: skip
        driver = Driver(TaskHost("ps:0", start, lambda: ("127.0.0.1", "n0"), drains))
        drivers.append(driver)
        settings = {"recipe": f"{directory}/errand.py:recipe", "logdir": str(place / "run"), "ps": 1, "workers": 1,
                    "train_steps": 5, "ps_hosts": ("0.0.0.0:0",)}  # fmt: skip
        driver.do(driver.host.order(control.framed(Assignment("ps", 0, settings, "run"))))
        return driver

    yield begin
    for driver in drivers:
        driver.do(driver.host.close())
        for task in asyncio.all_tasks(driver.loop):
            task.cancel()
        driver.loop.run_until_complete(asyncio.sleep(0))
        driver.loop.close()


def test_it_says_where_it_stands_and_shows_the_public_half_of_its_key(place):
    driver = Driver(TaskHost("ps:0", Start("", 0, str(place), "token"), lambda: ("10.0.0.7", "n7"), lambda node: False))
    (place / "token").touch()
    here = driver.do(driver.host.here())
    driver.do(driver.host.close())
    driver.loop.close()

    assert (here.address, here.node, here.shares) == ("10.0.0.7", "n7", True)
    assert here.certificate.startswith("-----BEGIN CERTIFICATE-----") and "PRIVATE" not in here.certificate


def test_a_ps_listens_at_the_address_of_its_node_and_obeys(begun):
    driver = begun(SERVES)
    driver.listen(Published)
    published = next(report for report in driver.heard if isinstance(report, Published))
    assert published.address.startswith("tcp://127.0.0.1:")
    assert not published.address.endswith(":0")
    driver.do(driver.host.order(control.framed(Stop("enough"))))

    assert driver.listen() == ""


def test_where_the_launchers_directory_is_not_it_works_in_what_was_shipped(begun, place):
    driver = begun("import os\nprint(os.getcwd())\nos._exit(3)", where="shipped", mark=1)

    assert driver.listen() == "ended with status 3"
    assert Line("ps:0", str(place / "shipped")) in driver.heard


def test_where_it_is_it_works_there(begun, place):
    driver = begun("import os\nprint(os.getcwd())\nos._exit(3)")

    assert driver.listen() == "ended with status 3"
    assert Line("ps:0", str(place / "started")) in driver.heard


def test_a_node_that_is_to_go_away_lets_its_task_leave(begun):
    driver = begun(SERVES, drains=lambda node: node == "n0")

    assert driver.listen() == LEFT
    assert driver.last.drains
    assert any(isinstance(report, Line) and "its node is to go away" in report.text for report in driver.heard)


def test_an_error_of_the_recipe_is_a_report_as_anywhere(begun):
    driver = begun("raise LookupError('no such animal')")

    assert driver.listen() == "ended with status 1"
    assert "no such animal" in str(next(report for report in driver.heard if isinstance(report, Failed)))


def test_ended_it_is_dead(begun):
    driver = begun(SERVES)
    driver.listen(Published)
    driver.do(driver.host.end())

    assert driver.listen() == "was killed by SIGKILL"
