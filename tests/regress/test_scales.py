"""Weights as the published solver saves them, for standardised masks, become weights for masks of 0 and 1; or one is asked."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.run import import_weights
from datamodels.regress.scales import Scale, scale_named, tried
from tests.regress.test_path import store_of

N, T, M = 60, 4, 900


def solved(alpha, seed=0):
    """Masks, margins without noise, and weights and biases in both coordinates, of the masks as they were drawn."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((N, T))
    weights[:20] = rng.exponential(size=(20, T))
    bias = -0.2 * weights.sum(0) * alpha
    masks = rng.random((M, N)) < alpha
    margins = masks @ weights + bias
    mean, deviation = masks.mean(0), masks.std(0)
    return masks, margins, (weights, bias), (weights * deviation[:, None], margins.mean(0)), (mean, deviation)


def saved(file, weights, bias, **others):
    named = {"weight": weights, "bias": bias, "lam": np.ones(T), **others}
    torch.save({name: torch.tensor(array, dtype=torch.float32) for name, array in named.items()}, file)
    return file


# How it is said for which masks the weights are.
SAID = ("its own mean and std", "the store's masks", "alpha")


@pytest.mark.parametrize(("alpha", "said", "beside"), list(itertools.product((0.5, 0.1, 0.8), SAID, (False, True))))
def test_the_import_of_standardised_weights_predicts_the_margins(tmp_path, alpha, said, beside):
    masks, margins, raw, standardised, (mean, deviation) = solved(alpha)
    store = store_of(tmp_path / "store", masks, margins).folder if beside or said == "the store's masks" else None
    own = {"mean": mean, "std": deviation} if said == SAID[0] else {}
    file = saved(tmp_path / "d.pt", *standardised, **own)
    told = import_weights(file, tmp_path / "out", {SAID[0]: None, SAID[1]: "store", SAID[2]: str(alpha)}[said], store)
    models = Datamodels.load(tmp_path / "out")
    if said == "alpha":  # the masks' own means scatter about it
        np.testing.assert_allclose(models.weights, raw[0] * (deviation / np.sqrt(alpha * (1 - alpha)))[:, None], rtol=1e-5)
        assert np.abs(models.predict(masks) - margins).max() < 0.25 * margins.std()
    else:
        np.testing.assert_allclose(models.weights, raw[0], atol=1e-5)
        np.testing.assert_allclose(models.bias, raw[1], atol=1e-4)
    if store is not None:
        assert "slope 1.00, predictions off by" in told or "slope 0.99" in told or "slope 1.01" in told
        assert "do not fit" not in told
    assert "standardised" in models.meta["weights_were_for"]


