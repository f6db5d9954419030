"""Models of one's own: the README's example works as it stands, and what a function gives is checked."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from datamodels.errors import InputError
from datamodels.learners import function
from datamodels.learners.declared import declared_arrays
from datamodels.learners.given import as_array
from datamodels.regress import Datamodels
from datamodels.regress.results import About
from datamodels.regress.run import regress, regress_store
from datamodels.resources import CONFIGS
from datamodels.runs import read_store, stage_folder
from datamodels.settings import RegressSettings, parse
from datamodels.store import ArraySpec, Rows, Store
from datamodels.subsets import draw_masks
from datamodels.verify import verify_targets
from datamodels.verify.retrain import Request
from datamodels.worker import engine_of, train_missing
from datamodels.worker.blocks import ENOUGH
from datamodels.worker.jobs import NOT_FINITE
from tests.conftest import by

README = CONFIGS / "README.md"


@pytest.fixture
def example(tmp_path):
    """A folder with the README's two files."""
    text = README.read_text(encoding="utf-8")
    for name in ("cancer.py", "cancer.yaml"):
        block = re.search(rf"```\w+\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
        assert block is not None
        (tmp_path / name).write_text(block[1], encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_the_readmes_example_goes_from_models_to_verdicts(example, command):
    config = ("-C", "cancer.yaml", "--store.num_models", 240, "--verify.models", 4, "--verify.base_models", 8)
    worker = command("worker", *config, "--gpu", "cpu", cwd=example)
    assert "240 of 240 models are done" in worker.stdout, worker.stderr
    assert command("worker", *config, "--gpu", "cpu", cwd=example).stdout == worker.stdout
    assert "LDS" in command("regress", *config, cwd=example).stdout
    (example / "targets.txt").write_text("3\n5\n")
    verified = command("verify", *config, "--targets", "targets.txt", cwd=example)
    assert verified.returncode == 0, verified.stderr
    removals = json.loads((example / "runs/cancer/verify/verify.json").read_text())["removals"]
    assert {removal["rule"] for removal in removals} == {"10", "support"}
    removals = [removal for removal in removals if removal["rule"] == "10"]
    store = Store(example / "runs/cancer/verify/store")
    sys.path.insert(0, str(example))
    try:
        import cancer  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(example))
        del sys.modules["cancer"]
    # Logistic regression has nothing random: the store's row and the verifier's are what the function gives.
    trained = Store(example / "runs/cancer/store")
    mask = draw_masks(0, [17], 400, 0.5)[0]
    assert np.array_equal(trained.margins([17])[0], cancer.train(17, mask)["margins"].astype(np.float32))
    for removal in removals:
        kept = np.ones(400, bool)
        kept[removal["removed_indices"]] = False
        assert removal["after"]["mean_margin"] == pytest.approx(cancer.train(0, kept)["margins"][removal["target"]], rel=1e-5)
        assert removal["label"] == cancer.test_labels[removal["target"]]
        assert removal["before"]["mean_margin"] > removal["after"]["mean_margin"]
    controls = [
        m for m in store.masks(store.done) if m.sum() == 390 and not any(not m[r["removed_indices"]].any() for r in removals)
    ]
    assert controls
    assert all(len(set(cancer.train_labels[~m].tolist())) == 1 for m in controls)
    datamodels = Datamodels.load(example / "runs/cancer/regress")
    assert spearmanr(datamodels.predict(trained.masks(range(240)))[:, 3], trained.margins(range(240))[:, 3])[0] > 0.5


def own(tmp_path, **changed):
    flags = {"run.dir": tmp_path / "run", "data.train_images": 30, "data.test_images": 6, "worker.main": "unused:here"}
    flags |= {"store.num_models": 12, "store.margin_dtype": "float32", **changed}
    return parse(["-C", str(CONFIGS / "digits.yaml"), *(part for k, v in flags.items() for part in (f"--{k}", str(v)))])[0]


def sums(index, mask):
    return {"margins": mask.reshape(6, 5).sum(1) + 0.1 * (index % 3), "extra": np.full((2, 2), index)}


def test_further_arrays_are_kept_as_declared(tmp_path):
    settings = own(tmp_path, **{"store.arrays": "extra:int64:2x2"})
    assert "12 of 12" in train_missing(settings, by(settings, sums))
    store = read_store(settings)
    masks = draw_masks(0, range(12), 30, settings.store.alpha)
    assert np.array_equal(store.array("extra", range(12))[:, 0, 0], np.arange(12))
    np.testing.assert_allclose(store.margins(range(12)), [sums(i, mask)["margins"] for i, mask in enumerate(masks)], rtol=1e-6)


def test_margins_that_are_not_finite_are_recorded_and_the_rest_go_on(tmp_path):
    def fragile(index, mask):
        return {"margins": np.full(6, np.inf if index == 4 else 1e9 if index == 7 else 1.0)}

    settings = own(tmp_path, **{"store.margin_dtype": "float16"})
    assert "10 of 12 models are done" in train_missing(settings, by(settings, fragile))
    beyond = "margins of model 7 reach 1e+09, beyond float16: set store.margin_dtype float32"
    assert read_store(settings).failures == {4: NOT_FINITE, 7: beyond}


def test_margins_beyond_float16_end_the_work_at_the_first_model_and_none_is_given_up(tmp_path):
    trained = []

    def large(index, mask):
        trained.append(index)
        return {"margins": 1e5 * (mask[:6] + 1.0)}

    settings = own(tmp_path, **{"store.margin_dtype": "float16", "groups.models_at_once": 1})
    with pytest.raises(InputError, match=r"margins of model 0 reach 200000, beyond float16: set store.margin_dtype float32"):
        train_missing(settings, by(settings, large))
    assert (trained, read_store(settings).failures, len(read_store(settings).missing)) == ([0], {}, 12)
    fine = own(tmp_path, **{"run.dir": tmp_path / "fine"})
    assert "12 of 12" in train_missing(fine, by(fine, large))
    assert read_store(fine).margins([0]).max() == 2e5


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("float16", 7e4, "extra of model 0 reach 70000, beyond float16: declare another type in store.arrays"),
        ("float32", -1e39, "extra of model 0 reach -1e.39, beyond float32"),
        ("int8", 300, "extra of model 0 has 300, which is none of int8"),
        ("uint8", -1, "extra of model 0 has -1, which is none of uint8"),
        ("int32", 2.5, "extra of model 0 has 2.5, which is none of int32"),
        ("int32", np.nan, "extra of model 0 has nan, which is none of int32"),
    ],
)
def test_no_number_is_changed_beyond_rounding(tmp_path, kind, value, told):
    settings = own(tmp_path, **{"store.arrays": f"extra:{kind}:2"})
    with pytest.raises(InputError, match=told):
        train_missing(settings, by(settings, lambda index, mask: {"margins": np.ones(6), "extra": np.array([1, value])}))
    assert len(read_store(settings).missing) == 12
    # The same for whoever brings rows to the store itself.
    meta = read_store(settings).meta
    rows = {"margins": np.ones((2, 6)), "extra": np.array([[1, 1], [1, value]])}
    with pytest.raises(InputError, match=told.replace("model 0", "model 5")):
        Rows.of(meta, [4, 5], np.ones((2, 30), bool), rows)


