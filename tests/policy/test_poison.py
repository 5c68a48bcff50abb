"""What becomes of a batch whose gradient is not finite: a table."""

from __future__ import annotations

import pytest

from evener.policy.poison import IN_A_ROW, Answer, Poison


@pytest.mark.parametrize(
    ("policy", "answers"),
    [
        ("stop", [Answer.STOP, Answer.STOP]),
        ("skip", [Answer.AGAIN, Answer.CLOSE, Answer.AGAIN]),
        ("rollback", [Answer.BACK, Answer.BACK]),
    ],
)
def test_one_batch_again_and_again(policy, answers):
    poison = Poison(policy)
    assert [poison.judge(41) for _ in answers] == answers


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_in_a_row_are_no_bad_batches_and_an_update_ends_the_row(policy):
    def give_up(poison, lease):
        while (answer := poison.judge(lease)) is Answer.AGAIN:
            pass
        return answer

    poison = Poison(policy)
    for lease in range(IN_A_ROW):
        assert give_up(poison, lease) is not Answer.STOP
    assert give_up(poison, IN_A_ROW) is Answer.STOP
    poison.applied()
    assert give_up(poison, IN_A_ROW + 1) is not Answer.STOP


@pytest.mark.parametrize(
    ("policy", "answer"), [("stop", Answer.STOP), ("skip", Answer.BACK), ("rollback", Answer.BACK)]
)
def test_an_update_that_exploded_can_only_be_taken_back_by_a_checkpoint(policy, answer):
    assert Poison(policy).exploded() is answer
