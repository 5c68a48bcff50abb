"""A process that leaves has done all that it was to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import atexit, logging, os, sys, threading
from evener.leaving import leave
sys.modules["torch"] = None  # as if it were imported
"""


def ended(program, **options):
    return subprocess.run(
        [sys.executable, "-c", START + program], capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.mark.parametrize("status", [0, 1, 130])
def test_it_prints_everything_and_tells_its_status(status):
    done = ended(f"print('x' * 100_000, end=''); print('said', file=sys.stderr, end=''); leave({status})")

    assert (done.returncode, len(done.stdout), done.stderr) == (status, 100_000, "said")


def test_what_was_registered_runs_last_first_and_may_print():
    done = ended("atexit.register(print, 'first'); atexit.register(print, 'second'); leave(0)")

    assert done.stdout.split() == ["second", "first"]


def test_threads_that_are_no_daemons_are_waited_for_and_daemons_are_not():
    done = ended("""
threading.Thread(target=lambda: (threading.main_thread().join(), print("done"))).start()
threading.Thread(target=threading.Event().wait, daemon=True).start()
leave(3)
""")

    assert (done.returncode, done.stdout) == (3, "done\n")


def test_a_log_is_complete(tmp_path):
    program = "handler = logging.handlers.MemoryHandler(99, target=logging.FileHandler('log'))"
    done = ended(f"import logging.handlers\n{program}\nlogging.getLogger().addHandler(handler)\n"
                 "logging.error('last words')\nleave(0)", cwd=tmp_path)  # fmt: skip

    assert (done.returncode, (tmp_path / "log").read_text()) == (0, "last words\n")


def test_whoever_has_closed_its_output_leaves_all_the_same():
    assert ended("sys.stdout.close(); leave(5)").returncode == 5


def test_pytorch_is_not_taken_apart():
    """What it holds would be given back one by one otherwise."""
    done = ended("""
class Held:
    def __del__(self):
        print("taken apart")
sys.modules["held"] = Held()
leave(0)
""")

    assert (done.returncode, done.stdout) == (0, "")
