"""From a store to datamodels: planted weights come back, held-out models stay held out, bad stores are refused."""

import contextlib
import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from datamodels.errors import InputError
from datamodels.regress import Datamodels, fit_datamodels, provenance, save
from datamodels.regress.prior import covariates_named
from datamodels.regress.score import score
from datamodels.regress.split import Subsets, split_models
from datamodels.settings import RegressSettings
from datamodels.store import ArraySpec, Meta, Store, Writer, create, hand_over
from datamodels.subsets import draw_masks, pack

N, T, M = 40, 6, 800
SETTINGS = RegressSettings(device="cpu", lams=30)


def planted(noise=0.3, m=M):
    """Masks, margins and the sparse weights that made them."""
    rng = np.random.default_rng(1)
    masks = draw_masks(0, range(m), N, 0.5)
    weights = rng.normal(size=(N, T)) * (rng.random((N, T)) < 0.15)
    return masks, masks @ weights + rng.normal(size=T) + noise * rng.normal(size=(m, T)), weights


def store_of(folder, masks, margins, dtype="float32"):
    m, t = margins.shape
    create(folder, Meta(m, masks.shape[1], t, {"margins": ArraySpec(dtype, (t,))}, {}))
    hand_over(folder, range(m), masks, {"margins": margins})
    with Writer(folder) as writer:
        writer.merge()
    return Store(folder)


def test_planted_weights_are_found(tmp_path):
    masks, margins, weights = planted()
    fit = fit_datamodels(store_of(tmp_path / "s", masks, margins), SETTINGS)
    assert np.abs(fit.weights - weights).max() < 0.12
    heldout = fit.parts.heldout
    best = score(masks[heldout] @ weights, margins[heldout])["lds"]
    np.testing.assert_allclose(fit.metrics["lds"], best, atol=0.1)
    assert best.mean() > 0.8
    mse = fit.metrics["mse"]
    assert ((mse > 0.3**2 * 0.6) & (mse < 0.3**2 * 1.6)).all()


def test_the_metrics_are_of_the_held_out_models_and_these_are_not_seen(tmp_path):
    masks, margins, _ = planted()
    first = fit_datamodels(store_of(tmp_path / "a", masks, margins), SETTINGS)
    changed = margins.copy()
    changed[first.parts.heldout] = np.random.default_rng(0).normal(size=(len(first.parts.heldout), T))
    second = fit_datamodels(store_of(tmp_path / "b", masks, changed), SETTINGS)
    assert np.array_equal(first.weights, second.weights)
    assert np.array_equal(first.lam, second.lam)
    assert np.abs(second.metrics["lds"]).mean() < 0.2
    predicted = masks[first.parts.heldout] @ first.weights + first.bias
    oracle = [spearmanr(predicted[:, t], margins[first.parts.heldout][:, t]).statistic for t in range(T)]
    np.testing.assert_allclose(first.metrics["lds"], oracle, atol=1e-6)
    error = ((predicted - margins[first.parts.heldout]) ** 2).mean(0)
    np.testing.assert_allclose(first.metrics["mse"], error, rtol=1e-4)
    np.testing.assert_allclose(first.metrics["r2"], 1 - error / margins[first.parts.heldout].var(0), rtol=1e-4)


def test_models_are_split_into_disjoint_parts_by_the_seed():
    done = np.arange(0, 3000, 3)
    parts = split_models(Subsets(done, done), SETTINGS)
    assert sorted(np.concatenate([parts.fit, parts.choice, parts.heldout])) == done.tolist()
    assert (len(parts.heldout), len(parts.choice)) == (100, 180)
    order = np.random.default_rng(0).permutation(done)
    assert np.array_equal(parts.heldout, np.sort(order[:100]))
    assert np.array_equal(parts.choice, np.sort(order[100:280]))
    other = split_models(Subsets(done, done), dataclasses.replace(SETTINGS, seed=1))
    assert not np.array_equal(parts.heldout, other.heldout)


def test_too_few_models_are_refused(tmp_path):
    masks, margins, _ = planted(m=99)
    with pytest.raises(InputError, match="99 finished models are too few"):
        fit_datamodels(store_of(tmp_path / "s", masks, margins), dataclasses.replace(SETTINGS, heldout=0.09))


def test_a_margin_that_is_not_a_number_is_refused_by_its_model(tmp_path):
    masks, margins, _ = planted()
    margins[77, 2] = np.nan
    with pytest.raises(InputError, match="model 77 "):
        fit_datamodels(store_of(tmp_path / "s", masks, margins), SETTINGS)


