"""Verdicts from several looks at models' margins: their level, their intervals."""

import numpy as np
import pytest
from scipy import stats

from datamodels.brittleness.judging import FLIPPED, HELD, UNDECIDED, beyond_doubt, judge, looks, wilson
from datamodels.errors import InputError


def sequential(margins, numbers):
    """The verdict of a search that looks at the first 8, 16, … margins until one decides."""
    for number in numbers:
        verdict = judge(margins[:number], of_looks=len(numbers)).verdict
        if verdict != UNDECIDED:
            return verdict
    return UNDECIDED


def test_looks_double_up_to_the_most():
    assert looks(8, 32) == [8, 16, 32]
    assert looks(8, 31) == [8, 16]
    assert looks(5, 4) == [5]


@pytest.mark.parametrize("mean", [0.0, 0.05, -0.05])
def test_sequential_verdicts_are_wrong_at_most_5_percent_of_the_time(mean):
    numbers, wrong = looks(8, 64), 0
    rng = np.random.default_rng(0)
    for margins in rng.normal(mean, 1, (3000, 64)):
        verdict = sequential(margins, numbers)
        # At a mean of 0, which is flipped by definition, 'held' is wrong, and 'flipped' counted too: the worst case of both.
        wrong += (verdict == HELD and mean <= 0) or (verdict == FLIPPED and mean >= 0)
    # 5 %, and three standard errors of 3,000 draws.
    assert wrong / 3000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)


def test_without_the_correction_looking_often_would_be_wrong_too_often():
    """The simulation above can tell: at one look's level, four looks are wrong more than 5 % of the time."""
    rng = np.random.default_rng(0)
    wrong = [
        any(judge(margins[:number]).verdict != UNDECIDED for number in looks(8, 64)) for margins in rng.normal(0, 1, (2000, 64))
    ]
    assert np.mean(wrong) > 0.07


def test_clear_margins_are_decided_at_the_first_look():
    rng = np.random.default_rng(0)
    assert sequential(rng.normal(-2, 0.5, 64), [8, 64]) == FLIPPED
    assert sequential(rng.normal(2, 0.5, 64), [8, 64]) == HELD
    assert judge(rng.normal(2, 0.5, 8)).models == 8


def test_an_outcome_has_students_interval_at_the_level_of_its_look():
    margins = np.random.default_rng(0).normal(0.3, 1, 16)
    for of_looks, level in ((1, 0.95), (2, 0.975), (5, 0.99)):
        outcome = judge(margins, of_looks=of_looks)
        low, high = stats.ttest_1samp(margins, 0).confidence_interval(level)
        assert (outcome.low, outcome.high) == pytest.approx((low, high))
    assert outcome.correct == (margins > 0).mean()


@pytest.mark.parametrize(("right", "of"), [(0, 8), (3, 8), (8, 8), (160, 320)])
def test_the_share_has_wilsons_interval(right, of):
    oracle = stats.binomtest(right, of).proportion_ci(0.95, method="wilson")
    assert wilson(right, of) == pytest.approx((oracle.low, oracle.high))
    margins = np.where(np.arange(of) < right, 1.0, -1.0)
    outcome = judge(margins)
    assert (outcome.correct_low, outcome.correct_high) == pytest.approx((oracle.low, oracle.high))


def test_diverged_models_do_not_count():
    outcome = judge(np.array([1.0, np.nan, 2.0, 3.0]), np.array([0.5, np.nan, 0.7, 0.9]))
    assert (outcome.models, outcome.mean_margin) == (3, 2.0)
    assert outcome.confidence == pytest.approx(0.7)
    assert judge(np.array([1.0, 2.0]), np.array([np.nan, 0.5])).confidence is None
    with pytest.raises(InputError, match="all but 1 of 3 retrained models could not be trained"):
        judge(np.array([1.0, np.nan, np.nan]))


def test_beyond_doubt_is_the_interval_of_each_target_at_the_level_of_them_all():
    margins = np.random.default_rng(0).normal(0.3, 1, (12, 40))
    right, wrong = beyond_doubt(margins, 40)
    for target in range(40):
        outcome = judge(margins[:, target], of_looks=40)
        assert (right[target], wrong[target]) == (outcome.verdict == HELD, outcome.verdict == FLIPPED)
    lacking = np.concatenate([margins, np.full((1, 40), np.nan)])
    assert all(np.array_equal(a, b) for a, b in zip(beyond_doubt(lacking, 40), (right, wrong), strict=True))
    assert not np.any(beyond_doubt(lacking[-2:], 40))


def test_of_many_targets_one_is_said_to_turn_that_does_not_in_at_most_one_case_in_forty():
    """All were right, by a margin that is now 0 in truth; and all were at 0, and are wrong now beyond doubt."""
    rng, steps, cases, t = np.random.default_rng(1), looks(8, 32), 800, 60
    falsely = 0
    for case in range(cases):
        before, now = (3.0, 0.0) if case % 2 else (0.0, -3.0)
        was_right, _ = beyond_doubt(rng.normal(before, 1, (16, t)), t)
        margins = rng.normal(now, 1, (32, t))
        falsely += any((was_right & beyond_doubt(margins[:number], t * len(steps))[1]).any() for number in steps)
    assert falsely / cases <= 0.025 + 3 * (0.025 / cases) ** 0.5
