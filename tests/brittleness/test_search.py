"""The search for the smallest set that flips, on made-up targets whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.brittleness import Effort, Search, at_random, by_similarity, by_weight, cosine
from datamodels.brittleness.curve import Curve, Factor, Measured
from datamodels.brittleness.search import AS_PREDICTED, CERTAIN, MOST_ATTEMPTS, MOST_PROBES, WRONG
from datamodels.brittleness.spread import Spread

SPREAD, EFFORT = Spread(0.5**2, 10), Effort.of(2, 24, 1.1)
BASE = 2.0
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(rng, number):
    return rng.normal(0, 0.5, number)


def at_its_mean(rng, number):
    return np.zeros(number)


def run(truth, drops, seed=0, spread=SPREAD, effort=EFFORT, draw: Draw = normal, factor=AS_PREDICTED, strict=False):
    """A search over sets of true margins (K,), all its networks, and its steps."""
    rng, steps = np.random.default_rng(seed), []
    search = Search(np.asarray(drops, float), Measured(BASE, 0.01), spread, effort, factor, strict)
    heard: dict[tuple[int, bool], np.ndarray] = {}
    while search.step is not None:
        step = search.step
        kind = (step.size, step.fresh)
        before = heard.get(kind, np.zeros(0))
        assert step.networks > len(before)
        heard[kind] = np.append(before, truth[step.size - 1] + draw(rng, step.networks - len(before)))
        steps.append(step)
        search.learn(heard[kind])
    return search, heard, steps


def falling(size, length=40):
    """Margins that reach 0 at a size, evenly, and the drops that they are."""
    drops = BASE / size * np.arange(1, length + 1)
    return BASE - drops, drops


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 200),
    at=st.integers(1, 250),
    scale=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.5, 10.0, -1.0]),
    ratio=st.sampled_from([1.0, 1.1, 2.0]),
    most=st.sampled_from([2, 5, 16]),
    seed=st.integers(0, 9),
)
def test_a_search_ends_whatever_is_predicted_and_what_it_finds_was_proved_by_fresh_networks(
    length, at, scale, ratio, most, seed
):
    truth, drops = falling(at, length)
    effort = Effort.of(2, most, ratio)
    search, heard, steps = run(truth, scale * drops, seed=seed, effort=effort)
    assert all(1 <= step.size <= length for step in steps)
    assert sum(not step.fresh for step in steps) <= MOST_PROBES + 1
    if search.high is None:
        return
    fresh = heard[search.high, True]
    assert steps[-1].fresh
    assert search.confirmed is not None
    assert search.confirmed.mean_margin == pytest.approx(fresh.mean())
    assert search.confirmed.high <= 0
    # Whatever is smaller and was to be confirmed failed.
    assert all(step.size <= search.high for step in steps if step.fresh)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(1, 60), scale=st.sampled_from([0.3, 1.0, 3.0]), ratio=st.sampled_from([1.0, 1.1, 1.5]))
def test_without_chance_the_smallest_is_found_with_one_network_a_set(at, scale, ratio):
    truth, drops = falling(at, 80)
    search, heard, _ = run(
        truth - 1e-9,
        scale * drops,
        spread=CERTAIN,
        effort=Effort.without_chance(Effort.of(2, 24, ratio)),
        draw=lambda rng, n: np.zeros(n),
    )
    assert search.high is not None
    assert at <= search.high <= max(at, np.floor(ratio * at))
    assert all(len(margins) == 1 for margins in heard.values())


def test_a_good_prediction_takes_few_networks():
    networks = []
    for at in (3, 9, 20, 30):
        for seed in range(20):
            truth, drops = falling(at)
            search, heard, _ = run(truth, drops, seed)
            networks.append(sum(map(len, heard.values())))
            assert search.high is not None
            assert at <= search.high <= at + 1 + at // 3
    assert np.mean(networks) <= 30


def test_a_margin_that_levels_off_just_above_0_is_called_flipped_in_at_most_one_search_of_forty():
    """With far fewer a look would not be worth its networks; with normal noise, and with the skewed one of an exponential."""
    skewed: Draw = lambda rng, n: 0.5 * (1 - rng.exponential(size=n))  # noqa: E731
    cases = 200
    for draw in (normal, skewed):
        truth, drops = falling(8, 30)
        wrong = sum(run(np.maximum(truth, 0.02), drops, seed=seed, draw=draw)[0].high is not None for seed in range(cases))
        assert wrong / cases <= WRONG + 3 * (WRONG / cases) ** 0.5


def test_networks_far_above_the_others_are_not_overlooked():
    def two_modes(rng, number):
        return np.where(rng.random(number) < 0.1, 2.7, -0.3) + rng.normal(0, 0.3, number)

    cases = 150
    truth, drops = falling(8, 30)
    found = [run(np.maximum(truth, 0.02), drops, seed=seed, draw=two_modes)[0] for seed in range(cases)]
    assert sum(search.high is not None for search in found) / cases <= 0.05 + 3 * (0.05 / cases) ** 0.5
    assert np.mean([search.mode is not None for search in found]) > 0.5
    assert np.mean([run(np.maximum(truth, 0.02), drops, seed=seed)[0].mode is not None for seed in range(60)]) < 0.2


def test_levels_of_all_looks_at_all_attempts_add_up_to_no_more_than_is_claimed():
    for most in (2, 3, 7, 16, 64):
        effort = Effort.of(3, most, 1.1)
        assert effort.looks[-1] == most
        tails = [effort.tail(attempt, look) for attempt in range(MOST_ATTEMPTS) for look in range(len(effort.looks))]
        assert sum(tails) <= WRONG
        assert tails == sorted(tails[: len(effort.looks)]) + tails[len(effort.looks) :]
    assert Effort.of(3, 16, 1.1).looks == (4, 8, 16)
    assert Effort.of(3, 2, 1.1).looks == (2,)


def test_what_failed_to_be_confirmed_is_never_tried_again_and_belongs_to_the_search():
    truth, drops = np.full(30, 0.3), np.linspace(0.2, 6, 30)  # predicted to fall far, and it does not

    def lying(rng, number):  # whom the search asks says what is predicted
        return rng.normal(-1.5, 0.3, number) if number == 2 else rng.normal(0, 0.3, number)

    search, _, steps = run(truth, drops, draw=lying)
    tried = [step.size for step in steps if step.fresh and step.networks == EFFORT.looks[0]]
    assert len(tried) >= 2
    assert tried == sorted(set(tried))
    assert set(search.failed) == set(tried)
    assert all(len(search.seen[size]) >= EFFORT.looks[0] for size in tried)


def test_networks_that_diverged_do_not_count_and_are_asked_for_again():
    truth, drops = falling(6)

    def diverging(rng, number):
        return np.where(rng.random(number) < 0.5, np.nan, rng.normal(0, 0.3, number))

    search, heard, _ = run(truth, drops, seed=3, draw=diverging)
    assert search.confirmed is not None
    assert search.high is not None
    assert search.confirmed.models == np.isfinite(heard[search.high, True]).sum()
    lost, _, steps = run(truth, drops, draw=lambda rng, n: np.full(n, np.nan))
    assert lost.high is None
    assert len(steps) < 60


def plateau(cases, draw, spread, effort=EFFORT):
    """Of so many searches along an order whose margin levels off just above 0, the share that call a set flipped."""
    truth, drops = falling(8, 30)
    found = [run(np.maximum(truth, 0.02), drops, seed, spread, effort, draw)[0] for seed in range(cases)]
    return sum(search.high is not None for search in found) / cases


def test_where_networks_vary_far_more_without_images_what_was_known_on_all_of_s_is_forgotten():
    truth, drops = falling(8)
    forgot = [run(truth, drops, seed, draw=lambda rng, n: rng.normal(0, 2, n))[0].spread == Spread() for seed in range(40)]
    assert np.mean(forgot) > 0.9
    assert np.mean([run(truth, drops, seed)[0].spread == SPREAD for seed in range(40)]) > 0.8


def test_a_learner_that_has_chance_only_where_images_are_missing_is_not_believed_by_one_network():
    certain = Effort.without_chance(EFFORT)
    cases = 50
    assert plateau(cases, normal, CERTAIN, certain) <= WRONG + 2 * (WRONG / cases) ** 0.5
    truth, drops = falling(8)
    search, heard, _ = run(truth, drops, 0, CERTAIN, certain)
    assert search.high is not None
    assert search.confirmed is not None
    assert search.confirmed.models >= EFFORT.looks[0]
    assert all(step_size <= search.high for step_size, fresh in heard if fresh)
    # Rounding is no chance.
    rounded: Draw = lambda rng, n: rng.normal(-1e-3, 1e-6, n)  # noqa: E731
    search, heard, _ = run(truth, drops, 0, CERTAIN, certain, rounded)
    assert search.high == 8
    assert all(len(margins) == 1 for margins in heard.values())


def test_without_chance_a_set_whose_network_diverges_is_not_taken_for_one_that_flips():
    truth, drops = falling(8)
    truth = truth - 1e-9
    truth[5] = np.nan  # of 6 images
    search, _, steps = run(truth, 1.3 * drops, 0, CERTAIN, Effort.without_chance(EFFORT), lambda rng, n: np.zeros(n))
    assert search.high == 8
    assert search.attempt == 0
    assert any(step.size == 6 for step in steps)


def test_to_repair_a_margin_of_just_0_is_not_enough():
    truth, drops = np.zeros(1), np.ones(1)
    at_0: Draw = lambda rng, n: np.zeros(n)  # noqa: E731
    certain = Effort.without_chance(EFFORT)
    assert run(truth, drops, spread=CERTAIN, effort=certain, draw=at_0)[0].high == 1
    assert run(truth, drops, spread=CERTAIN, effort=certain, draw=at_0, strict=True)[0].high is None


def test_the_curve_is_the_posterior_of_its_gaussian_process():
    """By the joint normal distribution of all of it, conditioned by its precision matrix and not by the covariance."""
    drops = np.array([0.4, 0.7, 0.9, 1.4, 1.3])
    curve = Curve(drops, Measured(1.2, 0.02), Factor(1.5, 0.75))
    sizes, means, variances = np.array([2, 5]), np.array([0.3, -0.6]), np.array([0.05, 0.02])
    rng = np.random.default_rng(0)
    draws = 400_000
    theta = rng.normal(1.5, 0.75, draws)
    steps = np.diff(curve.time, prepend=0.0)
    wandering = np.cumsum(rng.normal(size=(draws, 5)) * 0.3 * 1.2 * np.sqrt(steps), 1)
    m = 1.2 + rng.normal(0, 0.02**0.5, (draws, 1)) - theta[:, None] * drops + wandering
    covariance = np.cov(m.T)
    precision = np.linalg.inv(covariance)
    picks = np.eye(5)[sizes - 1]
    posterior = np.linalg.inv(precision + picks.T @ np.diag(1 / variances) @ picks)
    mean = posterior @ (precision @ m.mean(0) + picks.T @ (means / variances))
    found_mean, found_variance = curve.given(sizes, means, variances)
    assert found_mean == pytest.approx(mean, abs=0.02)
    assert found_variance == pytest.approx(np.diag(posterior), rel=0.03)
    before, prior = curve.given(np.zeros(0, int), np.zeros(0), np.zeros(0))
    assert before == pytest.approx(m.mean(0), abs=0.01)
    assert prior == pytest.approx(np.diag(covariance), rel=0.02)


@settings(max_examples=100, deadline=None)
@given(
    at=st.integers(1, 30),
    seed=st.integers(0, 99),
    known=st.sampled_from([Spread(), SPREAD, CERTAIN, Spread(1e-6, 10)]),
    most=st.sampled_from([2, 24]),
)
def test_margins_that_take_few_values_break_nothing(at, seed, known, most):
    def few(rng, number):
        return rng.choice([-0.25, 0.0, 0.0, 0.0, 0.25], number)

    truth, drops = falling(at, 30)
    effort = Effort.of(2, most, 1.1)
    search, _, _ = run(
        np.round(truth * 4) / 4, drops, seed, known, Effort.without_chance(effort) if known == CERTAIN else effort, few
    )
    assert search.high is None or search.confirmed is not None


def test_what_is_known_beside_one_set_leaves_its_own_networks_out():
    truth, drops = falling(9)
    search, _, _ = run(truth, drops)
    size = next(iter(search.seen))
    others = [margins for of, margins in search.seen.items() if of != size]
    squares = sum(((margins - margins.mean()) ** 2).sum() for margins in others) + 10 * 0.25
    degrees = sum(len(margins) - 1 for margins in others) + 10
    assert search.spread == SPREAD
    found = search.spread_beside(size)
    assert (found.variance, found.degrees) == pytest.approx((squares / degrees, degrees))


def test_orders():
    weights = np.array([0.1, -1.0, 0.5, 0.0, 0.3])
    assert by_weight(weights, 10).tolist() == [2, 4, 0]
    assert by_weight(weights, 2).tolist() == [2, 4]
    same_class = np.array([1, 3, 4, 8])
    shuffled = at_random(same_class, 3, 5, 7)
    assert set(shuffled) < set(same_class)
    assert len(shuffled) == 3
    assert np.array_equal(shuffled, at_random(same_class, 3, 5, 7))
    assert any(not np.array_equal(shuffled, at_random(same_class, 3, 5, target)) for target in range(8))
    similarity = np.array([9, 0.1, 9, 0.9, 0.5, 9, 9, 9, 0.9])
    assert by_similarity(similarity, same_class, 3).tolist() == [3, 8, 4]


def test_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    found = cosine(a, 7 * b)
    assert found[1, 2] == pytest.approx(a[1] @ b[2] / np.linalg.norm(a[1]) / np.linalg.norm(b[2]))
    assert np.diag(cosine(a, a)) == pytest.approx(np.ones(3))
    assert (cosine(np.zeros((1, 5)), a) == 0).all()
