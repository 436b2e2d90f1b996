import pytest

from tts.types import Candidate, Problem, Result, Reward, Step, Usage

PROBLEM = Problem("1", "?")


def candidate(text: str, finish="stop") -> Candidate:
    return Candidate(PROBLEM, (Step(text, (1,), finish),))


def test_r_hat_is_the_mean_step_reward_plus_alpha_times_final():
    assert Reward((0.2, 0.6), 0.5).total == pytest.approx(0.4 + 0.5)
    assert Reward((0.2, 0.6), 0.5, alpha=0.1).total == pytest.approx(0.4 + 0.05)


@pytest.mark.parametrize(("how", "value"), [("mean", 0.5), ("min", 0.2), ("prod", 0.1), ("last", 0.5)])
def test_aggregates(how, value):
    reward = Reward((0.2, 1.0, 0.5) if how != "mean" else (0.2, 0.8), 1.0, how=how)
    assert reward.aggregate(how) == pytest.approx(value)
    assert reward.total == pytest.approx(value + 1.0)


def test_a_reward_without_steps_is_zero():
    assert Reward((), None).total == 0.0


def test_branching_does_not_change_the_parent():
    parent = Candidate(PROBLEM) + Step("a\n\n", (1, 2), "step")
    child = parent + Step("b", (3,), "stop")
    assert (parent.text, parent.token_ids, parent.done) == ("a\n\n", (1, 2), False)
    assert (child.text, child.token_ids, child.done) == ("a\n\nb", (1, 2, 3), True)


def test_the_choice_has_the_highest_score_and_the_earlier_wins_a_tie():
    result = Result([candidate("a"), candidate("b"), candidate("c")], scores=[0.1, 0.7, 0.7])
    assert result.best.text == "b"


def test_a_finished_candidate_beats_a_truncated_one_of_equal_score():
    result = Result([candidate("cut", "length"), candidate("whole")], scores=[0.5, 0.5])
    assert result.best.text == "whole"


def test_scores_default_to_the_rewards_totals():
    result = Result([candidate("a"), candidate("b")], [Reward((0.1,), 0.1), Reward((0.9,), 0.1)])
    assert result.scores == (pytest.approx(0.2), pytest.approx(1.0))
    assert result.choice == 1


@pytest.mark.parametrize("arguments", [([],), ([candidate("a")], [], [1.0, 2.0]), ([candidate("a")], [Reward(())] * 2)])
def test_an_inconsistent_result_is_refused(arguments):
    with pytest.raises(ValueError, match="pairs every candidate"):
        Result(*arguments)


def test_usage_adds_up():
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)


@pytest.mark.parametrize(
    ("reward", "total"),
    [
        (Reward((0.2, None, 0.6), 0.5), 0.4 + 0.5),  # the mean of what is known
        (Reward((0.2, None, 0.6), how="min"), 0.2),
        (Reward((0.2, None, 0.6), how="prod"), 0.12),
        (Reward((0.2, 0.6, None), how="last"), 0.6),
        (Reward((0.2, 0.6), final_missing=True, alpha=0.5), 0.4 + 0.5 * 0.4),  # the mean stands for the final reward
        (Reward((0.2, 0.6), final_missing=True, how="final"), 0.4),
        (Reward((0.2, 0.6), final_missing=True, how="min"), 0.2 + 0.4),
        (Reward((None, None), 0.5), 0.5 + 0.5),  # and the trace as one step for its steps
        (Reward((None,), 0.5, alpha=0), 0.5),
        (Reward((), 0.5), 0.5),
        (Reward((), -3.0, alpha=-1), 3.0),
    ],
)
def test_a_total_is_made_of_what_is_known(reward, total):
    assert reward.rated
    assert reward.total == pytest.approx(total)


@pytest.mark.parametrize(
    "reward",
    [
        Reward(()), Reward((None, None)), Reward((None,), final_missing=True), Reward((), final_missing=True),
        Reward((0.5,), how="final"), Reward((), 0.5, alpha=0),
    ],
)  # fmt: skip
def test_a_reward_without_a_verdict_is_not_rated(reward):
    assert not reward.rated
    assert reward.total == 0


def test_missing_verdicts_are_counted():
    assert [Reward(*given).missing for given in [((0.5, None), 0.5), ((None, None),), ((0.5,), None)]] == [1, 2, 0]
    assert Reward((None,), final_missing=True).missing == 2


def test_a_candidate_without_a_verdict_ranks_below_rated_ones_however_low():
    rewards = [Reward((), final_missing=True), Reward((), -5.0), Reward((), -3.0)]
    texts = [candidate(text) for text in "abc"]
    assert Result(texts, rewards).choice == 2
    assert Result(texts, rewards[:1] * 3).choice == 0
    assert Result([*texts[:1], candidate("b", "length"), candidate("c", "length")], rewards).choice == 0
    assert Result(texts, rewards, scores=[9, 1, 2]).choice == 2
