"""A log file that cannot be written costs its lines, is told once, and once more when it can be written again."""

from __future__ import annotations

import logging

import pytest

from evener.task.logs import LogFile


@pytest.fixture
def told():
    return []


@pytest.fixture
def logger():
    logger = logging.getLogger("tests.of.logs")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def test_what_is_logged_is_in_the_file_at_once(tmp_path, logger, told):
    logger.addHandler(LogFile(tmp_path / "worker-0.log", told.append))
    logger.info("a %s", "word")
    assert (tmp_path / "worker-0.log").read_text().endswith(" INFO tests.of.logs: a word\n")
    assert told == []


def test_one_that_cannot_be_opened_is_tried_again_with_each_line(tmp_path, logger, told):
    path = tmp_path / "worker-0.log"
    path.mkdir()
    logger.addHandler(LogFile(path, told.append))
    for _ in range(3):
        logger.info("lost")
    assert told == [f"the log {path} cannot be written (Is a directory); training goes on"]

    path.rmdir()
    logger.info("kept")
    assert told[1:] == [f"the log {path} can be written again; 3 lines of it lost"]
    assert "kept" in path.read_text()


def test_a_full_disk_prints_no_tracebacks_and_is_told_once(tmp_path, logger, told, capsys):
    path = tmp_path / "worker-0.log"
    path.symlink_to("/dev/full")
    logger.addHandler(LogFile(path, told.append))
    for _ in range(3):
        logger.info("lost")
    assert told == [f"the log {path} cannot be written (No space left on device); training goes on"]
    assert capsys.readouterr() == ("", "")


def test_who_tells_may_log_what_is_told(tmp_path, logger):
    (tmp_path / "worker-0.log").mkdir()
    said = []

    def tell(text):
        said.append(text)
        logger.info(text)

    logger.addHandler(LogFile(tmp_path / "worker-0.log", tell))
    logger.info("lost")
    assert len(said) == 1


def test_an_error_that_is_none_of_the_disk_is_shown_as_ever(tmp_path, told, capsys):
    log = LogFile(tmp_path / "worker-0.log", told.append)
    log.emit(logging.LogRecord("tests", logging.INFO, "here.py", 1, "%d", ("no number",), None))
    log.close()
    assert "--- Logging error ---" in capsys.readouterr().err
    assert told == []
