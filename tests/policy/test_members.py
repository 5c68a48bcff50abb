"""Members: one life per index, no push applied twice, none from lost parameters (RELIABILITY P3 to P6)."""

import pytest

from evener.errors import DuplicateTask, Fenced, ProtocolError
from evener.policy.members import Members, Verdict, names


def test_each_life_of_a_worker_gets_the_next_epoch():
    members = Members(generation=1)

    assert members.grant(0, 0, alive=False) == 1
    assert members.grant(0, 0, alive=False) == 2
    assert members.grant(7, 0, alive=False) == 1
    assert members.epochs == {0: 2, 7: 1}


def test_a_process_that_reconnects_begins_a_new_life():
    members = Members(generation=2, epochs={0: 3})

    assert members.grant(0, 3, alive=False) == 4
    assert members.grant(0, 4, alive=True) == 5  # the live peer is itself, on a link that we have not seen break
    assert members.epochs == {0: 5}
    with pytest.raises(Fenced, match="replaced by epoch 5"):
        members.grant(0, 3, alive=False)


def test_a_second_process_is_refused_while_the_first_is_alive():
    members = Members(generation=1, epochs={0: 3})

    with pytest.raises(DuplicateTask, match=r"worker:0 is already running \(epoch 3\)") as refused:
        members.grant(0, 0, alive=True)
    assert refused.value.fix
    assert members.check(0, 3, generation=1, seq=1) is Verdict.FRESH  # the first is not disturbed


def test_a_process_that_was_replaced_is_fenced_when_it_wakes():
    members = Members(generation=1, epochs={0: 3})
    sentence = "worker:0 was replaced by epoch 3; this process has epoch 2"

    with pytest.raises(Fenced, match=sentence):
        members.check(0, 2, generation=1, seq=9)
    with pytest.raises(Fenced, match=sentence):
        members.grant(0, 2, alive=True)


def test_a_process_whose_answer_was_lost_is_not_fenced_by_its_own_grant():
    """Granted and on disk, but ps:0 died, or the link broke, before the answer was there."""
    members = Members(generation=1)
    assert members.grant(4, 0, alive=False, process="p") == 1
    members.grant(4, 1, alive=False, process="p")  # the answer is lost
    restarted = Members(generation=2, epochs=members.epochs, holders=members.holders)

    assert restarted.grant(4, 1, alive=False, process="p") == 3
    with pytest.raises(Fenced):
        restarted.grant(4, 1, alive=False, process="q")
    with pytest.raises(ProtocolError):
        restarted.grant(4, 9, alive=False, process="p")


def test_a_new_process_whose_first_answer_was_lost_is_not_taken_for_a_second_one():
    members = Members(generation=1)
    members.grant(4, 0, alive=False, process="p")

    assert members.grant(4, 0, alive=True, process="p") == 2  # its first link is not known to be broken yet
    with pytest.raises(DuplicateTask):
        members.grant(4, 0, alive=True, process="q")
    with pytest.raises(DuplicateTask):
        members.grant(4, 0, alive=True)


def test_who_replaced_a_process_is_not_held_for_it():
    members = Members(generation=1)
    members.grant(4, 0, alive=False, process="p")
    members.grant(4, 0, alive=False, process="q")

    with pytest.raises(Fenced):
        members.grant(4, 1, alive=False, process="p")


@pytest.mark.parametrize("epoch", [9, -1])
def test_an_epoch_that_was_never_granted_is_refused_and_fences_nobody(epoch):
    members = Members(generation=1, epochs={0: 3})
    sentence = f"epoch {epoch} of worker 0 was never granted; the newest is 3"

    with pytest.raises(ProtocolError, match=sentence):
        members.check(0, epoch, generation=1, seq=1)
    with pytest.raises(ProtocolError, match=sentence):
        members.grant(0, epoch, alive=False)
    assert members.check(0, 3, generation=1, seq=1) is Verdict.FRESH


def test_a_push_before_the_hello_is_refused():
    with pytest.raises(
        ProtocolError, match="worker 4 pushed before its hello: it has epoch 0, the newest granted is 0"
    ):
        Members(generation=1).check(4, 0, generation=1, seq=1)


def test_a_resend_is_a_duplicate_only_once_it_was_taken_up():
    members = Members(generation=1, epochs={0: 1})

    assert members.check(0, 1, generation=1, seq=1) is Verdict.FRESH
    assert members.check(0, 1, generation=1, seq=1) is Verdict.FRESH  # judged, not yet recorded
    members.record(0, 1, 1)
    assert members.check(0, 1, generation=1, seq=1) is Verdict.DUPLICATE
    assert members.check(0, 1, generation=1, seq=2) is Verdict.FRESH
    assert members.seqs == {0: (1, 1)}


def test_a_new_life_counts_its_pushes_from_one():
    members = Members(generation=1, epochs={0: 1}, seqs={0: (1, 40)})
    epoch = members.grant(0, 0, alive=False)

    assert members.check(0, epoch, generation=1, seq=1) is Verdict.FRESH


@pytest.mark.parametrize("generation", [1, 3])
def test_a_push_of_another_generation_is_stale_even_if_it_looks_fresh(generation):
    members = Members(generation=2, epochs={0: 1}, seqs={0: (1, 5)})

    assert members.check(0, 1, generation, seq=6) is Verdict.STALE
    assert members.check(0, 1, generation, seq=5) is Verdict.STALE


def test_seqs_roll_back_with_the_parameters_and_epochs_do_not():
    members = Members(generation=1)
    members.grant(0, 0, alive=False)
    members.record(0, 1, 1)
    saved = dict(members.seqs)
    members.record(0, 1, 2)
    members.grant(0, 0, alive=False)

    restored = Members(generation=2, epochs=members.epochs, seqs=saved)
    assert restored.check(0, 2, generation=2, seq=1) is Verdict.FRESH
    with pytest.raises(Fenced):
        restored.check(0, 1, generation=1, seq=2)


def test_the_book_copies_what_it_is_given():
    stored = {0: 1}
    members = Members(generation=1, epochs=stored)
    members.grant(0, 0, alive=False)

    assert stored == {0: 1}


def test_a_book_that_cannot_be_is_our_own_mistake():
    with pytest.raises(AssertionError, match="worker 0 pushed in epoch 2, never granted"):
        Members(generation=1, epochs={0: 1}, seqs={0: (2, 1)})
    members = Members(generation=1, epochs={0: 1}, seqs={0: (1, 5)})
    with pytest.raises(AssertionError, match="epoch 2 of worker 0 is not current"):
        members.record(0, 2, 6)
    with pytest.raises(AssertionError, match="push 5 of worker 0 was taken up before"):
        members.record(0, 1, 5)


def test_workers_are_named_as_people_do():
    assert names([3]) == "worker 3"
    assert names([2, 0]) == "workers 0 and 2"
    assert names(range(8)) == "workers 0, 1, 2, 3, 4, 5, 6 and 7"
    assert names(range(100)) == "workers 0, 1, 2, 3, 4, 5, 6 and 93 more"
