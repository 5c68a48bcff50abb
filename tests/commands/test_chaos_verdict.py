"""What must hold of a run that was disturbed, beside one that was not."""

from dataclasses import replace

import pytest

from evener.audit import audit
from evener.commands.chaos.findings import Tried
from evener.commands.chaos.played import Played, Struck
from evener.commands.chaos.schedule import FaultSchedule, Strike
from evener.commands.chaos.verdict import checks, lost
from evener.ledger.lines import Begin, End, Update

LINES = [
    Begin(time=1.0, mode="async", batch_size=10, samples=20),
    Update(1, [(0, 0, 1, 1)]),
    Update(2, [(1, 1, 1, 1)]),
    Update(3, [(2, 0, 1, 2)]),
    Update(4, [(3, 1, 1, 2)]),
    End(4, "reached step 4", 4, ()),
]


def account(lines):
    return audit([one for one in lines if isinstance(one, Begin)], list(enumerate(lines, start=1)), [])


RESULT = {"reason": "reached step 4", "global_step": 4, "validation_accuracy": 0.9, "validation_loss": 0.3}
GOOD = Played(
    schedule=FaultSchedule(7), status=0, limit=60.0, seconds=3.0, result=RESULT, account=account(LINES)
)  # fmt: skip


def broken(played, beside=GOOD, tolerance=None):
    """Names of the checks that do not hold."""
    return [check.name for check in checks(played, beside, tolerance) if not check.holds]


def test_all_holds_of_a_run_that_went_well():
    assert GOOD.account.clean, str(GOOD.account)
    assert broken(GOOD, tolerance=0.0) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"status": None}, "end"),
        ({"status": 1}, "end"),
        ({"status": -9}, "end"),
        ({"result": {**RESULT, "reason": "every worker has left its loop"}}, "end"),
        ({"result": {**RESULT, "global_step": 3}}, "end"),
        ({"account": None, "unread": "there is no ledger"}, "samples"),
        ({"account": account([*LINES[:-1], Update(5, [(3, 0, 1, 3)]), LINES[-1]])}, "samples"),
        ({"left": ("process 77 (sleep 1000)",)}, "nothing left"),
    ],
    ids=["hangs", "fails", "is killed", "other reason", "other step", "no ledger", "a batch twice", "a process stays"],
)
def test_a_defect_is_seen(change, name):
    assert name in broken(replace(GOOD, **change))


def test_a_run_of_epochs_must_train_as_many():
    result = {"reason": "trained 2 epochs", "global_step": 4}
    beside = replace(GOOD, result=result)
    assert broken(replace(beside, result={**result, "global_step": 5}), beside) == [], "steps may differ then"
    short = account([*LINES[:3], End(2, "trained 2 epochs", 2, ())])
    assert broken(replace(beside, account=short), beside) == ["end"]


@pytest.mark.parametrize(
    ("figures", "tolerance", "holds"),
    [
        ({"validation_accuracy": 0.88}, 0.05, True),
        ({"validation_accuracy": 0.80}, 0.05, False),
        ({"validation_accuracy": 0.99}, 0.05, True),
        ({"validation_accuracy": None, "validation_loss": 0.34}, 0.05, True),
        ({"validation_accuracy": None, "validation_loss": 0.40}, 0.05, False),
        ({"validation_accuracy": None, "validation_loss": None}, 9.0, False),
    ],
)
def test_the_final_figure_may_be_worse_by_the_tolerance_and_as_much_better_as_it_likes(figures, tolerance, holds):
    assert ("figure" not in broken(replace(GOOD, result={**RESULT, **figures}), tolerance=tolerance)) is holds


def test_updates_lost_are_those_that_the_ledger_tells_of():
    again = [*LINES[:4], Begin(time=2.0, mode="async", batch_size=10, samples=20, step=2, next_lease=2, generation=1)]
    assert lost(replace(GOOD, account=account(again))) == 1


def test_people_are_told_who_was_struck_when_and_what_did_not_hold():
    struck = Struck(Strike("kill", "ps:0", True, 0.5), 77, 2.1, 3)
    missed = Strike("cut", "worker:1", True, 0.9)
    played = replace(GOOD, struck=(struck,), missed=(missed,), left=("port 4711",), said="last words")
    text = str(Tried("seed 7", played, 1.5, tuple(checks(played, GOOD, None)), "evener chaos --seed 7", "/tmp/x"))

    assert text.splitlines()[0] == "seed 7: DOES NOT HOLD; 3.0 s, 1.50 x the undisturbed run"
    for line in (
        "ps:0 (pid 77) killed (kill -9) at 2.1 s, after 3 updates",
        "did not happen: cut worker:1",
        "NOT: left behind: port 4711",
        "last words",
        "again: evener chaos --seed 7",
        "its files: /tmp/x",
    ):
        assert line in text
