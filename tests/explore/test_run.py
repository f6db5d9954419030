"""A run as one object: its answers are those of the arrays, its pictures those of the data, and what is missing is said."""

import base64
import doctest
import html
import io
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity

import datamodels
from datamodels import Datamodels, Run, Store, explore
from datamodels.data import beton, files, load, prepare
from datamodels.errors import InputError
from datamodels.explore import Table, table
from datamodels.explore import run as run_module
from datamodels.explore.examples import Shown
from datamodels.regress.run import regress
from datamodels.settings import parse
from datamodels.verify import verify_targets
from datamodels.worker import engine_of, train_missing
from tests.conftest import built_in, flags, trained

N, T, MODELS = 60, 20, 60
README = Path(__file__).parents[2] / "datamodels" / "README.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small run of digits with its weights, two of whose targets were verified; its settings and data."""
    folder = tmp_path_factory.mktemp("explored") / "runs" / "digits"
    how = {
        "store__num_models": MODELS,
        "regress__heldout": 0.4,
        "regress__choice": 0.3,
        "regress__lams": 10,
        "verify__methods": "datamodel",
    }
    settings = parse(flags(folder, **how, verify__sizes="none", training__epochs=6, verify__ratio=3))[0]
    prepare(settings, use_ffcv=False)
    data = load(settings)
    trained(settings, data)
    regress(settings, "cpu")
    verify_targets(settings, built_in(settings, data), Datamodels.load(folder / "regress"), [3, 7])
    return settings, data


@pytest.fixture
def run(made):
    return Run(made[0].run.dir)


def test_what_carries_a_target_are_the_largest_weights_with_their_pictures(run, made):
    found, (_, data) = run.explain(3, 4), made
    weights = run.models.weights[:, 3]
    assert np.array_equal(found.weights, weights)
    order = np.argsort(-weights, kind="stable")
    assert found.carriers.tolist() == [k for k in order[:4].tolist() if weights[k] > 0]
    assert found.opponents.tolist() == [k for k in np.argsort(weights, kind="stable")[:4].tolist() if weights[k] < 0]
    assert found.table["index"].tolist() == [*found.carriers, *found.opponents]
    assert found.table["weight"].tolist() == weights[found.table["index"]].tolist()
    assert found.table["class"].tolist() == [str(int(data.train.labels[k])) for k in found.table["index"]]
    assert set(found.table["what"]) <= {"carries it", "speaks against it"}
    assert found.measured.models == 4
    assert found.support.base == "measured"
    page = found._repr_html_()
    assert html.escape(repr(found.support)[1:-1]) in page
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(text)))) for text in re.findall(r"base64,([^\"]*)", page)]
    wanted = [data.test.images[3], *data.train.images[found.table["index"].tolist()]]
    assert len(pictures) == len(wanted)
    for one, other in zip(pictures, wanted, strict=True):
        assert np.array_equal(one, other.numpy()[..., 0])
    assert str(found.carriers[0]) in repr(found)


def test_similar_targets_are_those_of_the_largest_cosine(run, monkeypatch):
    monkeypatch.setattr(run_module, "TOGETHER", 7)
    oracle = cosine_similarity(run.models.weights.T)
    for target in (0, 3, 19):
        found = run.similar(target, 5).table
        assert target not in found["index"]
        np.testing.assert_allclose(found["cosine"], np.sort(np.delete(oracle[target], target))[::-1][:5], atol=1e-6)
        np.testing.assert_allclose(oracle[target, found["index"]], found["cosine"], atol=1e-6)
    assert len(run.similar(3, 1000).table["index"]) == T - 1
    assert run.similar(3, 5)._repr_html_().count("<img ") == 6


