"""What people see, word for word: plain lines on a virtual clock, the live table at two widths, the last words."""

import fcntl
import io
import math
import os
import pty
import struct
import termios

import pytest
from rich.console import Console

from evener.report import Evaluated, Failed, Finished, Line, Progress, Published, Status
from evener.result import Result
from evener.view.live import LiveView
from evener.view.plain import PlainView, make_view
from evener.view.texts import duration, failure_block, rate, summary

TASKS = ("ps:0", "worker:0", "worker:1")
TITLE = "mnist, async, 1 ps + 2 workers"


class Clock:
    """Seconds that pass only when told; it starts anywhere, as real ones do."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def plain(stream, clock):
    view = make_view(stream=stream, tasks=TASKS, title=TITLE, clock=clock)
    assert isinstance(view, PlainView)
    stream.seek(0)
    stream.truncate()
    return view


def lines(stream):
    """The lines since the last call."""
    text = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return text.splitlines()


def progress(step=1200, waiting_for="", **more):
    figures = dict(examples_per_second=53000.0, steps_per_second=530.0, loss=0.231, dropped=3) | more
    return Progress(step, 2000, waiting_for=waiting_for, **figures)


FIGURES = "530 steps/s, 53000 examples/s, loss 0.2310, dropped 3, ETA 2 s"


# --- plain lines


def test_lines_carry_the_seconds_since_the_start_and_who_says_them(stream, clock):
    view = make_view(stream=stream, tasks=TASKS, title=TITLE, clock=clock)
    clock.now += 12.34
    view.hear(Line("worker:0", "global step 100: loss 0.5"))
    view.hear(Line("ps:0", "two\nlines"))
    view.say("worker:1 ended with signal 9; started again (1 of 3)")
    clock.now += 1e4
    view.hear(Evaluated(2000, {"validation_loss": 0.12345, "validation_accuracy": 0.98}, final=True))
    view.hear(Evaluated(1000, {"validation_loss": math.nan}, final=False))
    view.close()
    view.close()

    assert lines(stream) == [
        "   0.0s  run       mnist, async, 1 ps + 2 workers",
        "  12.3s  worker:0  global step 100: loss 0.5",
        "  12.3s  ps:0      two",
        "  12.3s  ps:0      lines",
        "  12.3s  run       worker:1 ended with signal 9; started again (1 of 3)",
        "10012.3s  run       final evaluation at global step 2000: validation_loss 0.1235, validation_accuracy 0.9800",
        "10012.3s  run       evaluation at global step 1000: validation_loss nan",
    ]


def test_progress_comes_at_once_and_then_every_5_seconds(plain, stream, clock):
    for i in range(40):  # 8 seconds of a report every 0.2 s
        plain.hear(progress(1200 + i))
        clock.now += 0.2

    assert lines(stream) == [
        f"   0.0s  run       global step 1200/2000, {FIGURES}",
        "   5.0s  run       global step 1225/2000, 530 steps/s, 53000 examples/s, loss 0.2310, dropped 3, ETA 1 s",
    ]


def test_progress_leaves_out_what_nobody_knows_yet(plain, stream, clock):
    plain.hear(Progress(0, 0, 0.0, 0.0, math.nan, 0))
    assert lines(stream) == ["   0.0s  run       global step 0, 0 steps/s, 0 examples/s, dropped 0"]

    clock.now += 5
    plain.hear(progress(2000))
    assert lines(stream) == [f"   5.0s  run       global step 2000/2000, {FIGURES.removesuffix(', ETA 2 s')}"]


def test_a_run_that_stands_says_for_whom_after_2_seconds_and_when_that_changes_but_once_a_second(plain, stream, clock):
    told = []
    for waiting_for in 13 * ["worker:0, worker:1 to join"] + 20 * ["worker:1 to join"]:
        plain.hear(progress(0, waiting_for))
        told += [(round(clock.now - 100, 1), line.partition("; ")[2]) for line in lines(stream)]
        clock.now += 0.2

    assert told == [
        (0.0, ""), (2.0, "waiting for: worker:0, worker:1 to join"), (3.0, "waiting for: worker:1 to join"),
    ]  # fmt: skip

    clock.now += 1.4  # 8 s: a wait that goes on is said again with every fifth second
    plain.hear(progress(0, "worker:1 to join"))
    assert lines(stream) == [f"   8.0s  run       global step 0/2000, {FIGURES.replace('2 s', '4 s')}; "
                             "waiting for: worker:1 to join"]  # fmt: skip


def test_a_counter_of_seconds_is_no_news(plain, stream, clock):
    for second in range(5):
        plain.hear(progress(7, f"worker:1 to push ({second} s)"))
        clock.now += 1

    assert ["waiting" in line for line in lines(stream)] == [False, True]


def test_a_run_that_moves_tells_no_short_wait(plain, stream, clock):
    for step in range(60):  # sync: each report finds another sentence; and now and then a step takes 1.8 s
        plain.hear(progress(step - step % 10, f"update {step + 1} needs 2 gradients, holds none"))
        clock.now += 0.18
    assert [line[:7] for line in lines(stream)] == ["   0.0s", "   5.0s", "  10.1s"]

    plain.hear(progress(60, "update 61 needs 2 gradients, holds 1 (worker:0), worker:1 is computing"))  # 10.8 s
    clock.now += 2
    plain.hear(progress(60, "update 61 needs 2 gradients, holds 1 (worker:0), worker:1 left"))
    (line,) = lines(stream)
    assert line.startswith("  12.8s") and line.endswith("; waiting for: update 61 needs 2 gradients, "
                                                        "holds 1 (worker:0), worker:1 left")  # fmt: skip


def test_a_task_tells_when_its_wait_has_lasted_and_not_while_it_waits(plain, stream, clock):
    def waits(seconds):
        for second in seconds:
            plain.hear(Status("worker:1", "waiting", waiting_for=f"ps:0 to release worker:1 ({second} s)"))
            clock.now += 1

    waits(range(1, 6))  # 0.0 s to 5.0 s
    plain.hear(Status("worker:1", "training", 12))
    waits(range(1, 5))  # 5.0 s to 9.0 s

    assert lines(stream) == [
        "   2.0s  worker:1  waiting for ps:0 to release worker:1 (3 s)",
        "   7.0s  worker:1  waiting for ps:0 to release worker:1 (3 s)",
    ]


def test_a_task_that_waits_a_moment_now_and_then_says_nothing_of_it(plain, stream, clock):
    for _ in range(20):
        plain.hear(Status("worker:1", "waiting", waiting_for="ps:0 to release worker:1 (1 s)"))
        clock.now += 1.5
        plain.hear(Status("worker:1", "training", 12))

    assert lines(stream) == []


def test_waits_of_one_task_within_a_second_are_held_back_and_not_lost(plain, stream, clock):
    plain.hear(Status("worker:0", "starting", waiting_for="its data"))
    plain.hear(Status("worker:1", "starting", waiting_for="its data"))
    clock.now += 0.3
    plain.hear(Status("worker:0", "starting", waiting_for="the addresses of the ps tasks"))
    plain.hear(Status("worker:1", "starting", waiting_for="the addresses of the ps tasks"))
    plain.hear(Status("worker:1", "training", 1))  # waits no more: nothing to tell
    clock.now += 0.8
    plain.hear(Published("ps:0", "127.0.0.1:1234"))  # any report brings out what was held

    assert lines(stream) == [
        "   0.0s  worker:0  waiting for its data",
        "   0.0s  worker:1  waiting for its data",
        "   1.1s  worker:0  waiting for the addresses of the ps tasks",
    ]


def test_the_launcher_tells_of_failures_and_the_summary_tells_of_the_end(plain, stream):
    plain.hear(Failed("worker:1", "ValueError", "no"))
    plain.hear(Finished(2000, 0, 200_000, 4.0, 0.2, 0, 1.0, 2, "/c", "reached step 2000"))
    plain.hear(Status("worker:1", "done"))
    assert lines(stream) == []


def test_every_line_is_flushed(clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="ascii")
    view = PlainView(stream=stream, tasks=(), title="t", clock=clock)
    view.say("größer")  # and a narrow encoding harms nobody
    assert raw.getvalue().splitlines() == [b"   0.0s  run  t", b"   0.0s  run  gr\\xf6\\xdfer"]
    stream.detach()


def test_a_reader_that_left_harms_neither_the_run_nor_the_exit_of_python(clock):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        view = PlainView(stream=stream, tasks=TASKS, title=TITLE, clock=clock)
        os.close(reader)
        for _ in range(3):
            view.say("into the void")
            view.hear(progress())
        view.close()
        stream.write("written at exit")
    # leaving the block flushes and closes: no BrokenPipeError


def test_a_stream_that_was_closed_does_not_harm_the_run(plain, stream):
    stream.close()
    plain.say("into the void")
    plain.hear(progress())


# --- the terminal


def terminal(width, height=40):
    environment = {"TERM": "xterm"}  # not that of whoever runs the tests
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None, _environ=environment
    )


@pytest.fixture
def show(clock):
    """A live view of these reports, and the text of its last state."""
    views = []

    def show(*reports, width=100, height=40, tasks=TASKS):
        console = terminal(width, height)
        view = LiveView(console=console, tasks=tasks, title=TITLE, clock=clock)
        views.append(view)
        for report in reports:
            if isinstance(report, float):  # seconds pass
                clock.now += report
            else:
                view.hear(report)
        page = Console(file=io.StringIO(), width=width, height=height, _environ={})
        page.print(view)
        return [line.rstrip() for line in page.file.getvalue().splitlines()]

    yield show
    for view in views:
        view.close()


REPORTS = (
    Published("ps:0", "127.0.0.1:1234"),
    Status("worker:0", "training", 610, 26500.0, 0.93),
    Status("worker:1", "training", 590, 26400.0, 1.04),
    Status("worker:1", "waiting", waiting_for="ps:0 to release worker:1 (1 s)"),
    progress(1200),
    2.0,
    Status("worker:1", "waiting", waiting_for="ps:0 to release worker:1 (3 s)"),
    progress(1200, "worker:1 is 3 steps ahead and waits for worker:0"),
)


def test_waits_of_a_moment_do_not_flicker_in_the_table(show):
    page = show(
        Status("worker:1", "training", 590, 26400.0, 1.04), progress(1200), 1.9,
        Status("worker:1", "waiting", waiting_for="ps:0 to release worker:1 (1 s)"),
        progress(1200, "1 gradient is not yet on ps:1"),
    )  # fmt: skip
    assert page[4] == "worker:1  training   590       26400        1.0"
    assert page[7:] == [""]  # kept free


def test_a_wide_terminal_shows_every_figure(show):
    page = show(*REPORTS)
    assert page[:5] == [
        "mnist, async, 1 ps + 2 workers",
        "task      state     step  examples/s  staleness  waiting for",
        "ps:0      serving   1200",
        "worker:0  training   610       26500        0.9",
        "worker:1  waiting    590           0        1.0  ps:0 to release worker:1 (3 s)",
    ]
    assert page[5].startswith("global step 1200/2000  ━━━━") and page[5].endswith("  60% ETA 2 s")
    assert page[6:] == [
        FIGURES.removesuffix(", ETA 2 s"),
        "waiting for: worker:1 is 3 steps ahead and waits for worker:0",
    ]


def test_60_columns_show_every_task_whole_and_begin_the_sentence_of_each_wait(show):
    page = show(*REPORTS, width=60)
    assert page[1:5] == [
        "task      state     step   ex/s  stale  waiting for",
        "ps:0      serving   1200",
        "worker:0  training   610  26500    0.9",
        "worker:1  waiting    590      0    1.0  ps:0 to release wor…",
    ]
    assert page[5].startswith("global step 1200/2000  ━━━━") and page[5].endswith("  60% ETA 2 s")
    assert page[6:] == [
        FIGURES.removesuffix(", ETA 2 s"),
        "waiting for: worker:1 is 3 steps ahead and waits for",
        "worker:0",
    ]


def test_20_columns_still_draw(show):
    assert all(len(line) <= 20 for line in show(*REPORTS, width=20))


def test_before_the_first_report_every_task_is_starting(show):
    assert show()[2:] == [
        "ps:0      starting     0",
        "worker:0  starting     0           0        0.0",
        "worker:1  starting     0           0        0.0",
    ]


def test_the_last_state_is_whole_although_reports_come_only_now_and_then(show):
    done = Finished(2000, 0, 200_000, 4.0, 0.2, 0, 1.0, 2, "/c", "reached step 2000")
    page = show(*REPORTS, done, Status("worker:0", "done"), Failed("worker:1", "ValueError", "no"))
    assert page[2:5] == [
        "ps:0      done    2000",
        "worker:0  done     610       26500        0.9",
        "worker:1  failed   590           0        1.0",
    ]
    assert page[5].startswith("global step 2000/2000") and page[5].endswith("  100%")


def test_a_new_life_of_a_task_begins_at_zero_and_a_new_task_gets_a_row(show):
    page = show(Status("worker:0", "training", 9, 5.0), Status("worker:0", "starting"), Status("worker:2", "training"))
    assert [line.split()[:3] for line in page[3:6]] == [
        ["worker:0", "starting", "0"], ["worker:1", "starting", "0"], ["worker:2", "training", "0"],
    ]  # fmt: skip


def test_many_tasks_leave_room_for_the_bar(show):
    tasks = [f"worker:{i}" for i in range(50)]
    page = show(progress(), Status("worker:49", "training", 3), width=100, height=24, tasks=tasks)
    assert len(page) <= 23
    assert page[18].split() == ["34", "more", "33", "starting,", "1", "training"]
    assert page[19].startswith("global step 1200/2000")


def test_an_unknown_end_has_a_bar_without_percents(show):
    page = show(Progress(7, 0, 0.0, 0.0, math.nan, 0), width=60)
    assert page[5].startswith("global step 7  ━━━━") and "%" not in page[5]


def test_lines_scroll_above_the_table_and_the_last_state_stays(clock):
    console = terminal(100)
    view = LiveView(console=console, tasks=TASKS, title=TITLE, clock=clock)
    clock.now += 12.34
    view.hear(Line("worker:0", "global step 100: loss [0.5]"))
    view.hear(Evaluated(100, {"validation_loss": 0.1}, final=False))
    view.say("odd name: \udcff")
    for report in REPORTS:
        if isinstance(report, float):
            clock.now += report
        else:
            view.hear(report)
    view.close()
    view.close()

    text = console.file.getvalue()
    for part in (
        "  12.3s  worker:0  global step 100: loss [0.5]\n",
        "  12.3s  run       evaluation at global step 100: validation_loss 0.1000\n",
        "  12.3s  run       odd name: \\udcff\n",
    ):
        assert part in text
    assert text.rindex("worker:1 is 3 steps ahead") > text.rindex("odd name")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    assert text.rindex("\x1b[?25h") > text.rindex("worker:1 is 3 steps ahead")


def test_a_terminal_that_went_away_does_not_harm_the_run(clock):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = terminal(100)
    console.file = Gone()
    console.on_broken_pipe = lambda: (_ for _ in ()).throw(SystemExit(1))  # as rich does, but leave our stdout alone
    view = LiveView(console=console, tasks=TASKS, title=TITLE, clock=clock)
    view.hear(progress())
    view.say("into the void")
    view.close()
    assert not view._thread.is_alive()


@pytest.fixture
def tty():
    """A pseudo terminal of 80 x 24: what a program writes to, and what reads the screen."""
    screen, fd = pty.openpty()
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        yield stream, screen
    os.close(screen)


def test_a_real_terminal_gets_the_live_view_also_without_colours(tty, clock, monkeypatch):
    stream, screen = tty
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    view = make_view(stream=stream, tasks=TASKS, title=TITLE, clock=clock)
    assert isinstance(view, LiveView)
    view.hear(Failed("worker:1", "ValueError", "no"))  # bold red where there are colours
    view.close()
    data = b""
    while b"\x1b[?25h" not in data:  # the cursor is back; else pytest's timeout
        data += os.read(screen, 1 << 16)
    text = data.decode()
    assert "worker:0  \x1b[2mstarting" in text and "\x1b[1mfailed" in text
    assert "\x1b[31m" not in text and "\x1b[1;31m" not in text


def test_what_cannot_redraw_gets_plain_lines(tty, stream, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_view(stream=tty[0], tasks=TASKS, title=TITLE, clock=clock), PlainView)

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in CI: colours in a log are fine, moving the cursor is not
    assert isinstance(make_view(stream=stream, tasks=TASKS, title=TITLE, clock=clock), PlainView)


# --- the last words


def test_a_failure_says_who_what_why_fix_where_and_the_traceback_last():
    failed = Failed(
        "worker:1", "SessionError", "hook 'Mine' failed.", "it raised ValueError.", "mend it,\nor leave it out.",
        "Traceback (most recent call last):\n  File ...\nValueError: no\n", "global step 812, lease 811",
    )  # fmt: skip
    assert failure_block(failed, host="kiel", log="/run/logs/worker_1.log") == (
        "worker:1 on kiel failed with SessionError: hook 'Mine' failed.\n"
        "  why: it raised ValueError.\n"
        "  fix: mend it,\n"
        "    or leave it out.\n"
        "  context: global step 812, lease 811\n"
        "  log: /run/logs/worker_1.log\n"
        "\n"
        "Traceback (most recent call last):\n"
        "  File ...\n"
        "ValueError: no"
    )


def test_a_failure_that_says_little_gets_no_empty_lines():
    assert failure_block(Failed("ps:0", "MemoryError", "")) == "ps:0 failed with MemoryError."
    assert failure_block(Failed("ps:0", "RuntimeError", "sizes differ:\n[1]\n")) == (
        "ps:0 failed with RuntimeError: sizes differ:\n    [1]"
    )


def result(**changes):
    values = {"validation_loss": 0.0812, "validation_accuracy": 0.978, "validation_accuracy_ema": 0.979}
    fields = dict(
        recipe="mnist", mode="async", ps=1, workers=2, replicas_to_aggregate=None, global_step=2000, examples=200_000,
        seconds=3.77, steps_per_second=530.4, examples_per_second=53040.1, train_loss=0.231, **values,
        validation=values, dropped_gradients=3, mean_staleness=0.984, max_staleness=4,
        checkpoint="/run/checkpoints/2000", logdir="/run", reason="reached step 2000",
    )  # fmt: skip
    return Result(**(fields | changes))


def test_the_summary_says_how_good_how_fast_and_what_to_type_next():
    assert summary(result()).splitlines() == [
        "mnist: reached step 2000",
        "  validation accuracy  0.9780, 0.9790 with EMA",
        "  validation loss      0.0812",
        "  global step          2000; 200000 examples in 3.8 s",
        "  speed                530 steps/s, 53040 examples/s",
        "  dropped gradients    3",
        "  staleness            mean 0.98, max 4",
        "  checkpoint           /run/checkpoints/2000",
        "  evaluate it          evener eval mnist --checkpoint /run/checkpoints/2000",
        "  TensorBoard logs     /run",
        "  look at them         tensorboard --logdir /run",
    ]


def test_the_summary_of_one_process_without_validation_leaves_out_what_it_has_not():
    alone = result(
        mode="single", ps=0, workers=1, validation_loss=None, validation_accuracy=None, validation_accuracy_ema=None,
        validation={}, checkpoint="", logdir="/my runs/1",
    )  # fmt: skip
    assert summary(alone).splitlines() == [
        "mnist: reached step 2000",
        "  global step       2000; 200000 examples in 3.8 s",
        "  speed             530 steps/s, 53040 examples/s",
        "  TensorBoard logs  /my runs/1",
        "  look at them      tensorboard --logdir '/my runs/1'",
    ]


def test_the_summary_shows_the_metrics_of_a_recipe_too():
    own = result(validation_accuracy=None, validation_accuracy_ema=None, validation_loss=None,
                 validation={"validation_f1_ema": 0.5, "validation_loss": 1.0, "validation_loss_ema": 0.9})  # fmt: skip
    assert summary(own).splitlines()[1:3] == [
        "  validation f1      0.5000 with EMA",
        "  validation loss    1.0000, 0.9000 with EMA",
    ]


def test_numbers_for_people():
    assert [rate(value) for value in (0, 0.0534, 5.349, 53.4, 534.4, 53044.0)] == [
        "0", "0.0534", "5.35", "53.4", "534", "53044",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0.4, 89.4, 200, 7500)] == ["0 s", "89 s", "3 min 20 s", "2 h 5 min"]
