"""What is common to the spreads of several targets, and networks that lie far above the others."""

import numpy as np
import pytest
from scipy import stats

from datamodels.brittleness.modes import high_mode
from datamodels.brittleness.spread import MOST_DEGREES, Spread, is_deterministic, spread_at_the_edge, spread_of


@pytest.mark.parametrize(("s0", "d0", "degrees"), [(0.7, 8.0, 31), (1.5, 4.0, 3), (0.2, 9.0, 7)])
def test_variances_give_back_the_distribution_that_they_were_drawn_from(s0, d0, degrees):
    """s² = s₀² F(d, d₀), as Smyth 2004 has it."""
    drawn = s0**2 * stats.f(degrees, d0).rvs(20_000, random_state=0)
    found = spread_of(drawn, degrees)
    assert found.variance == pytest.approx(s0**2, rel=0.05)
    assert found.degrees == pytest.approx(d0, rel=0.2)


def test_targets_that_vary_alike_count_for_no_more_than_a_bound():
    same = stats.chi2(10).rvs(500, random_state=1) / 10
    assert spread_of(same, 10).degrees == MOST_DEGREES
    assert spread_of(same[:1], 10) == spread_of(np.zeros(9), 10) == Spread()


def test_a_moderated_variance_lies_between_and_its_degrees_add_up():
    variance, degrees = Spread(4.0, 6.0).moderated(squares=2.0, degrees=2)
    assert (variance, degrees) == ((6 * 4 + 2) / 8, 8)
    assert Spread().moderated(2.0, 2) == (1.0, 2)
    assert np.isnan(Spread().moderated(0.0, 0)[0])


def test_the_spread_is_that_of_the_targets_nearest_to_0():
    rng = np.random.default_rng(0)
    mean = np.concatenate([np.full(200, 0.1), np.full(200, 5.0)])
    margins = mean + rng.normal(size=(32, 400)) * np.where(mean < 1, 1.2, 0.3)
    assert spread_at_the_edge(margins).variance == pytest.approx(1.44, rel=0.15)
    lacking = np.concatenate([margins, np.full((1, 400), np.nan)])
    assert spread_at_the_edge(lacking) == spread_at_the_edge(margins)
    assert spread_at_the_edge(margins[:1]) == Spread()


def test_a_learner_is_without_chance_where_all_its_networks_agree_about_everything():
    margins = np.tile(np.arange(5.0), (4, 1))
    assert is_deterministic(margins)
    assert not is_deterministic(margins[:1])
    assert not is_deterministic(margins + 1e-6 * np.eye(4, 5))
    assert is_deterministic(np.concatenate([margins, np.full((1, 5), np.nan)]))


def test_a_mode_above_is_seen_across_sets_and_one_below_is_none():
    rng = np.random.default_rng(0)
    sets = [level + rng.normal(0, 0.3, 6) for level in (2.0, 1.0, 0.0, -0.5)]
    assert high_mode(sets) is None
    above = [margins.copy() for margins in sets]
    above[1][2] += 3
    above[3][0] += 3
    found = high_mode(above)
    assert found is not None
    assert found.share == pytest.approx(stats.binomtest(2, 24).proportion_ci(0.9, method="wilson").high)
    assert found.gap == pytest.approx(3, abs=0.6)
    assert found.lift == pytest.approx(found.share * found.gap)
    assert high_mode([-margins for margins in above]) is None
    assert high_mode([]) is None
    assert high_mode([np.array([1.0])] * 9) is None


def test_networks_that_are_better_or_worse_for_all_targets_tell_of_no_more_degrees_than_there_are_networks():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 1, 100) + rng.normal(0, 0.5, (4, 1)) + rng.normal(0, 0.01, (4, 100))
    assert spread_at_the_edge(margins).degrees <= 3