def test_constant_targets_and_constant_images_give_finite_results(tmp_path):
    masks, margins, _ = planted()
    margins[:, 0] = 1.5
    masks[:, 3], masks[:, 4] = True, False
    fit = fit_datamodels(store_of(tmp_path / "s", masks, margins), SETTINGS)
    assert not fit.weights[:, 0].any()
    assert fit.bias[0] == pytest.approx(1.5)
    assert not fit.weights[3:5].any()
    assert all(np.isfinite(values).all() for values in fit.metrics.values())
    assert fit.metrics["lds"][0] == fit.metrics["r2"][0] == 0


def test_saved_datamodels_predict_what_the_formula_says(tmp_path):
    masks, margins, _ = planted()
    store = store_of(tmp_path / "s", masks, margins, "float16")
    fit = fit_datamodels(store, SETTINGS)
    save(tmp_path / "out", fit, provenance(store, SETTINGS))
    models = Datamodels.load(tmp_path / "out")
    assert models.meta["store_digest"] == store.digest()
    predicted = models.predict(masks[:5])
    by_hand = [[sum(fit.weights[j, t] for j in range(N) if masks[i, j]) + fit.bias[t] for t in range(T)] for i in range(5)]
    np.testing.assert_allclose(predicted, by_hand, atol=1e-4)
    for name in ("bias", "lam"):
        assert np.load(tmp_path / "out" / f"{name}.npy").shape == (T,)
    weights, bias = models.of(3)
    assert np.array_equal(weights, fit.weights[:, 3])
    assert bias == fit.bias[3]
    with pytest.raises(InputError, match=f"targets 0:{T}, {T} is not among them"):
        models.of(T)
    with pytest.raises(InputError, match="no datamodels"):
        Datamodels.load(tmp_path / "nowhere")


def test_score_of_a_prediction_that_never_changes_is_zero_not_nan():
    rng = np.random.default_rng(0)
    metrics = score(np.ones((20, 2)), rng.normal(size=(20, 2)))
    assert metrics["lds"].tolist() == [0, 0]
    assert np.isfinite(metrics["r2"]).all()


def test_packed_masks_reach_the_solver_bit_for_bit():
    from datamodels.regress.kernels import unpacked

    masks = np.random.default_rng(0).random((9, 21)) < 0.5
    assert np.array_equal(unpacked(pack(masks), 21, np), masks.astype(np.float32))


def test_published_arrays_become_a_store_and_its_datamodels_by_two_commands(tmp_path, command):
    masks, margins, weights = planted()
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "margins.npy", margins.astype(np.float16))
    imported = command("store", "import", tmp_path / "masks.npy", tmp_path / "margins.npy", tmp_path / "store")
    assert imported.returncode == 0, imported.stderr
    line = ("regress", "--store", tmp_path / "store", "--out", tmp_path / "out", "--regress.device", "cpu")
    done = command(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    models = Datamodels.load(tmp_path / "out")
    assert np.abs(models.weights - weights).max() < 0.12
    assert models.meta["store_digest"] == Store(tmp_path / "store").digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["margins.npy", "masks.npy", "out", "store"]
    assert command(*line).stdout == done.stdout
    digest = Store(tmp_path / "store").digest()
    over = [(*line[:4], folder) for folder in (tmp_path / "store", tmp_path)]
    for wrong, named in [(line[:3], "go together"), *((each, "something else than datamodels") for each in over)]:
        refused = command(*wrong)
        assert refused.returncode == 2
        assert named in refused.stderr
    assert Store(tmp_path / "store").digest() == digest
    again = command(*line, "--regress.lams", 20)
    assert again.returncode == 0, again.stderr
    assert Datamodels.load(tmp_path / "out").meta["regress"]["lams"] == 20


@pytest.mark.parametrize("block", [1, 4, 100])
def test_the_size_of_a_block_of_targets_changes_nothing(tmp_path, block):
    masks, margins, _ = planted()
    bars: dict[str, list[int]] = {"models": [], "λ": [], "targets": []}

    @contextlib.contextmanager
    def bar(unit, total):
        bars[unit].append(total)
        yield lambda n=1, where="": bars[unit].append(-n)

    store = store_of(tmp_path / "s", masks, margins)
    exact = dataclasses.replace(SETTINGS, gap=1e-9)
    whole = fit_datamodels(store, exact)
    parts = fit_datamodels(store, dataclasses.replace(exact, block=block), bar)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-4)
    np.testing.assert_allclose(parts.lam, whole.lam)
    np.testing.assert_allclose(parts.metrics["lds"], whole.metrics["lds"], atol=1e-3)
    # Every bar comes to its end.
    assert {unit: sum(taken) for unit, taken in bars.items()} == {"models": 0, "λ": 0, "targets": 0}
    assert bars["λ"][0] == SETTINGS.lams * T
    assert provenance(store, exact) == provenance(store, dataclasses.replace(exact, block=block))