def test_what_classes_give_is_the_sum_of_their_weights(run, made):
    labels, of_targets = (split.labels.numpy() for split in (made[1].train, made[1].test))
    found = run.by_class(3)
    for name, images, weights in zip(found["class"], found["images"], found["weights"], strict=True):
        assert images == (labels == int(name)).sum()
        assert weights == pytest.approx(run.models.weights[labels == int(name), 3].sum(), abs=1e-5)
    whole = run.by_class()
    for label in np.unique(of_targets):
        for k, name in enumerate(whole["of"]):
            sums = run.models.weights[labels == int(name)][:, of_targets == label].sum(0)
            assert whole[f"to {label}"][k] == pytest.approx(sums.mean(), abs=1e-5)
    assert whole._repr_html_().count("<tr>") == 1 + whole.number_of_rows


def test_predictions_come_with_the_held_out_models_errors(run):
    masks = np.stack([*run.store.masks(run.store.done[:2]), np.ones(N, bool)])
    found = run.predict(masks, [3, 11])
    weights, bias = run.models.weights[:, [3, 11]], run.models.bias[[3, 11]]
    np.testing.assert_allclose(found.margins, masks @ weights + bias, atol=1e-5)
    heldout = run.models.heldout
    errors = np.abs(run.store.masks(heldout) @ weights + bias - run.store.margins(heldout)[:, [3, 11]])
    place = int(np.ceil(0.95 * (len(heldout) + 1))) - 1
    np.testing.assert_allclose(found.high - found.margins, [np.sort(errors, 0)[place]] * 3, atol=1e-5)
    np.testing.assert_allclose(found.margins - found.low, found.high - found.margins, atol=1e-9)
    assert found.extrapolated.tolist() == [False, False, True]
    assert "1 of the masks are of another size" in repr(found)
    assert run.predict(masks[0]).margins.shape == (1, T)
    assert run.predict(masks[0], 3).targets.tolist() == [3]


def test_intervals_hold_as_often_as_they_say_whatever_the_errors_are():
    rng = np.random.default_rng(0)
    for m in (19, 24, 80):
        errors = np.abs(rng.standard_t(2, (m + 1, 20_000)))
        inside = (errors[-1] <= run_module._bound(errors[:-1])).mean()
        assert 0.95 - 0.006 < inside < 0.95 + 1 / (m + 1) + 0.006
    assert np.isinf(run_module._bound(np.ones((18, 2)))).all()


def test_the_table_has_what_is_known_of_each_target(run):
    found = run.table()
    assert found.number_of_rows == T
    assert found["lds"].tolist() == run.models.metrics["per_target"]["lds"]
    assert [k for k, mean in enumerate(found["mean_margin"]) if mean is not None] == [3, 7]
    for target in (3, 7):
        support = run.support(target)
        assert found["mean_margin"][target] == support.measured.mean_margin
        assert found["verified"][target] == (None if support.verified is None else len(support.verified))
    assert repr(run).endswith("2 targets verified>")
    assert repr(found).splitlines()[0].split()[0] == "target"


def test_the_documented_calls_run(made, monkeypatch):
    folder = Path(made[0].run.dir)
    monkeypatch.chdir(folder.parents[1])
    ran = doctest.testmod(explore)
    assert ran.failed == 0
    assert ran.attempted > 8
    assert doctest.testmod(table).failed == 0
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        if "Run(" in block:
            exec(block, {})


