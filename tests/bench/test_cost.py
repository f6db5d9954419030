"""The bench of costs: every point's price, its LDS by SciPy's, its sets, and what is kept."""

import importlib.util
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from datamodels.bench import cost
from datamodels.bench.cost import bench_cost, best, cost_figure
from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.runs import stage_folder
from datamodels.store import Store
from datamodels.verify.questions.random_subsets import masks_of
from datamodels.worker import make_prior
from tests.conftest import built_in, trained

N, T, MODELS, AT_ONCE = 60, 20, 24, 4


@pytest.fixture
def small(settings, monkeypatch):
    """A trained run of two dozen models, and few networks for each method; whatever is timed takes a second."""
    pytest.importorskip("dattri")
    monkeypatch.setattr(cost, "NETWORKS", {"trak": (1, 2), "trak-on-subsets": (1,), "gradients": (1, 2), "similarity": (1,)})
    monkeypatch.setattr(cost, "FEWEST", 20)
    monkeypatch.setattr(cost, "timed", lambda work, device: (1.0, work()))
    chosen = settings(
        store__num_models=MODELS,
        regress__prior="gradients",
        regress__lams=10,
        prior__models=2,
        training__epochs=4,
        verify__subsets=5,
        verify__subset_models=2,
        verify__ratio=3.0,
        verify__base_models=8,
    )
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    trained(chosen, data)
    make_prior(chosen, built_in(chosen, data))
    return chosen


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_every_point_has_its_price_and_the_lds_of_scipy_and_is_kept(small, monkeypatch):
    record, table = bench_cost(small, "cpu", targets=2)
    rows = {(row["method"], row["networks"], row["models"]): row for row in record["rows"]}
    fits = [("lasso", 0), ("prior", 2), ("prior-of-trak", 1), ("prior-and-trak", 3)]
    asked = [("trak", 1), ("trak", 2), ("trak-on-subsets", 1), ("gradients", 1), ("gradients", 2), ("similarity", 1)]
    numbers = (20, MODELS - 1)
    assert set(rows) == {(*point, 0) for point in asked} | {(*fit, m) for fit in fits for m in numbers}
    # A network's or fit's second, that of the covariates' networks, and a second for each four models.
    for (method, _, m), row in rows.items():
        covariates = {"prior": 1, "prior-of-trak": 1, "prior-and-trak": 2}.get(method, 0)
        assert row["seconds"] == pytest.approx(1 + covariates + m / AT_ONCE, abs=1e-3)
    folder = stage_folder(small, "cost")
    masks = masks_of(small, N).astype(float)
    true = means_of(small, masks)
    for point, row in rows.items():
        scores = np.load(folder / f"{cost.Point(*point).name}.npz")["scores"]
        oracle = [spearmanr(masks @ scores[:, t], true[:, t]).statistic for t in range(T)]
        assert row["lds"]["mean"] == pytest.approx(np.nan_to_num(oracle).mean(), abs=1e-6)
        largest = max(other[1:] for other in rows if other[0] == point[0])
        assert len(row["sizes"]) == (2 if point[1:] == largest else 0)
        assert all(size is None or 0 < size < N for size in row["sizes"])
    data = load(small)
    same = data.train.labels.numpy()[:, None] == data.test.labels.numpy()
    oracle = [spearmanr(masks @ same[:, t], true[:, t]).statistic for t in range(T)]
    assert record["lds_of_the_class_alone"] == pytest.approx(np.nan_to_num(oracle).mean(), abs=1e-6)
    json.dumps(record, allow_nan=False)
    assert any(row["flipped"] for row in record["rows"])
    assert record["searched_targets"] == sorted(set(record["searched_targets"]))
    assert len(record["searched_targets"]) == 2
    assert "TRAK (dattri): 2 networks" in table
    assert cost_figure(record).startswith(b"\x89PNG")
    assert cost_figure({**record, "searched_targets": []}).startswith(b"\x89PNG")

    def made(work, device):
        raise AssertionError("nothing is left to be done")

    monkeypatch.setattr(cost, "timed", made)
    again, _ = bench_cost(small, "cpu", targets=2)
    assert again == record


def test_what_would_take_too_long_is_left_out_and_named(small):
    record, table = bench_cost(small, "cpu", 1.5, targets=0)
    assert record["left_out"] == ["trak-2", "gradients-2"]
    assert "left out for their time: trak-2, gradients-2" in table
    assert {row["median_size"] for row in record["rows"]} == {None}
    assert "no |R| was verified" in table


def test_without_dattri_the_other_methods_are_measured(small, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    record, _ = bench_cost(small, "cpu", methods="lasso,similarity", targets=0)
    assert {row["method"] for row in record["rows"]} == {"lasso", "similarity"}


def means_of(settings, masks):
    """Mean margins (s, T) of the retrained models on each mask, by the store's own arrays."""
    store = Store(stage_folder(settings, "verify") / "store")
    found = store.masks(store.done).astype(float)
    margins = store.margins(store.done).astype(float)
    rows = [np.flatnonzero((found == mask).all(1)) for mask in masks]
    assert [len(row) for row in rows] == [settings.verify.subset_models] * len(masks)
    return np.stack([margins[row].mean(0) for row in rows])


def test_the_best_for_its_price_is_beaten_by_nothing_cheaper():
    def row(networks, seconds, lds):
        return {"method": "trak", "networks": networks, "models": 0, "seconds": seconds, "lds": {"mean": lds}}

    rows = [row(1, 5.0, 0.4), row(2, 3.0, 0.5), row(3, 9.0, 0.45), row(4, 9.0, 0.6), row(5, 20.0, 0.6)]
    assert [each["networks"] for each in best(rows)] == [2, 4]


def test_nonsense_is_refused_in_a_sentence(settings, monkeypatch):
    with pytest.raises(InputError, match="0 or more, not -1"):
        bench_cost(settings(), "cpu", targets=-1)
    with pytest.raises(InputError, match=r"--methods takes some of gradients, .*, or all, not 'tracks'"):
        bench_cost(settings(), "cpu", methods="lasso, tracks")
    with pytest.raises(InputError, match=r"verify\.subsets is 0"):
        bench_cost(settings(), "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install dattri"):
        bench_cost(settings(verify__subsets=4), "cpu")
