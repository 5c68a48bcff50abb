"""Ctrl-C in one process before its program has prepared: there is nothing to save, and it must not be forgotten."""

import signal
from contextlib import suppress

import pytest
from loops_in_one_process import Program

from evener.loop.loop import Loop
from evener.settings import Settings
from evener.task.alone import in_this_process
from evener.task.script import Joining, Over


@pytest.fixture
def joining(tmp_path):
    (tmp_path / "logs").mkdir()
    settings = Settings(script="train.py", batch_size=1, logdir=str(tmp_path), save_checkpoint_secs=None)
    return Joining(job="worker", index=0, settings=settings, report=lambda report: None)


def test_between_join_and_prepare_it_ends_the_program_as_any_other(joining):
    """As a rule the data are read there."""
    with pytest.raises(KeyboardInterrupt), in_this_process(joining.settings, joining):
        Loop(joining)
        signal.raise_signal(signal.SIGINT)


def test_one_that_got_lost_in_an_import_ends_the_run_where_its_loop_begins(joining):
    program = Program()
    with in_this_process(joining.settings, joining) as reasons:
        with suppress(KeyboardInterrupt):  # as compiled modules do that try whether another one is there
            signal.raise_signal(signal.SIGINT)
        loop = Loop(joining)
        made = loop.prepare(*program.make())
        with pytest.raises(Over):
            program.loop(loop, *made)
        joining.finish(None)
    assert (reasons, loop.step < 3) == (["interrupted"], True)