def test_what_is_constant_is_named_and_has_zero_weights(tmp_path, command):
    masks, margins, _ = planted()
    margins[:, 0] = 1.5
    masks[:, 3], masks[:, 4] = True, False
    store_of(tmp_path / "s", masks, margins)
    done = command("regress", "--store", tmp_path / "s", "--out", tmp_path / "out", "--regress.device", "cpu")
    assert "2 images are in all of the masks or in none, and have zero weights: 3, 4\n" in done.stderr
    assert "1 targets have one margin only, and have zero weights: 0\n" in done.stderr
    weights = Datamodels.load(tmp_path / "out").weights
    assert not weights[3:5].any()
    assert not weights[:, 0].any()


@pytest.mark.parametrize("solver", ["gram", "saga"])
@pytest.mark.parametrize("value", [False, True])
def test_masks_from_which_nothing_can_be_learnt_are_named(tmp_path, solver, value):
    _, margins, _ = planted()
    store = store_of(tmp_path / "store", np.full((len(margins), N), value), margins)
    with pytest.raises(InputError, match="nothing can be learnt"):
        fit_datamodels(store, dataclasses.replace(SETTINGS, solver=solver))


@pytest.fixture(scope="module")
def unscaled(tmp_path_factory):
    """Fits of one store's margins, by how."""
    masks, margins, _ = planted()
    store = store_of(tmp_path_factory.mktemp("unscaled") / "s", masks, margins.astype(np.float32))
    return {how: scaled_fit(store, *how) for how in WAYS}


WAYS = (("gram", "none"), ("path", "none"), ("saga", "none"), ("auto", "flat"))


def scaled_fit(store, solver, prior):
    return fit_datamodels(
        store, dataclasses.replace(SETTINGS, solver=solver), covariates=covariates_named(prior, None, N, store.meta.num_targets)
    )


@pytest.mark.parametrize("how", WAYS, ids=lambda how: "-".join(how))
@pytest.mark.parametrize("powers", [(-100,), (-60, 3), (-20, -9, 0), (30,), (70, -4), (118, -118)], ids=str)
def test_margins_may_be_in_any_unit_of_their_own(tmp_path, unscaled, how, powers):
    # By powers of two every number of the way is the same, so that the weights' bits are.
    masks, margins, _ = planted()
    powers = np.resize(powers, T)
    fit = scaled_fit(store_of(tmp_path / "s", masks, np.ldexp(margins.astype(np.float32), powers)), *how)
    as_it_was = unscaled[how]
    assert np.array_equal(fit.weights, np.ldexp(as_it_was.weights, powers))
    assert np.array_equal(fit.bias, np.ldexp(as_it_was.bias, powers))
    degree = 1 if how[1] == "none" else 2
    np.testing.assert_allclose(np.ldexp(fit.lam, -degree * powers), as_it_was.lam, rtol=1e-9)
    np.testing.assert_allclose(np.ldexp(fit.metrics["mse"], -2 * powers), as_it_was.metrics["mse"], rtol=1e-9)
    for name in ("lds", "r2", "nonzeros"):
        np.testing.assert_allclose(fit.metrics[name], as_it_was.metrics[name], rtol=1e-9)


@pytest.mark.parametrize("prior", ["none", "flat"])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-6, 1e9, 1e20, 1e37])
def test_margins_of_any_size_are_as_well_explained(tmp_path, unscaled, prior, scale):
    masks, margins, _ = planted()
    found = scaled_fit(store_of(tmp_path / "s", masks, scale * margins), "auto", prior)
    as_it_was = unscaled[("gram" if prior == "none" else "auto", prior)]
    assert found.metrics["lds"].mean() == pytest.approx(as_it_was.metrics["lds"].mean(), abs=1e-3)
    np.testing.assert_allclose(found.weights.astype(np.float64) / scale, as_it_was.weights, atol=0.01)


def test_margins_so_small_in_float16_are_reckoned_in_float32(tmp_path):
    masks, margins, _ = planted()
    small = (1e-4 * margins).astype(np.float16)
    halves, singles = (store_of(tmp_path / kind, masks, small.astype(kind), kind) for kind in ("float16", "float32"))
    assert np.array_equal(scaled_fit(halves, "gram", "none").weights, scaled_fit(singles, "gram", "none").weights)