@pytest.mark.parametrize(
    ("around", "spread", "said"),
    [
        (0, 1e-3, ()),
        (5, 2.0, ()),
        (3000, 3.0, ("float16",)),
        (3000, 1e-2, ("float16",)),
        (1e4, 1e3, ()),
        (100, 0.2, ("float16",)),
        (1, 1e-4, ("float16",)),  # float16 makes 1 of every one
        (3, 1e-6, ("float16", "float32")),
        (1e4, 1e-9, ("float16", "float32")),
        (0, 1e-6, ("float16",)),
        (3, 1e-17, ()),  # all the same, but for float64
    ],
)
def test_a_coarse_format_is_said_once_by_the_margins_as_they_were(tmp_path, capsys, around, spread, said):
    def near(index, mask):
        return {"margins": around + spread * np.random.default_rng(index).normal(size=6)}

    for kind in ("float16", "float32"):
        changed = {"store.margin_dtype": kind, "store.num_models": 40, "run.dir": tmp_path / kind}
        settings = own(tmp_path, **changed)
        train_missing(settings, by(settings, near))
        lines = [line for line in capsys.readouterr().err.splitlines() if "coarsely" in line]
        assert len(lines) == (kind in said)
        few = RegressSettings(device="cpu", heldout=0.3, choice=0.4)
        regress_store(read_store(settings).folder, tmp_path / f"out-{kind}", few)
        again = [line for line in capsys.readouterr().err.splitlines() if "coarsely" in line]
        if spread > 1e-3:  # else the store has one value, and no way to tell whether there were more
            assert len(again) == len(lines)
        if lines and around == 3000:
            assert "6 of 6 targets coarsely" in lines[0]
            assert "in steps of 2, " in lines[0]


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (np.ones(6), "gave ndarray for model 0"),
        ({"margin": np.ones(6)}, r"gave \['margin'\] for model 0; the store wants \['margins'\]"),
        ({"margins": np.ones(5)}, r"margins of shape \(5,\) for model 0, not \(6,\)"),
        ({"margins": ["a"] * 6}, "margins for model 0 of type <U1"),
        ({"margins": np.ones(6) + 1j}, "margins for model 0 of type complex128, not real numbers"),
        ({"margins": torch.ones(6, dtype=torch.complex64)}, "of type complex64, not real numbers"),
        ({"margins": [1, [2, 3]]}, "gave margins for model 0 as no array"),
        ({"margins": torch.ones(6).to_sparse()}, "as no array"),
    ],
)
def test_what_is_no_result_is_refused_and_nothing_is_done(tmp_path, result, named):
    settings = own(tmp_path)
    with pytest.raises(InputError, match=named):
        train_missing(settings, by(settings, lambda index, mask: result))
    assert not len(read_store(settings).done)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_function_may_use_the_same_arrays_for_every_model(tmp_path, kind):
    margins, extra = np.zeros(6, kind), torch.zeros(2, 2, dtype=torch.int64)

    def reuses(index, mask):
        margins[:], extra[:] = index, index
        return {"margins": margins, "extra": extra}

    settings = own(tmp_path, **{"store.arrays": "extra:int64:2x2", "groups.models_at_once": 4})
    train_missing(settings, by(settings, reuses))
    store = read_store(settings)
    assert store.margins(range(12))[:, 5].tolist() == list(range(12))
    assert store.array("extra", range(12))[:, 1, 1].tolist() == list(range(12))


