"""Functions of one's own as learners: what a module may have beside its function, and how its changes are found."""

import dataclasses

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.learners import Features, Model, Named, NamesClasses, Pictures, Relabels, offered
from datamodels.learners.contract import FIRST_LISTED
from datamodels.learners.function import learner_named
from datamodels.learners.given import class_names_of, named, names_of
from datamodels.resources import CONFIGS
from datamodels.runs import read_store
from datamodels.settings import parse
from datamodels.subsets import draw_masks
from datamodels.verify.known import Examples
from datamodels.verify.targets import targets_given
from datamodels.worker import engine_of, train_missing

N, T = 30, 6
WHOLE = """
import numpy as np

train_labels = np.arange(30) % 3
test_labels = np.arange(6) % 3
CALLS = []

def train(index, mask, labels):
    same = labels[:, None] == np.arange(3)
    logits = np.stack([np.bincount(labels[mask], minlength=3) / 10.0] * 6) + index % 5 / 100
    right = np.take_along_axis(logits, test_labels[:, None], 1)[:, 0]
    others = np.where(np.arange(3) == test_labels[:, None], -np.inf, logits).max(1)
    return {"margins": right - others, "logits": logits}

def features(index, mask):
    return np.eye(30) * mask, np.eye(30)[:6] + index % 3
"""
MANY = """
import numpy as np
CALLS = []

def train(index, mask):
    raise AssertionError("one by one")

def train_many(indices, masks):
    CALLS.append(len(indices))
    if 7 in indices:
        raise ValueError("seven is unlucky")
    return {"margins": masks.reshape(len(indices), 6, 5).sum(2) + indices[:, None] / 100}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and gives the settings of a run whose models are its function `train`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text, **changed):
        (tmp_path / f"{name}.py").write_text(text)
        values = {"run.dir": tmp_path / "run", "data.train_images": N, "data.test_images": T, "store.margin_dtype": "float32"}
        values |= {"store.num_models": 12, "worker.main": f"{name}:train", "groups.models_at_once": 0, **changed}
        given = [part for key, value in values.items() for part in (f"--{key}", str(value))]
        return parse(["-C", str(CONFIGS / "digits.yaml"), "--regress.prior", "none", *given])[0]

    return write


def test_a_module_offers_what_it_has_and_nothing_else(module):
    whole = learner_named(module("mine_with_all", WHOLE))
    assert isinstance(whole, Features)
    assert offered(whole, Relabels, "relabelling").classes == 3
    bare = learner_named(module("mine_with_little", "def train(index, mask):\n    return {'margins': mask[:6] * 1.0}\n"))
    for protocol, told in (
        (Features, "the method x needs features, and mine_with_little:train gives none"),
        (Relabels, "gives none"),
    ):
        with pytest.raises(InputError, match=told):
            offered(bare, protocol, "the method x")
    assert (bare.train_labels == -1).all()


SHOWN = """
import numpy as np
train_labels, test_labels = [0] * 30, [1] * 6
class_names = np.array(["no", "yes"])
train_names, test_names = [f"row {i}" for i in range(30)], tuple("abcdef")
def train(index, mask):
    return {"margins": mask[:6] * 1.0}
def pictures(of_train, indices):
    return np.full((len(indices), 3, 4, 1), 7 + of_train, np.uint8)
