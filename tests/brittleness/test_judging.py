"""Verdicts from models' margins: their level, their intervals."""

import numpy as np
import pytest
from scipy import stats

from datamodels.brittleness.judging import FLIPPED, HELD, beyond_doubt, drop_of, judge, wilson
from datamodels.errors import InputError


def test_an_outcome_has_students_interval():
    margins = np.random.default_rng(0).normal(0.3, 1, 16)
    for level in (0.95, 0.975, 0.99):
        outcome = judge(margins, level=level)
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
        outcome = judge(margins[:, target], level=1 - 0.05 / 40)
        assert (right[target], wrong[target]) == (outcome.verdict == HELD, outcome.verdict == FLIPPED)
    lacking = np.concatenate([margins, np.full((1, 40), np.nan)])
    assert all(np.array_equal(a, b) for a, b in zip(beyond_doubt(lacking, 40), (right, wrong), strict=True))
    assert not np.any(beyond_doubt(lacking[-2:], 40))


def test_of_many_targets_one_is_said_to_turn_that_does_not_in_at_most_one_case_in_forty():
    """All were right, by a margin that is now 0 in truth; and all were at 0, and are wrong now beyond doubt."""
    rng, steps, cases, t = np.random.default_rng(1), (8, 16, 32), 800, 60
    falsely = 0
    for case in range(cases):
        before, now = (3.0, 0.0) if case % 2 else (0.0, -3.0)
        was_right, _ = beyond_doubt(rng.normal(before, 1, (16, t)), t)
        margins = rng.normal(now, 1, (32, t))
        falsely += any((was_right & beyond_doubt(margins[:number], t * len(steps))[1]).any() for number in steps)
    assert falsely / cases <= 0.025 + 3 * (0.025 / cases) ** 0.5


def test_a_drop_has_welchs_interval_of_both_sides():
    rng = np.random.default_rng(0)
    before, after = rng.normal(2, 1, 32), rng.normal(0.5, 0.4, 8)
    oracle = stats.ttest_ind(before, after, equal_var=False).confidence_interval(0.95)
    assert drop_of(np.append(before, np.nan), after) == pytest.approx((before.mean() - after.mean(), oracle.low, oracle.high))
    assert drop_of(np.full(4, 2.0), np.full(2, 0.5)) == (1.5, 1.5, 1.5)
    with pytest.raises(InputError, match="too few to judge by"):
        drop_of(before, np.array([1.0, np.nan]))


def test_the_interval_of_a_drop_covers_it_in_nineteen_cases_of_twenty():
    rng = np.random.default_rng(1)
    covered = [
        low <= 1.0 <= high for _, low, high in (drop_of(rng.normal(2, 0.5, 32), rng.normal(1, 1.1, 8)) for _ in range(1500))
    ]
    assert abs(np.mean(covered) - 0.95) <= 3 * (0.05 * 0.95 / 1500) ** 0.5