def masked_at_4(index):
    return np.ma.masked_array(np.ones(6), np.arange(6) == (2 if index == 4 else -1))


@pytest.mark.parametrize(
    "given",
    [
        masked_at_4,
        lambda index: masked_at_4(index).astype(np.int64),
        lambda index: [np.ma.masked if index == 4 and k == 2 else 1.0 for k in range(6)],
        lambda index: list(masked_at_4(index).reshape(6, 1)[:, 0]),
    ],
)
def test_what_is_masked_is_no_number(tmp_path, given):
    settings = own(tmp_path)
    train_missing(settings, by(settings, lambda index, mask: {"margins": given(index)}))
    assert read_store(settings).failures == {4: NOT_FINITE}
    nested = as_array([np.ma.masked_array([1, 2], [False, True]), np.array([3, 4])], "")
    np.testing.assert_array_equal(nested, [[1, np.nan], [3, 4]])


def test_margins_that_the_format_makes_zero_are_refused(tmp_path):
    fine = own(tmp_path, **{"run.dir": tmp_path / "fine"})
    tiny = {"margins": np.linspace(-1e-10, 1e-10, 6)}
    settings = own(tmp_path, **{"store.margin_dtype": "float16"})
    told = "margins of model 0 reach no more than 1e-10, of which float16 makes 0: set store.margin_dtype float32"
    with pytest.raises(InputError, match=told):
        train_missing(settings, by(settings, lambda index, mask: tiny))
    assert "12 of 12" in train_missing(fine, by(fine, lambda index, mask: tiny))
    with pytest.raises(InputError, match=r"margins of model 5 reach .* float32 makes 0: no wider format .* larger"):
        Rows.of(read_store(fine).meta, [4, 5], np.ones((2, 30), bool), {"margins": np.stack([np.ones(6), np.full(6, 1e-50)])})
    # One model among others, and a 0 that is one, are no reason to end.
    mixed = own(tmp_path, **{"run.dir": tmp_path / "mixed", "store.margin_dtype": "float16"})
    train_missing(mixed, by(mixed, lambda index, mask: tiny if index == 7 else {"margins": np.eye(7)[index % 7][:6]}))
    assert list(read_store(mixed).failures) == [7]


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Broken(dict[str, int]):
    def __getitem__(self, key):
        raise LookupError("lost")