"""


def test_a_module_shows_its_examples_where_it_can(module):
    shown = learner_named(module("mine_to_look_at", SHOWN))
    assert names_of(shown, True, [29, 0]) == ["row 29", "row 0"]
    assert named(shown, False, 5) == "f"
    assert list(class_names_of(shown)) == ["no", "yes"]
    assert offered(shown, Pictures, "x").pictures(True, [1, 2]).shape == (2, 3, 4, 1)
    bare = learner_named(module("mine_to_imagine", "pictures = 3\ndef train(index, mask):\n    ...\n"))
    assert not isinstance(bare, (Named, NamesClasses, Pictures))
    assert named(bare, True, 17) == "no. 17"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train_names = ['a'] * 30", "test_names of mine_.* must be a list or tuple of 6 names, not NoneType"),
        ("test_names = ['a'] * 6", "train_names of mine_.* must be a list or tuple of 30 names, not NoneType"),
        ("train_names, test_names = ['a'] * 29, ['a'] * 6", "train_names of mine_.* of 30 names, not 29"),
        ("train_names, test_names = ['a'] * 30, ['a'] * 5 + ['b\\nc']", "test_names of mine_.* must be texts of one line each"),
        ("train_names, test_names = 'a' * 30, 'a' * 6", "train_names of mine_.* of 30 names, not str"),
        ("train_labels, test_labels, class_names = [2] * 30, [0] * 6, ['a', 'b']", "class_names .* at least 3 names, not 2"),
        ("class_names = {'a': 1}", "class_names of mine_.* must be a list or tuple of at least 0 names, not dict"),
        ("train_targets = [30]", "train_targets of mine_.* must be .* indices from 0 to 29, fewer than the 6 targets"),
    ],
)
def test_what_a_module_shows_is_looked_at_first(module, text, told):
    name = f"mine_{abs(hash(text)) % 10**8}"
    with pytest.raises(InputError, match=told):
        learner_named(module(name, f"{text}\ndef train(index, mask):\n    ...\n"))


def test_a_modules_last_targets_may_be_training_examples(module):
    settings = module("mine_of_itself", "train_targets = [4, 1]\ndef train(index, mask):\n    ...\n")
    examples = Examples(learner_named(settings))
    assert (examples.tests, examples.train_targets) == (T - 2, (4, 1))
    assert targets_given([0, "train:1"], examples) == [0, T - 1]
    other = dataclasses.replace(settings, data=dataclasses.replace(settings.data, train_targets="4"))
    with pytest.raises(InputError, match=r"data\.train_targets is for the built-in training; mine_of_itself:train"):
        learner_named(other)


def test_labels_go_to_a_function_that_takes_them_and_logits_come_back(module):
    learner = learner_named(module("mine_with_labels", WHOLE))
    mask = np.arange(N) < 20
    plain, told = Model((0, 1), mask), Model((0, 1), mask, np.zeros(N, int))
    trained = offered(learner, Relabels, "relabelling").train_relabelled([plain, told])
    logits = trained.arrays["logits"]
    np.testing.assert_allclose(logits[0, 0], np.bincount(np.arange(20) % 3, minlength=3) / 10 + 0.01)
    np.testing.assert_allclose(logits[1, 0], np.array([2.0, 0, 0]) + 0.01)
    features = offered(learner, Features, "x").features([plain])
    assert features["features_train"].shape == (1, N, N)
    assert features["features_test"].shape == (1, T, N)


def test_a_function_for_many_is_called_with_blocks_and_alone_where_it_fails(module):
    settings = module("mine_of_many", MANY)
    assert "11 of 12 models are done" in train_missing(settings, engine_of(settings, None))
    store = read_store(settings)
    assert list(store.failures) == [7]
    assert "ValueError: seven is unlucky (mine_of_many.py, line" in store.failures[7]
    expected = store.masks(store.done).reshape(11, 6, 5).sum(2) + store.done[:, None] / 100
    np.testing.assert_allclose(store.margins(store.done), expected, rtol=1e-6)
    import mine_of_many  # type: ignore[import-not-found]

    assert [12, *[1] * 12] == mine_of_many.CALLS


def test_many_models_of_another_number_are_refused(module):
    text = "def train(i, m):\n    pass\ndef train_many(i, m):\n    return {'margins': m[:2, :6] * 1.0}\n"
    settings = module("mine_of_too_few", text)
    with pytest.raises(InputError, match=r"gave margins of shape \(2, 6\) for 12 models, not \(12, 6\)"):
        train_missing(settings, engine_of(settings, None))
    assert len(read_store(settings).missing) == 12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{'margins': mask[:6] * 1.0, 'logits': mask}", r"logits of shape \(30,\) for model 0, not \(6, classes\)"),
        ("{'margins': mask[:6] * 1.0, 'other': 1}", r"gave \['margins', 'other'\]"),
    ],
)
def test_what_does_not_belong_to_a_result_is_refused(module, given, told):
    settings = module(f"mine_{abs(hash(given)) % 10**6}", f"def train(index, mask):\n    return {given}\n")
    with pytest.raises(InputError, match=told):
        train_missing(settings, engine_of(settings, None))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class Mine:\n    def train(self, models): ...", "has no name"),
        ("class Mine(Whole):\n    models_at_once = 0", "models_at_once of the learner .* must be from 1 to 1024, not 0"),
        ("class Mine(Whole):\n    models_at_once = 'all'", "must be from 1 to 1024, not all"),
        ("class Mine(Whole):\n    train_labels = [1, 2]", "train_labels of the learner .* must be a NumPy array"),
        ("class Mine(Whole):\n    test_labels = np.array([0.5])", "test_labels of the learner .* of whole numbers"),
        ("class Mine(Whole):\n    test_labels = np.zeros(0, int)", "test_labels of the learner .* must be a NumPy array"),
        ("class Mine(Whole):\n    train_labels = np.full(30, -3)", "must be classes from 0 to .*, or all -1"),
        ("class Mine(Whole):\n    def __init__(self): raise SystemExit(0)", "raised SystemExit: 0 .mine_"),
        ("class Mine(Whole):\n    def __init__(self, x): pass", "raised TypeError"),
        ("class Mine(Whole):\n    provenance = {'f': print}", "the provenance of mine must be plain JSON"),
        ("class Mine(Whole):\n    provenance = {'f': float('nan')}", "the provenance of mine must be plain JSON"),
    ],
)
def test_learners_that_do_not_keep_the_contract_are_refused(module, tmp_path, text, told):
    whole = (
        "import numpy as np\nclass Whole:\n    name, provenance, models_at_once = 'mine', {'a': (1, 2)}, 2\n"
        "    train_labels, test_labels = np.zeros(30, int), np.zeros(6, int)\n    def train(self, models): ...\n"
    )
    name = f"mine_{abs(hash(text)) % 10**8}"
    settings = module(name, whole + text + "\n", **{"worker.main": f"{name}:Mine"})
    with pytest.raises(InputError, match=told):
        train_missing(settings, engine_of(settings, None))
    assert not (tmp_path / "run" / "store").exists()


GOOD = """
import numpy as np
from datamodels.learners import Trained
class Mine:
    name, provenance, models_at_once = "mine", {}, 4
    train_labels, test_labels = np.zeros(30, int), np.zeros(6, int)
    def train(self, models):
        margins = np.stack([m.mask.reshape(6, 5).sum(1) * 1.0 for m in models])
        RESULT