def test_data_frames_and_parquet_are_made_where_their_libraries_are(tmp_path, monkeypatch):
    found = Table({"name": ["a", None], "weight": np.array([0.5, 2.0]), "size": [3, None]})
    made = types.SimpleNamespace(DataFrame=lambda columns: columns)
    monkeypatch.setitem(sys.modules, "pandas", made)
    assert found.to_pandas() == {"name": ["a", None], "weight": [0.5, 2.0], "size": [3, None]}
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="that needs pandas, which is not installed here: pip install pandas"):
        found.to_pandas()
    with pytest.raises(InputError, match="pip install pyarrow"):
        found.to_parquet(tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_file_gives_back_what_was_written(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pandas")
    run.to_parquet(str(tmp_path / "x.parquet"))
    back = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert {name: values.tolist() for name, values in run.table().items()} == back
    assert run.to_pandas()["lds"].tolist() == run.table()["lds"].tolist()


def test_where_nothing_speaks_against_a_target_the_table_has_what_carries_it():
    carriers = Table({"index": np.array([4, 2]), "class": ["a", "b"], "weight": np.array([0.5, 0.25])})
    nothing = Table({"index": np.zeros(0, np.int64), "weight": np.zeros(0)})
    for groups in ({"for": carriers, "against": nothing}, {"against": nothing, "for": carriers}):
        found = explore.Neighbours(0, "title", groups, True, Shown(None, 5, 1), "weight")
        assert {name: found.table[name].tolist() for name in found.table} == {
            "what": ["for", "for"],
            "index": [4, 2],
            "class": ["a", "b"],
            "weight": [0.5, 0.25],
        }
        assert found._repr_html_().count("<tr>") == 4


OWN = """
import numpy as np

train_labels, test_labels = np.arange(30) % 3, np.arange(6) % 3
class_names = ["<b>ant</b>", "bee", "cow & calf"]
train_names = [f"<script>alert({k})</script>" for k in range(30)]
test_names = [f"test {k}" for k in range(6)]


def train(index, mask):
    return {"margins": mask.reshape(6, 5).sum(1) + np.random.default_rng(index).normal(0, 0.1, 6)}
"""


def test_a_run_of_a_function_has_names_in_the_place_of_pictures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_explored.py").write_text(OWN)
    config = tmp_path / "own.yaml"
    folder = tmp_path / "run"
    config.write_text(
        f"run: {{dir: {folder}}}\nworker: {{main: 'own_explored:train'}}\n"
        "store: {num_models: 60, margin_dtype: float32}\nregress: {lams: 10, heldout: 0.4, choice: 0.3}\n"
    )
    settings = parse(["-C", str(config)])[0]
    train_missing(settings, engine_of(settings, "cpu"))
    regress(settings, "cpu")
    known, unknown = Run(folder, config=str(config)), Run(str(folder))
    page = known.explain(2)._repr_html_()
    assert "<img" not in page
    assert "<script>" not in page
    assert html.escape("<script>alert(") in page
    assert "Target 2, test 2, of class cow &amp; calf" in page
    carriers = known.explain(2).carriers
    assert known.explain(2).table["name"][0] == f"<script>alert({carriers[0]})</script>"
    assert {image // 5 for image in carriers[:5].tolist()} == {2}
    assert known.by_class(2)["class"].tolist() == ["<b>ant</b>", "bee", "cow & calf"]
    assert list(unknown.explain(2).table) == ["what", "index", "weight"]
    assert list(unknown.similar(2).table) == ["index", "cosine"]
    with pytest.raises(InputError, match="give Run the config of the run"):
        unknown.by_class(2)


def test_what_is_no_run_is_refused_in_a_sentence(run, made, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere: it is no folder"):
        Run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no store in"):
        Run(tmp_path)
    no_folders: list[Any] = [3, None, ""]
    for given in no_folders:
        for kind in (Run, Store, Datamodels.load):
            with pytest.raises(InputError, match="a folder is named by a text or a path"):
                kind(given)
    for call in (run.explain, run.similar, run.by_class, run.support, lambda t: run.predict(np.ones(N, bool), t)):
        with pytest.raises(InputError, match="20 is not among them"):
            call(20)
        with pytest.raises(InputError, match="a target is a whole number"):
            call(1.5)
    with pytest.raises(InputError, match="1 or more, not 0"):
        run.explain(3, 0)
    with pytest.raises(InputError, match=rf"masks are bool \(m, {N}\)"):
        run.predict(np.ones(N + 1, bool))
    with pytest.raises(InputError, match="True or False"):
        run.predict(np.full(N, 0.5))
    other = files.Dataset(made[1].train, made[1].train, made[1].class_names, made[1].digest)
    monkeypatch.setattr("datamodels.explore.examples.look", lambda folder, chosen: other)
    with pytest.raises(InputError, match=f"has {N} training examples and {N} targets, and the store has {N} and {T}"):
        _ = Run(run.folder).examples


def test_stores_and_weights_say_what_they_are_and_check_what_they_are_given(run):
    folder = str(run.folder)
    store, models = Store(f"{folder}/store"), Datamodels.load(f"{folder}/regress")
    assert repr(store) == f"<Store: {MODELS} of {MODELS} models, N = {N} images, T = {T} targets, in {folder}/store>"
    assert repr(models).startswith(f"<Datamodels: N = {N} images, targets 0 to {T - 1}, from {MODELS} models, LDS ")
    assert store.margins([]).shape == (0, T)
    no_ids: list[Any] = [np.ones(MODELS, bool), [0.5], 3, [[1, 2]]]
    for ids in no_ids:
        with pytest.raises(InputError, match="models are named by a list of their numbers"):
            store.masks(ids)
    for ids in [[0, MODELS], [-1], [5, -2, 3]]:
        with pytest.raises(InputError, match=f"has models 0 to {MODELS - 1}, and not"):
            store.margins(ids)
    with pytest.raises(InputError, match="has no array 'logits'"):
        store.array("logits", [0])
    masks: Any = store.masks([0, 1])
    assert np.array_equal(models.predict(masks), models.predict(masks.astype(int)))


def test_an_example_of_which_nothing_is_known_has_its_index():
    nothing = Shown(None, 4, 2)
    assert (nothing.labels(True).tolist(), nothing.labels(False).tolist()) == ([-1] * 4, [-1] * 2)
    assert (nothing.class_name(3), nothing.name(True, 0), nothing.pictures(True, [0])) == ("3", None, None)


@pytest.mark.skipif(not beton.available(), reason="FFCV is not installed here")
@pytest.mark.parametrize("kind", ["grey", "colours", "features"])
def test_what_ffcv_wrote_is_read_where_it_is_not_installed(tmp_path, settings, monkeypatch, kind):
    rng = np.random.default_rng(0)
    shape = {"grey": (8, 8, 1), "colours": (9, 7, 3), "features": (5,)}[kind]
    of_bytes = kind != "features"
    train, test = (
        rng.integers(0, 256, (n, *shape), np.uint8) if of_bytes else rng.normal(size=(n, *shape)).astype(np.float32)
        for n in (30, 12)
    )
    np.savez(tmp_path / "x.npz", x_train=train, y_train=np.arange(30) % 4, x_test=test, y_test=np.arange(12) % 4)
    chosen = settings(data__dataset="arrays", data__source=tmp_path / "x.npz", data__train_images=0, data__test_images=0)
    prepare(chosen, use_ffcv=True)
    folder = Path(chosen.run.dir) / "data"
    assert (folder / "train.beton").exists()
    monkeypatch.setattr(beton, "available", lambda: False)
    monkeypatch.setattr(beton, "read", None)
    for found in (load(chosen), files.look(folder), files.look(folder, (3, 5))):
        assert np.array_equal(found.train.images, train)
        assert np.array_equal(found.test.images[:12], test)
        assert found.train.labels.tolist() == [k % 4 for k in range(30)]
    assert np.array_equal(found.test.images[12:], train[[3, 5]])
    with pytest.raises(InputError, match="training images beyond the 30"):
        files.look(folder, (30,))
    content = bytearray((folder / "train.beton").read_bytes())
    place = content.find(train[7].tobytes())
    content[place + 3] ^= 1
    (folder / "train.beton").write_bytes(content)
    with pytest.raises(InputError, match="are not those that were written"):
        load(chosen)


def test_the_package_offers_it():
    assert datamodels.Run is explore.Run