class NoArray:
    def __init__(self, name, error):
        self.__dict__[name] = self._raise
        self.error = error

    def _raise(self, *_args, **_more):
        raise self.error

    def __array__(self, *_args, **_more):
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(0), "raised SystemExit: 0 (test_own.py, line"),
        (SystemExit("done"), "raised SystemExit: done"),
        (GeneratorExit(), "raised GeneratorExit"),
        (SilentError(), "raised SilentError (test_own.py"),
        (BaseException("all"), "raised BaseException: all"),
    ],
)
def test_whatever_a_function_raises_gives_up_that_model_and_no_other(tmp_path, error, told):
    def train(index, mask):
        if index == 3:
            raise error
        return {"margins": np.ones(6)}

    settings = own(tmp_path)
    assert "11 of 12 models are done" in train_missing(settings, by(settings, train))
    (why,) = read_store(settings).failures.values()
    assert told in why


def test_models_that_failed_for_other_reasons_are_not_told_with_the_first_ones(tmp_path):
    def train(index, mask):
        if index in (5, 6, 9):
            raise ValueError("even" if index == 6 else "odd")
        return {"margins": np.ones(6)}

    settings = own(tmp_path)
    line = train_missing(settings, by(settings, train))
    assert re.search(
        r"given up: 5, 6, 9 \(.*ValueError: odd .*; 1 of them for other reasons, see .*store/failures.json\)$", line
    )
    assert "ValueError: even" in read_store(settings).failures[6]
    alike = own(tmp_path, **{"run.dir": tmp_path / "alike"})
    again = train_missing(alike, by(alike, lambda index, mask: train(5 if index in (1, 2) else 0, mask)))
    assert "given up: 1, 2 (" in again
    assert "other reasons" not in again


def test_ctrl_c_in_a_function_gives_up_no_model(tmp_path):
    def train(index, mask):
        raise KeyboardInterrupt

    settings = own(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_missing(settings, by(settings, train))
    assert read_store(settings).failures == {}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"margins": np.ones(6), 3: 1, None: 2}, "gave ['NoneType', 'int', 'margins'] for model 0"),
        (Broken(margins=1), "what its training function gave raised LookupError: lost"),
        ({"margins": NoArray("x", KeyError("y"))}, "gave margins for model 0 as no array: KeyError"),
        ({"margins": NoArray("detach", ZeroDivisionError("z"))}, "as no array: ZeroDivisionError: z"),
        ({"margins": NoArray("cpu", SilentError())}, "as no array: SilentError"),
        ({"margins": NoArray("cpu", SystemExit(0))}, "as no array: SystemExit: 0"),
    ],
)
def test_whatever_a_result_raises_is_a_sentence(tmp_path, result, told):
    settings = own(tmp_path)
    with pytest.raises(InputError, match=re.escape(told)):
        train_missing(settings, by(settings, lambda index, mask: result))
    assert (len(read_store(settings).done), read_store(settings).failures) == (0, {})