"""


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("return None", "mine must give datamodels.learners.Trained, not NoneType"),
        ("return {'margins': margins}", "must give datamodels.learners.Trained, not dict"),
        ("return Trained({'logits': margins})", "and no margins"),
        ("return Trained({'margins': margins[0]})", "gave margins of shape"),
        ("return Trained({'margins': margins}, {-1: 'why'})", "gave a failure of -1: there are places 0 to 3"),
        ("return Trained({'margins': margins}, {4: 'why'})", "gave a failure of 4"),
        ("return Trained({'margins': margins}, {0: 7})", "gave a failure of 0"),
        ("raise SystemExit(0)", "the learner mine raised SystemExit: 0"),
        ("return 1 / 0", "the learner mine raised ZeroDivisionError"),
    ],
)
def test_what_a_learner_gives_against_the_contract_is_refused(module, result, told):
    name = f"mine_{abs(hash(result)) % 10**8}"
    settings = module(name, GOOD.replace("RESULT", result), **{"worker.main": f"{name}:Mine"})
    with pytest.raises(InputError, match=told):
        train_missing(settings, engine_of(settings, None))
    store = read_store(settings)
    assert (len(store.missing), store.failures) == (12, {})


def test_a_learner_that_writes_into_its_mask_changes_no_row(module):
    text = GOOD.replace("RESULT", "[m.mask.fill(True) for m in models]\n        return Trained({'margins': margins})")
    settings = module("mine_that_writes", text, **{"worker.main": "mine_that_writes:Mine"})
    train_missing(settings, engine_of(settings, None))
    store = read_store(settings)
    assert np.array_equal(store.masks(store.done), draw_masks(0, range(12), N, settings.store.alpha))
    np.testing.assert_allclose(store.margins(store.done), store.masks(store.done).reshape(12, 6, 5).sum(2))


def test_a_learners_words_are_told_in_one_line_of_text(module):
    text = GOOD.replace("RESULT", "return Trained({'margins': margins}, {1: 'red \\x1b[31m\\nand more'})")
    settings = module("mine_in_colours", text, **{"worker.main": "mine_in_colours:Mine"})
    train_missing(settings, engine_of(settings, None))
    assert read_store(settings).failures[1] == "red \\x1b[31m\\nand more"


def test_a_provenance_is_what_will_be_read_of_it(module):
    text = (
        "import numpy as np\nfrom datamodels.learners import Trained\nclass Mine:\n"
        "    name, provenance, models_at_once = 'mine', {'a': (1, 2)}, 2\n"
        "    train_labels, test_labels = np.zeros(30, int), np.zeros(6, int)\n"
        "    def train(self, models):\n        return Trained({'margins': np.ones((len(models), 6))})\n"
    )
    settings = module("mine_with_a_tuple", text, **{"worker.main": "mine_with_a_tuple:Mine"})
    for _ in range(2):
        assert "12 of 12" in train_missing(settings, engine_of(settings, None))


def test_models_have_numbers_that_no_store_and_no_other_question_has():
    mask = np.ones(4, bool)
    assert Model((3, 17), mask).number == 17
    numbers = {Model((3, 1, 2, k), mask).number for k in range(500)}
    assert len(numbers) == 500
    assert min(numbers) >= FIRST_LISTED
    assert max(numbers) < 2 * FIRST_LISTED


def test_a_function_that_is_neither_is_refused(module):
    settings = module("mine_of_nothing", "train = 7\n")
    with pytest.raises(InputError, match="neither a function nor a learner"):
        learner_named(settings)


def test_a_changed_function_is_refused_by_its_file_and_goes_on_when_trusted(module, tmp_path, command):
    (tmp_path / "helper_of_mine.py").write_text("SCALE = 1.0\n")
    text = "import helper_of_mine\ndef train(index, mask):\n    return {'margins': mask[:6] * helper_of_mine.SCALE}\n"
    module("mine_in_two", text)
    flags: tuple[object, ...] = (
        "-C",
        CONFIGS / "digits.yaml",
        "--run.dir",
        "run",
        "--worker.main",
        "mine_in_two:train",
        "--regress.prior",
        "none",
    )
    flags += ("--data.train_images", N, "--data.test_images", T, "--gpu", "cpu")
    assert "4 of 4" in command("worker", *flags, "--store.num_models", 4, cwd=tmp_path).stdout
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert "8 of 8" in command("worker", *flags, "--store.num_models", 8, cwd=tmp_path).stdout
    (tmp_path / "helper_of_mine.py").write_text("SCALE = 2.0\n")
    refused = command("worker", *flags, "--store.num_models", 12, cwd=tmp_path)
    assert refused.returncode == 2
    assert "helper_of_mine.py has changed since run/store was made with it" in refused.stderr
    assert "--worker.trust_changed_code true" in refused.stderr
    trusted = command("worker", *flags, "--store.num_models", 12, "--worker.trust_changed_code", "true", cwd=tmp_path)
    assert "12 of 12" in trusted.stdout
    assert command("worker", *flags, "--store.num_models", 12, cwd=tmp_path).returncode == 2


def test_a_verification_by_other_code_than_the_models_is_refused(tmp_path, command):
    (tmp_path / "turning.py").write_text("def train(index, mask):\n    return {'margins': mask.reshape(6, 5).sum(1) - 2.0}\n")
    (tmp_path / "targets.txt").write_text("3\n")
    flags: tuple[object, ...] = (
        "-C",
        CONFIGS / "digits.yaml",
        "--run.dir",
        "run",
        "--worker.main",
        "turning:train",
        "--regress.prior",
        "none",
    )
    flags += ("--data.train_images", N, "--data.test_images", T, "--store.num_models", 120, "--verify.methods", "none")
    flags += ("--verify.subsets", 0, "--verify.counterfactuals", "none", "--verify.sizes", 5)
    for stage in ("worker", "regress"):
        assert command(stage, *flags, cwd=tmp_path).returncode == 0
    # Of another length: Python takes bytecode for that of a source of the same second and size.
    other = "def train(index, mask):\n    return {'margins': -(mask.reshape(6, 5).sum(1) - 2.0)}\n"
    (tmp_path / "turning.py").write_text(other)
    refused = command("verify", *flags, "--targets", "targets.txt", cwd=tmp_path)
    assert refused.returncode == 2
    assert "turning.py has changed since run/store was made with it" in refused.stderr
    assert not (tmp_path / "run" / "verify" / "verify.json").exists()
    trusted = command("verify", *flags, "--targets", "targets.txt", "--worker.trust_changed_code", "true", cwd=tmp_path)
    assert trusted.returncode == 0, trusted.stderr


def test_a_process_that_is_started_when_the_code_has_changed_does_not_mix_the_two(module, tmp_path):
    text = "import os, signal\nimport numpy as np\n\ndef train(index, mask):\n    return {'margins': np.full(6, 1.0)}\n"
    settings = module("mine_changing", text)
    with engine_of(settings, "cpu,cpu") as engine:
        assert engine.ask(name_of) == "mine_changing:train"
        (tmp_path / "mine_changing.py").write_text(text.replace("1.0", "2.0"))
        assert engine.team is not None
        for member in engine.team.members:
            member.process.kill()
            member.process.wait()
        with pytest.raises(InputError, match=r"mine_changing.py has changed since the work was made with it"):
            train_missing(settings, engine)
    assert not len(read_store(settings).done)


def name_of(learner):
    return learner.name


def test_a_learner_of_ones_own_stands_for_itself(module):
    text = (
        "import numpy as np\nfrom datamodels.learners import Trained\n"
        "class Mine:\n    name, provenance, models_at_once = 'mine', {'version': 3}, 5\n"
        "    train_labels, test_labels = np.full(30, -1), np.full(6, -1)\n"
        "    def train(self, models):\n"
        "        return Trained({'margins': np.stack([m.mask.reshape(6, 5).sum(1) * 1.0 for m in models])})\n"
    )
    settings = module("mine_as_a_class", text, **{"worker.main": "mine_as_a_class:Mine"})
    assert "12 of 12" in train_missing(settings, engine_of(settings, None))
    store = read_store(settings)
    assert np.array_equal(store.margins(store.done), store.masks(store.done).reshape(12, 6, 5).sum(2))
    assert store.meta.provenance["learner"] == {"version": 3}
    assert store.meta.provenance["groups"]["models_at_once"] == 5
    assert store.meta.provenance["sources"].keys() == {"mine_as_a_class.py"}