def test_a_file_of_masks_says_how_they_were_standardised_and_images_that_never_vary_are_told(tmp_path, command):
    masks, margins, raw, standardised, _ = solved(0.3)
    np.save(tmp_path / "masks.npy", masks)
    file = saved(tmp_path / "d.pt", *standardised)
    done = command("regress", "--import", file, "--out", tmp_path / "out", "--standardised", tmp_path / "masks.npy")
    assert done.stdout.endswith(
        f"masks standardised as those of {tmp_path / 'masks.npy'}; in {tmp_path / 'out'}, for masks of 0 and 1\n"
    )
    models = Datamodels.load(tmp_path / "out")
    np.testing.assert_allclose(models.weights, raw[0], atol=1e-5)
    np.testing.assert_allclose(models.predict(masks), margins, atol=1e-3)
    masks[:, [2, 5]] = [0, 1]
    np.save(tmp_path / "masks.npy", masks.astype(np.uint8))
    told = import_weights(file, tmp_path / "out", str(tmp_path / "masks.npy"))
    assert "; 2 images never vary in these, and have weight 0; in" in told
    assert not Datamodels.load(tmp_path / "out").weights[[2, 5]].any()
    for array, refusal in {
        (0, 1, 2): "masks of 0 and 1, and has something else",
        (): "has no masks",
        (1,): r"as masks \(M, 60\): it has shape \(1, 59\)",
    }.items():
        np.save(tmp_path / "masks.npy", np.tile(np.array(array, float)[:, None], 59 if array == (1,) else N))
        with pytest.raises(InputError, match=refusal):
            import_weights(file, tmp_path / "other", str(tmp_path / "masks.npy"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("alpha", [0.5, 0.1])
def test_the_wrong_reading_is_said_by_the_models_with_what_to_do(tmp_path, alpha):
    masks, margins, raw, standardised, _ = solved(alpha)
    store = store_of(tmp_path / "store", masks, margins)
    with pytest.raises(InputError, match="are contradicted beside 900 models of") as refused:
        import_weights(saved(tmp_path / "d.pt", *standardised), tmp_path / "a", "raw", store.folder)
    told, slope = str(refused.value), 1 / np.sqrt(alpha * (1 - alpha))
    assert float(told.split("slope ")[1].split(",")[0]) == pytest.approx(slope, rel=0.03)
    assert "they do not fit" in told
    assert "with --standardised it would be slope 1.00, predictions off by" in told
    with pytest.raises(
        InputError, match=r"they do not fit.*with --raw it would be slope 1.00, predictions off by.*without --store"
    ):
        import_weights(saved(tmp_path / "raw.pt", *raw), tmp_path / "b", str(alpha), store.folder)
    own = saved(tmp_path / "own.pt", *standardised, mean=np.zeros(N), std=np.ones(N))
    with pytest.raises(InputError, match="contradicted"):
        import_weights(own, tmp_path / "b", None, store.folder)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
    assert "models" not in import_weights(tmp_path / "d.pt", tmp_path / "word", "raw")
    fine = import_weights(tmp_path / "raw.pt", tmp_path / "c", "raw", store.folder)
    assert "slope 1.00" in fine
    assert "do not fit" not in fine
    assert np.array_equal(Datamodels.load(tmp_path / "c").weights, raw[0].astype(np.float32))


def test_weights_that_fit_neither_way_are_written_with_a_warning(tmp_path, command):
    masks, margins, raw, _, _ = solved(0.5)
    store = store_of(tmp_path / "store", masks, margins)
    file = saved(tmp_path / "shrunk.pt", 0.75 * raw[0], margins.mean(0) - 0.75 * masks.mean(0) @ raw[0])
    done = command("regress", "--import", file, "--out", tmp_path / "out", "--raw", "--store", store.folder)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the weights beside 900 models of ")
    assert "slope 1.33, " in done.stderr
    assert done.stdout.count("they do not fit") == 1
    refused = command("regress", "--import", file, "--out", tmp_path / "out", "--standardised", "--store", store.folder)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert np.array_equal(Datamodels.load(tmp_path / "out").weights, (0.75 * raw[0]).astype(np.float32))


def test_a_file_that_does_not_say_is_asked_about_and_nothing_is_written(tmp_path, command):
    masks, margins, _, standardised, _ = solved(0.5)
    file, store = saved(tmp_path / "d.pt", *standardised), store_of(tmp_path / "store", masks, margins)
    line = ("regress", "--import", file, "--out", tmp_path / "out")
    asked = command(*line)
    assert asked.returncode == 2
    assert asked.stderr.startswith(f"error: {file} does not say for which masks its weights are: give --standardised 0.5")
    both = command(*line, "--store", store.folder)
    assert both.returncode == 2
    assert "read as raw slope 2.0" in both.stderr
    assert "as standardised slope 1.00" in both.stderr
    assert not (tmp_path / "out").exists()
    done = command(*line, "--store", store.folder, "--standardised")
    assert done.returncode == 0, done.stderr
    assert "beside 900 models of" in done.stdout
    np.testing.assert_allclose(Datamodels.load(tmp_path / "out").predict(masks), margins, atol=1e-3)
    refused = command("regress", "--raw")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --raw and --standardised say for which masks the weights of --import FILE.pt are\n",
    )


def test_nonsense_about_masks_is_refused(tmp_path):
    masks, margins, _, standardised, (mean, deviation) = solved(0.5)
    plain, store = saved(tmp_path / "d.pt", *standardised), store_of(tmp_path / "store", masks[:, :-1], margins)
    for given_, told in {
        "0": "between 0 and 1",
        "1": "between",
        "half": "between",
        "nan": "between",
        "store": "or --store DIR",
    }.items():
        with pytest.raises(InputError, match=told):
            import_weights(plain, tmp_path / "out", given_)
    with pytest.raises(InputError, match=r"are of 60 images and 4 targets, .* of 59 images and 4 targets"):
        import_weights(plain, tmp_path / "out", "0.5", store.folder)
    own = {"both mean and std": {"mean": mean}, "not finite, or below 0": {"mean": mean, "std": -deviation}}
    for told, others in {**own, "or neither": {"mean": mean, "std": deviation[:3]}}.items():
        with pytest.raises(InputError, match=told):
            import_weights(saved(tmp_path / "own.pt", *standardised, **others), tmp_path / "out")
    whole = saved(tmp_path / "own.pt", *standardised, mean=mean, std=deviation)
    with pytest.raises(InputError, match="says itself for which masks"):
        import_weights(whole, tmp_path / "out", "0.5")
    assert not (tmp_path / "out").exists()


@given(seed=st.integers(0, 10**6), alpha=st.floats(0.02, 0.98))
def test_both_coordinates_give_the_same_predictions(seed, alpha):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(1, 5))
    masks = rng.random((30, n)) < alpha
    scale = Scale(masks.mean(0), masks.std(0), "")
    weights, bias = rng.normal(size=(n, t)).astype(np.float32), rng.normal(size=t).astype(np.float32)
    raw, intercept = scale.to_raw(weights, bias)
    z = np.divide(masks - scale.mean, scale.deviation, out=np.zeros((30, n)), where=scale.deviation > 0)
    np.testing.assert_allclose(masks @ raw + intercept, z @ weights + bias, atol=1e-3)
    assert not raw[scale.deviation == 0].any()


def test_slope_and_offset_are_those_of_least_squares(tmp_path):
    masks, margins, (weights, bias), _, _ = solved(0.5)
    rng = np.random.default_rng(1)
    noisy = (margins + rng.normal(size=margins.shape)).astype(np.float32)
    found = tried(store_of(tmp_path / "store", masks, noisy), weights.astype(np.float32), (bias + 0.3).astype(np.float32))
    p = masks @ weights + bias + 0.3
    a, b = (p - p.mean(0)).ravel(), (noisy - noisy.mean(0)).ravel()
    assert found.slope == pytest.approx(np.polyfit(a, b, 1)[0], rel=1e-4)
    assert found.offset == pytest.approx(((p - noisy).mean(0) / noisy.std(0)).max(), rel=1e-3)
    assert found.error == pytest.approx(((p - noisy) ** 2).mean(), rel=1e-4)
    assert scale_named("raw", 3, None).raw