def test_a_module_that_ends_the_process_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "mine_is_a_script.py").write_text("import sys\n\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"importing mine_is_a_script raised SystemExit: 0 \(mine_is_a_script.py, line 3\)"):
        function.named("mine_is_a_script:train")


def test_a_function_that_closes_stdout_silences_nothing(tmp_path, command):
    (tmp_path / "mine_closes.py").write_text(
        "import sys\n\n\ndef train(index, mask):\n    sys.stdout.close()\n    sys.stdout.flush()\n"
        "    return {'margins': mask[:6] + 0.5 * index}\n"
    )
    sizes = ("--data.train_images", 30, "--data.test_images", 6, "--store.num_models", 4, "--run.dir", "run")
    done = command("worker", *sizes, "--worker.main", "mine_closes:train", "--gpu", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "worker: 4 of 4 models are done in run/store\n"), done.stderr


def test_a_tensor_that_carries_a_gradient_is_a_result(tmp_path):
    settings = own(tmp_path)
    train_missing(settings, by(settings, lambda index, mask: {"margins": torch.full((6,), index + 0.5, requires_grad=True)}))
    assert read_store(settings).margins(range(12))[:, 3].tolist() == [i + 0.5 for i in range(12)]


@pytest.mark.parametrize("there", ["train", "test"])
def test_labels_of_one_side_alone_are_not_left_out_without_a_word(tmp_path, monkeypatch, there):
    labels = [0] * (30 if there == "train" else 6)
    text = f"{there}_labels = {labels}\ndef train(index, mask):\n    return {{'margins': mask[:6] * 1.0}}\n"
    (tmp_path / f"mine_with_{there}_labels.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    settings = own(tmp_path, **{"worker.main": f"mine_with_{there}_labels:train"})
    with pytest.raises(InputError, match=f"has {there}_labels and no"):
        train_missing(settings, engine_of(settings, None))
    assert not stage_folder(settings, "store").exists()


@pytest.mark.parametrize(("models", "at_once", "tried"), [(12, 1, 12), (90, 1, ENOUGH), (90, 4, ENOUGH), (90, 40, 40)])
def test_a_function_that_fails_on_every_model_is_stopped_soon_and_quoted_and_no_model_is_given_up(
    tmp_path, models, at_once, tried
):
    seen = []

    def broken(index, mask):
        seen.append(index)
        raise ZeroDivisionError("mine\nand yours")

    settings = own(tmp_path, **{"store.num_models": models, "groups.models_at_once": at_once})
    words = rf"{tried} models were tried, and not one could be trained; model 0: .*ZeroDivisionError: mine and yours \(test_own"
    with pytest.raises(InputError, match=words):
        train_missing(settings, by(settings, broken))
    assert seen == list(range(tried))
    store = read_store(settings)
    assert (len(store.done), store.failures) == (0, {})
    assert list((store.folder / "claims").iterdir()) == []
    assert f"{models} of {models}" in train_missing(settings, by(settings, lambda index, mask: {"margins": np.ones(6)}))


def test_subsets_on_which_the_function_fails_are_given_up_with_its_words_and_the_rest_go_on(tmp_path):
    seen = []

    def one_class_only(index, mask):
        seen.append(index)
        if index < 5 or index == 9:  # the first ones as well: they wait until another one is there
            raise ValueError("needs samples of at least 2 classes")
        return {"margins": np.ones(6)}

    settings = own(tmp_path)
    line = train_missing(settings, by(settings, one_class_only))
    assert "6 of 12 models are done" in line
    assert "ValueError: needs samples of at least 2 classes (test_own.py, line" in line
    assert sorted(read_store(settings).failures) == [0, 1, 2, 3, 4, 9]
    assert seen == list(range(12))
    train_missing(settings, by(settings, one_class_only))
    assert seen == list(range(12))


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), OSError(5, "Input/output error", "mine"), RuntimeError("CUDA out of memory")]
)
def test_what_the_machine_is_to_blame_for_gives_up_no_model(tmp_path, error):
    def unlucky(index, mask):
        if index == 3:
            raise error
        return {"margins": np.ones(6)}

    settings = own(tmp_path)
    with pytest.raises(type(error)):
        train_missing(settings, by(settings, unlucky))
    assert read_store(settings).failures == {}
    assert "12 of 12" in train_missing(settings, by(settings, lambda index, mask: {"margins": np.ones(6)}))


def test_verification_leaves_a_set_out_on_which_the_function_fails_and_stops_where_it_fails_on_all_of_s(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine_fragile.py").write_text(
        "import os\n"
        "def train(index, mask):\n"
        "    few = mask.sum() < int(os.environ['LEAST'])\n"
        "    if few and (mask.all() or index % 3 == 0):\n        raise ValueError('one class only')\n"
        "    return {'margins': mask.reshape(6, 5).sum(1) - 2.2}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    few = {"verify.subsets": 0, "verify.models": 8, "verify.base_models": 8, "verify.methods": "none", "verify.sizes": "5"}
    settings = own(tmp_path, **{"worker.main": "mine_fragile:train", **few})
    monkeypatch.setenv("LEAST", "0")
    train_missing(settings, engine_of(settings, None))
    weights = np.kron(np.eye(6), np.ones((5, 1))).astype(np.float32)
    meta: About = {"store_digest": read_store(settings).digest(), "regress": {}, "targets": [0, 6]}
    models = Datamodels(weights, np.full(6, -2.2), np.ones(6), np.arange(2), {}, meta)
    monkeypatch.setenv("LEAST", "31")
    with pytest.raises(InputError, match=r"a model on all of S could not be trained: .*ValueError: one class only"):
        verify_targets(settings, engine_of(settings, None), models, [2])
    assert not len(Store(stage_folder(settings, "verify") / "store").done)
    monkeypatch.setenv("LEAST", "26")
    verify_targets(settings, engine_of(settings, None), models, [2])
    (removal,) = json.loads((stage_folder(settings, "verify") / "verify.json").read_text())["removals"]
    assert removal["before"]["models"] == 8
    assert 2 <= removal["after"]["models"] < 16
    assert "models could not be trained, and do not count: its training function raised ValueError" in capsys.readouterr().err


def test_a_prior_of_networks_is_no_circle_for_models_of_ones_own(tmp_path, capsys):
    settings = own(tmp_path, **{"regress.prior": "gradients", "store.num_models": 40})
    assert "40 of 40" in train_missing(settings, by(settings, lambda index, mask: {"margins": np.ones(6)}))
    assert "take none, flat, or an .npy file" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"take none, flat, or an .npy file"):
        regress(settings)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("no_colon", "takes module:function"),
        ("no_such_module_anywhere:train", "there is no module no_such_module_anywhere"),
        ("json:no_such_function", "json has no no_such_function"),
    ],
)
def test_a_function_that_is_not_there_is_refused_in_a_sentence(name, named):
    with pytest.raises(InputError, match=named):
        function.named(name)


