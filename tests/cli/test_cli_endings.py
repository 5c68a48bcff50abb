"""How a command that fails ends: its exit code, and what `--json` tells programs."""

import pytest

from evener import errors
from evener.cli.endings import CommandEnding, ending

CODES = {
    errors.EvenerError("m"): 1,
    errors.InputError("m"): 1,
    errors.ConfigError("m"): 2,
    errors.BindError("m"): 2,
    errors.SecurityError("m"): 2,
    errors.Fenced("m"): 3,
    errors.SessionError("m"): 1,
    KeyboardInterrupt(): 130,
    ValueError("m"): 1,
}


def handled(error: BaseException) -> CommandEnding:
    try:
        raise error
    except BaseException as caught:
        return ending(caught)


@pytest.mark.parametrize("error", CODES, ids=lambda error: type(error).__name__)
def test_the_exit_code_tells_what_kind_of_failure_it_was(error):
    told = handled(error)
    assert told.status == CODES[error]
    assert told.as_dict() == {
        "status": CODES[error],
        "error": {"kind": type(error).__name__, "what": str(error) or "interrupted", "why": "", "fix": ""},
    }


@pytest.mark.parametrize(("kind", "code"), [("ConfigError", 2), ("Fenced", 3), ("ZeroDivisionError", 1)])
def test_a_run_ends_with_the_code_and_the_kind_of_the_first_task_that_failed(kind, code):
    told = handled(errors.RunFailed("worker:1 failed", why="w", fix="f", kind=kind, block="the whole story"))
    assert (told.status, told.text) == (code, "the whole story")
    assert told.as_dict()["error"] == {"kind": kind, "what": "worker:1 failed", "why": "w", "fix": "f"}


def test_a_foreign_error_is_shown_with_its_traceback_and_told_with_where_the_run_was():
    error = ValueError("mine")
    error.add_note(f"{errors.CONTEXT}step 7")
    told = handled(error)
    assert told.text.startswith("failed at step 7\nTraceback")
    assert told.text.rstrip().endswith("ValueError: mine")
    assert (told.what, told.why) == ("mine", "step 7")