def test_a_missing_import_within_the_module_is_not_mistaken_for_a_missing_module(tmp_path, monkeypatch):
    (tmp_path / "mine_with_a_hole.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        function.named("mine_with_a_hole:train")


def test_without_labels_controls_come_from_all_examples(tmp_path, monkeypatch):
    (tmp_path / "mine_without_labels.py").write_text(
        "def train(index, mask):\n    return {'margins': mask.reshape(6, 5).sum(1) - 2.2 + index % 7 / 10}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = own(
        tmp_path,
        **{
            "worker.main": "mine_without_labels:train",
            "verify.models": 3,
            "verify.base_models": 3,
            "verify.methods": "none",
            "verify.sizes": "5",
        },
    )
    train_missing(settings, engine_of(settings, None))
    weights = np.kron(np.eye(6), np.ones((5, 1))).astype(np.float32)
    models = Datamodels(
        weights,
        np.full(6, -2.2),
        np.ones(6),
        np.arange(2),
        {},
        {"store_digest": read_store(settings).digest(), "regress": {}, "targets": [0, 6]},
    )
    verify_targets(settings, engine_of(settings, None), models, [2])
    (removal,) = json.loads((stage_folder(settings, "verify") / "verify.json").read_text())["removals"]
    assert (removal["label"], sorted(removal["removed_indices"])) == (None, list(range(10, 15)))
    assert removal["after"]["mean_margin"] < 0 < removal["control"]["mean_margin"] < removal["before"]["mean_margin"]
    learner = engine_of(settings, None).learner
    numbers = {Request.of(np.ones(30, bool), r).model(1, learner).number for r in range(50)}
    assert len(numbers) == 50
    assert all(2**31 <= number < 2**32 for number in numbers)


TOO_LONG = [f"{'a' * 65}:int8:1", f"a:int8:{'9' * 5000}", "a:int8:" + "x".join("1" * 17)]


@pytest.mark.parametrize(
    "text", ["logits", "logits:float16", "logits:object:3", "logits:float99:3", "a:float16:0", "Ä:float16:3", *TOO_LONG]
)
def test_declarations_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="takes name:dtype:shape"):
        declared_arrays(text)


def test_declarations_are_read_and_the_stores_own_names_refused():
    assert declared_arrays("none") == {}
    assert declared_arrays("logits:float16:5x10, f:int32:3") == {
        "logits": ArraySpec("float16", (5, 10)),
        "f": ArraySpec("int32", (3,)),
    }
    with pytest.raises(InputError, match="has an array 'done' already"):
        declared_arrays("done:uint8:1")


def test_settings_of_groups_hold_for_own_models_too(tmp_path):
    settings = own(tmp_path, **{"groups.models_at_once": 4, "groups.models_per_kernel": 2})
    for _ in range(2):
        assert "12 of 12" in train_missing(settings, by(settings, lambda index, mask: {"margins": np.ones(6)}))


def test_another_function_is_another_run(tmp_path):
    settings = own(tmp_path)
    train_missing(settings, by(settings, lambda index, mask: {"margins": np.ones(6)}))
    other = dataclasses.replace(settings, worker=dataclasses.replace(settings.worker, main="another:one"))
    with pytest.raises(InputError, match=r"worker\.main: unused:here → another:one"):
        train_missing(other, by(other, lambda index, mask: {"margins": np.ones(6)}))


def test_a_row_that_no_disk_has_is_refused():
    with pytest.raises(InputError, match="a row of a would have more than"):
        declared_arrays("a:int64:9999999999x9999999999")
