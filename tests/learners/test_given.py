"""What learners of people's own may give in the place of what the contract wants: a sentence each, wherever they are asked."""

import re
import threading
import time

import numpy as np
import pytest
import torch

from datamodels.brittleness import cosine
from datamodels.data import Dataset, Split
from datamodels.errors import InputError
from datamodels.learners import Model, Named, NamesClasses, Pictures, Relabels, Trained, offered
from datamodels.learners import given as asked
from datamodels.learners import recipe as recipes
from datamodels.learners.given import NO_REASON, named, names_of, pictures_of, refuse_incomplete, trained_by
from datamodels.learners.recipe import Recipe
from datamodels.resources import CONFIGS
from datamodels.runs import stage_folder
from datamodels.settings import GroupSettings, parse
from datamodels.store import Store
from datamodels.vectors import of_length_1
from datamodels.verify.retrain import Request, Retraining, alone
from datamodels.worker import Local, make_prior, open_store, train_missing
from datamodels.worker.decided import provenance_of
from datamodels.worker.jobs import listed_model
from datamodels.worker.prior import _InOrder, _of_models, _scaled
from tests.verify.engines import retrained

N, T, CLASSES, D = 12, 4, 3, 5


class Good:
    """A learner that keeps the contract, in all that a learner may offer."""

    name, models_at_once, classes, class_names = "mine", 3, CLASSES, ("a", "b", "c")
    train_labels, test_labels = np.arange(N) % CLASSES, np.arange(T) % CLASSES
    x, x_test = np.random.default_rng(0).normal(size=(N, D)), np.random.default_rng(1).normal(size=(T, D))

    def __init__(self):
        self.provenance = {"learner": "good"}
        self.told = []

    def train(self, models):
        assert all(model.labels is None for model in models)
        margins = np.stack([model.mask.reshape(T, -1).sum(1) + 0.1 * (model.number % 3) for model in models])
        return Trained({"margins": margins, "logits": np.ones((len(models), T, CLASSES))})

    def train_relabelled(self, models):
        self.told += [model.labels for model in models]
        return self.train([Model(model.key, model.mask) for model in models])

    def features(self, models):
        return {"features_train": np.stack([self.x] * len(models)), "features_test": np.stack([self.x_test] * len(models))}

    def first_order(self, models, dimensions):
        return {"gradients": np.full((2, N, T), len(models), np.float32), **self.features(models)}

    def attribute(self, method, models, targets):
        return np.outer(np.arange(N), targets).astype(float)

    def pictures(self, of_train, indices):
        return np.stack([np.full((6, 7, 3), index, np.uint8) for index in indices])

    def names(self, of_train, indices):
        return [f"{'train' if of_train else 'test'}/{index}.png" for index in indices]

    def side_by_side(self, items, work):
        for item in reversed(items):
            work(item)

    def choose_groups(self, wanted):
        return GroupSettings(4, 2, "plain")

    def give_back(self):
        pass


def but(**changed):
    """A good learner but for these attributes; those of None are not there."""
    members = {**vars(Good), **changed}
    return type("Mine", (), {name: value for name, value in members.items() if value is not None})()


def giving(method, value):
    """A good learner whose method gives this instead; a function is called with what the good one gives."""

    def instead(self, *arguments):
        return value(getattr(Good, method)(self, *arguments)) if callable(value) else value

    return but(**{method: instead})


def models(k=2, labels=None):
    return [Model((0, i), np.arange(N) % 5 != i, labels) for i in range(k)]


def settings(tmp_path, **changed):
    values = {"run.dir": tmp_path / "run", "worker.main": "tests.learners.test_given:Good", "store.num_models": 8}
    values |= {
        "store.margin_dtype": "float32",
        "regress.prior": "none",
        "groups.models_at_once": 0,
        "prior.models": 8,
        **changed,
    }
    return parse(["-C", str(CONFIGS / "digits.yaml"), *(part for k, v in values.items() for part in (f"--{k}", str(v)))])[0]


def features_of(learner):
    return asked.features_of(learner, models(), "the method similarity")


def first_order_of(learner):
    return asked.first_order_of(learner, models(), 16, "regress.prior gradients")


def attributed_by(learner):
    return asked.attributed_by(learner, "tracin", models(), [1, 3])


def pictures(learner):
    return pictures_of(learner, True, [2, 5])


def names(learner):
    return names_of(learner, False, [0, 3])


def logits_of(learner):
    return asked.logits_of(trained_by(learner, models()), learner)


ASKED = {
    features_of: "features",
    first_order_of: "first_order",
    attributed_by: "attribute",
    pictures: "pictures",
    names: "names",
}


def test_what_is_as_the_contract_wants_it_comes_through_as_it_is():
    good = Good()
    refuse_incomplete(good, "mine:Mine")
    for found, expected in (
        (features_of(good), Good.features(good, models())),
        (first_order_of(good), Good.first_order(good, models(), 16)),
        ({"scores": attributed_by(good)}, {"scores": Good.attribute(good, "", [], [1, 3])}),
        ({"pictures": pictures(good)}, {"pictures": Good.pictures(good, True, [2, 5])}),
        ({"logits": logits_of(good)}, {"logits": np.ones((2, T, CLASSES))}),
    ):
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert np.array_equal(array, expected[name]), name
    assert names(good) == ["test/0.png", "test/3.png"]
    assert (named(good, True, 7), named(but(names=None), True, 7)) == ("train/7.png", "no. 7")
    assert pictures(but(pictures=None)) is names(but(names=None)) is None
    bare = but(**dict.fromkeys(("pictures", "names", "class_names", "train_relabelled"), None))
    assert not any(isinstance(bare, offer) for offer in (Pictures, Named, NamesClasses, Relabels))
    refuse_incomplete(bare, "mine:Mine")
    refuse_incomplete(but(train_targets=np.array([5, 9])), "mine:Mine")
    refuse_incomplete(but(train_labels=np.full(N, -1), test_labels=np.full(T, -1), models_at_once=np.int64(1024)), "mine:Mine")


class Restless:
    """Labels of another length, or of other classes, at each look."""

    def __init__(self, *looks):
        self.looks = list(looks)

    def __get__(self, instance, owner=None):
        self.looks.append(self.looks.pop(0))
        return self.looks[-1]


LABELS = Good.train_labels


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": None}, "has no name"),
        ({"name": 7}, "name of the learner mine:Mine must be one line of text, not 7"),
        ({"name": ""}, "must be one line of text"),
        ({"name": "two\nlines"}, "must be one line of text"),
        ({"train": 3}, "train of the learner mine:Mine must be a method, not int"),
        ({"features": np.ones(3)}, "features of the learner mine:Mine must be a method, not ndarray"),
        ({"give_back": True}, "give_back of the learner mine:Mine must be a method, not bool"),
        ({"side_by_side": "yes"}, "side_by_side of the learner"),
        ({"names": ["a"] * N}, "names of the learner mine:Mine must be a method, not list"),
        ({"models_at_once": 0}, "must be from 1 to 1024, not 0"),
        ({"models_at_once": 1025}, "must be from 1 to 1024"),
        ({"models_at_once": True}, "must be from 1 to 1024, not True"),
        ({"models_at_once": 2.0}, "must be from 1 to 1024, not 2.0"),
        (
            {"train_labels": np.full(N, -1)},
            "its train_labels are -1: both must be known, or neither",
        ),
        ({"test_labels": np.full(T, -1)}, "knows its train_labels, and its test_labels are -1"),
        ({"train_labels": np.where(LABELS == 0, -1, LABELS)}, "must be classes from 0 to .*, or all -1: not known"),
        ({"train_labels": np.ma.masked_equal(LABELS, 2)}, "train_labels of the learner mine:Mine must be a NumPy array"),
        ({"train_labels": LABELS.astype(float)}, "of whole numbers"),
        ({"train_labels": LABELS[:, None]}, "must be a NumPy array"),
        ({"train_labels": Restless(LABELS, LABELS[:5])}, "train_labels .* must stay what they are"),
        ({"test_labels": Restless(LABELS[:4], 1 - LABELS[:4] % 2)}, "test_labels .* must stay what they are"),
        (
            {"classes": 2},
            "classes of .* must be a whole number above every label, of which 2 is the largest",
        ),
        ({"classes": "3"}, "classes of the learner mine:Mine must be a whole number"),
        (
            {"class_names": ("a", "b")},
            "class_names of .* must be a list or tuple of at least 3 names, not 2",
        ),
        ({"class_names": "abc"}, "class_names of .* must be a list or tuple of at least 3 names, not str"),
        ({"class_names": ["a", 1, "c"]}, "class_names of the learner mine:Mine must be texts of one line each, not 1"),
        ({"class_names": ["a", None, "c"]}, "must be texts of one line each"),
        ({"class_names": ["a", "b\nb", "c"]}, "must be texts of one line each"),
        ({"class_names": ["a", "b", "a"]}, "class_names of .* must be different, and 'a' comes twice"),
        ({"train_targets": 3}, "train_targets of the learner mine:Mine must be a list, tuple or array of different indices"),
        ({"train_targets": (N,)}, f"different indices from 0 to {N - 1}, fewer than the {T} targets, not"),
        ({"train_targets": [3, 3]}, "must be a list, tuple or array of different indices"),
        ({"train_targets": [True]}, "must be a list, tuple or array of different indices"),
        ({"train_targets": np.arange(T)}, "fewer than the 4 targets"),
        ({"train_targets": (2, 4)}, "train_targets of .* are the last 2 targets, and these are of other classes"),
    ],
)
def test_what_is_no_learner_is_refused_before_anything_is_done(changed, told):
    with pytest.raises(InputError, match=told):
        refuse_incomplete(but(**changed), "mine:Mine")


def with_nan(array):
    array = np.array(array, np.float64)
    array[-1, ..., -1] = np.nan
    return array


def side(name, change):
    """Changes one array of a mapping."""
    return lambda found: {**found, name: change(np.array(found[name]))}


def masked(array):
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == 3)


@pytest.mark.parametrize(
    ("ask", "value", "told"),
    [
        (
            features_of,
            None,
            "features of mine must give a mapping with features_train, features_test, not NoneType",
        ),
        (features_of, lambda found: {"features_train": 1}, r"not \['features_train'\]"),
        (
            features_of,
            side("features_train", lambda a: a[0]),
            r"features_train of shape \(12, 5\), not \(2, 12, d\)",
        ),
        (
            features_of,
            side("features_train", lambda a: a[:1]),
            r"of shape \(1, 12, 5\), not \(2, 12, d\) for 2 models",
        ),
        (features_of, side("features_train", lambda a: a[:, :, :0]), r"of shape \(2, 12, 0\)"),
        (features_of, side("features_train", lambda a: a[:, 1:]), r"of shape \(2, 11, 5\), not \(2, 12, 5\)"),
        (
            features_of,
            side("features_test", lambda a: a[:, :, 1:]),
            r"features_test of shape \(2, 4, 4\), not \(2, 4, 5\)",
        ),
        (features_of, side("features_test", with_nan), "gave features_test that are not finite"),
        (features_of, side("features_train", lambda a: a / 0.0), "gave features_train that are not finite"),
        (features_of, side("features_train", masked), "gave features_train that are not finite"),
        (
            features_of,
            side("features_train", lambda a: a.astype(str)),
            "features_train of type <U32, not real numbers",
        ),
        (features_of, side("features_train", lambda a: a + 0j), "of type complex128, not real numbers"),
        (
            features_of,
            lambda found: 1 / 0,
            "the learner mine raised ZeroDivisionError: .* .test_given.py",
        ),
        (
            first_order_of,
            lambda found: found["gradients"],
            "first_order of mine must give a mapping with gradients",
        ),
        (
            first_order_of,
            side("gradients", lambda a: a[:1]),
            r"gradients of shape \(1, 12, 4\), not \(2, 12, 4\)",
        ),
        (first_order_of, side("gradients", lambda a: a.swapaxes(1, 2)), r"not \(2, 12, 4\)"),
        (first_order_of, side("gradients", with_nan), "gave gradients that are not finite"),
        (first_order_of, side("features_train", lambda a: np.concatenate([a, a])), r"of shape \(4, 12, 5\)"),
        (
            first_order_of,
            side("features_test", lambda a: a[:1]),
            r"features_test of shape \(1, 4, 5\), not \(2, 4, 5\)",
        ),
        (attributed_by, lambda found: found.T, r"gave scores of shape \(2, 12\), not \(12, 2\)"),
        (attributed_by, with_nan, "gave scores that are not finite"),
        (attributed_by, lambda found: [[1], [2, 3]], "gave scores as no array"),
        (
            pictures,
            lambda found: found[0],
            r"gave pictures of uint8 \(6, 7, 3\), not uint8 \(2, height, width, 1 or 3\)",
        ),
        (pictures, lambda found: found[:1], r"gave pictures of uint8 \(1, 6, 7, 3\)"),
        (pictures, lambda found: found[..., :2], r"\(2, 6, 7, 2\), not"),
        (pictures, lambda found: found[:, :0], r"\(2, 0, 7, 3\), not"),
        (pictures, lambda found: found / 255, "gave pictures of float64"),
        (pictures, masked, "gave pictures of float64"),
        (names, lambda found: found[:1], "the names that mine gave must be a list or tuple of 2 names, not 1"),
        (names, "ab", "must be a list or tuple of 2 names, not str"),
        (names, ["a", b"b"], "must be texts of one line each, not b'b'"),
        (names, ["a", "b\r\nc"], "must be texts of one line each"),
        (names, ["a", ""], "must be texts of one line each"),
    ],
)
def test_what_is_given_in_the_place_of_what_was_asked_for_is_a_sentence(ask, value, told):
    with pytest.raises(InputError, match=told), np.errstate(divide="ignore", invalid="ignore"):
        ask(giving(ASKED[ask], value))


@pytest.mark.parametrize(
    ("logits", "told"),
    [
        (np.ones((2, T)), r"gave logits of shape \(2, 4\), not \(K, T, classes\) for 2 models, 4 targets and labels up to 2"),
        (np.ones((1, T, CLASSES)), r"gave logits of shape \(1, 4, 3\)"),
        (np.ones((2, T, 2)), r"gave logits of shape \(2, 4, 2\)"),
        (np.ones((2, T, CLASSES)).astype(str), "logits of type <U32, not real numbers"),
        (np.full((2, T, CLASSES), np.inf), "gave logits that are not finite, beside margins that are"),
    ],
)
def test_logits_that_are_none_are_refused_and_those_of_models_that_failed_do_not_count(logits, told):
    learner = giving("train", lambda found: Trained({**found.arrays, "logits": logits}))
    with pytest.raises(InputError, match=told):
        logits_of(learner)
    lost = np.where(np.arange(2)[:, None, None] == 0, np.nan, np.ones((2, T, CLASSES)))
    for failures, margin in (({0: "why"}, 1.0), ({}, np.nan)):
        arrays = {"margins": np.array([[margin] * T, [1.0] * T]), "logits": lost}
        assert logits_of(giving("train", lambda _, arrays=arrays, failures=failures: Trained(arrays, failures))) is not None


def test_small_numbers_are_made_wider_before_anything_is_reckoned_with_them():
    for kind, value in (("float16", 6e4), ("int8", 100), ("bool", 1), ("float32", 1e30), ("float64", 1e-200), ("int64", 2**40)):
        found = features_of(giving("features", lambda f, k=kind, v=value: {n: np.full(a.shape, v, k) for n, a in f.items()}))
        for array in found.values():
            assert array.dtype in (np.float32, np.float64)
            np.testing.assert_allclose(array, value)
            np.testing.assert_allclose(cosine(array[0], array[1]), 1)


@pytest.mark.parametrize("value", [None, {"margins": 1}, Trained([1], {}), Trained({}, [0])])  # type: ignore[arg-type]
def test_what_is_not_trained_is_a_sentence(value):
    with pytest.raises(InputError, match=r"mine must give datamodels.learners.Trained, not "):
        trained_by(giving("train", lambda _: value), models())


def test_failures_have_a_reason_and_their_places_may_be_numpys():
    found = trained_by(giving("train", lambda f: Trained(f.arrays, {np.int64(1): " ", 0: "why\n"})), models())
    assert found.failures == {1: NO_REASON, 0: "why\\n"}
    for failures in ({2: "x"}, {True: "x"}, {0: None}, {"0": "x"}):
        with pytest.raises(InputError, match=r"gave a failure of .*: there are places 0 to 1, with a text for each"):
            trained_by(giving("train", lambda f, failures=failures: Trained(f.arrays, failures)), models())


def test_labels_go_to_no_learner_that_does_not_offer_to_relabel():
    other = np.zeros(N, int)
    mixed = [*models(), *models(1, other)]
    good = Good()
    trained_by(good, mixed)
    assert [None if labels is None else labels.tolist() for labels in good.told] == [None, None, other.tolist()]
    deaf = but(train_relabelled=None, train=lambda self, models: pytest.fail("it was given labels"))
    assert deaf.classes == CLASSES
    with pytest.raises(InputError, match="relabelling needs models of other labels, and mine gives none"):
        trained_by(deaf, mixed)
    with pytest.raises(InputError, match="relabelling needs models of other labels, and mine gives none"):
        listed_model(0, np.arange(N) > 2, 0, 1, deaf)


def test_arrays_that_a_learner_fills_again_are_not_taken_for_the_next_ones():
    buffer = np.zeros((2, N, T), np.float32)

    def first_order(self, models, dimensions):
        buffer[:] = 10.0 ** (models[0].number % 4)
        return {"gradients": buffer, **Good.features(self, models)}

    learner, sums = but(first_order=first_order), _InOrder()
    for number in (2, 1, 0):
        sums.add(number, _of_models(learner, [Model((0, number), np.ones(N, bool))], 16))
    assert sums.scores is not None
    assert (sums.scores == 111).all()
    pixels = np.zeros((2, 4, 4, 1), np.uint8)

    def again(self, of_train, indices):
        pixels[:] = indices[0]
        return pixels

    painter = but(pictures=again)
    first, second = pictures_of(painter, True, [3, 4]), pictures_of(painter, True, [5, 6])
    assert first is not None
    assert second is not None
    assert (first.max(), second.max()) == (3, 5)


# How a learner is called.


def test_side_by_side_of_ones_own_is_held_to_its_word():
    done: list[int] = []
    asked.side_by_side(Good())([1, 2, 3], done.append)
    assert done == [3, 2, 1]
    asked.side_by_side(but(side_by_side=None))([4, 5], done.append)
    assert done[3:] == [4, 5]

    def fails(self, items, work):
        raise LookupError("no threads today")

    for its, told in (
        (fails, "the learner mine raised LookupError: no threads today .test_given.py"),
        (lambda self, items, work: work(items[0]), "side_by_side of mine left 2 of 3 items out"),
        (lambda self, items, work: work(7), "side_by_side of mine worked on 7, none of its items"),
        (lambda self, items, work: work([]), "none of its items"),
    ):
        with pytest.raises(InputError, match=told):
            asked.side_by_side(but(side_by_side=its))([1, 2, 3], lambda item: None)


def swallows(self, items, work):
    for item in items:
        try:
            work(item)
        except BaseException:  # noqa: PERF203
            continue


@pytest.mark.parametrize("its", [Good.side_by_side, swallows])
@pytest.mark.parametrize("error", [ArithmeticError("ours"), KeyboardInterrupt(), InputError("so it is"), MemoryError()])
def test_what_the_work_raises_side_by_side_is_nobody_elses_fault(its, error):
    def work(item):
        raise error

    with pytest.raises(type(error)) as raised:
        asked.side_by_side(but(side_by_side=its))([1, 2], work)
    assert raised.value is error


def raising(self, *_):
    raise RuntimeError("not now")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"choose_groups": raising}, "the learner mine raised RuntimeError: not now .test_given.py"),
        ({"choose_groups": lambda self, wanted: 4}, "choose_groups of mine must give GroupSettings of 1 to 1024 models, not 4"),
        ({"choose_groups": lambda self, wanted: GroupSettings(0, 0)}, "must give GroupSettings of 1 to 1024 models, not Group"),
        ({"choose_groups": lambda self, wanted: GroupSettings(2, True)}, "must give GroupSettings of 1 to 1024 models"),
        ({"give_back": raising}, "the learner mine raised RuntimeError: not now"),
        ({"side_by_side": raising}, "the learner mine raised RuntimeError: not now"),
    ],
)
def test_further_methods_that_fail_are_a_sentence(tmp_path, changed, told):
    with pytest.raises(InputError, match=told):
        train_missing(settings(tmp_path), Local(lambda _: but(**changed)))


def recursive():
    found: dict[str, object] = {}
    found["itself"] = found
    return found


def deep():
    found: object = 1
    for _ in range(100_000):
        found = [found]
    return {"deep": found}


@pytest.mark.parametrize(
    "provenance",
    [recursive(), deep(), {"file": "\udc80.png"}, {"\udc80": 1}, {"x": np.float32(1)}, {"x": float("inf")}, {(1, 2): 3}, 7],
    ids=["recursive", "deep", "surrogate", "surrogate key", "numpy", "infinity", "tuple key", "number"],
)
def test_a_provenance_that_no_file_could_hold_is_a_sentence(tmp_path, provenance):
    with pytest.raises(InputError, match="the provenance of mine must be plain JSON"):
        provenance_of(settings(tmp_path), but(__init__=None, provenance=provenance))
    assert provenance_of(settings(tmp_path), Good())["learner"] == {"learner": "good"}


def test_a_provenance_that_raises_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="the learner mine raised RuntimeError: not now"):
        provenance_of(settings(tmp_path), but(__init__=None, provenance=property(raising)))


def test_a_learner_of_other_examples_than_its_store_is_refused(tmp_path):
    train_missing(settings(tmp_path), Local(lambda _: Good()))
    longer = but(train_labels=np.arange(N + T) % CLASSES)
    with pytest.raises(InputError, match="was made of 12 training examples and 4 targets, and mine has 16 and 4 now"):
        open_store(settings(tmp_path), Local(lambda _: longer))


# What is reckoned with it.


@pytest.mark.parametrize("size", [1e-300, 1e-40, 1.0, 1e30, 1e300])
def test_vectors_of_any_size_have_a_length_and_a_cosine(size):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 6, 5))
    a[2] = 0
    expected = [[x @ y / np.sqrt((x @ x) * (y @ y)) if x.any() else 0.0 for y in b] for x in a]
    np.testing.assert_allclose(cosine(size * a, b / size), expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(of_length_1(size * a), axis=-1), [1, 1, 0, 1, 1, 1])
    # A power of two changes no bit.
    np.testing.assert_array_equal(of_length_1(np.ldexp(a, 300)), of_length_1(a))


@pytest.mark.parametrize("kind", ["features", "first_order"])
@pytest.mark.parametrize("size", [1e-40, 1e30])
def test_a_priors_features_are_of_length_1_whatever_they_were(kind, size):
    def scaled(found):
        return {**found, **{name: (size * array).astype(np.float32) for name, array in found.items() if "features" in name}}

    learner = giving(kind, scaled)
    if kind == "features":
        del type(learner).first_order
    found = _of_models(learner, models(), 16)
    for name, x in (("features_train", Good.x), ("features_test", Good.x_test)):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(found[name].astype(float), [unit, unit], atol=2e-3)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_gradients_of_any_size_are_scaled(size):
    scores = size * np.random.default_rng(0).normal(size=(2, N, T))
    found = _scaled(scores if size not in (1e-30, 1e30) else scores.astype(np.float32), "mine").astype(float)
    np.testing.assert_allclose(np.square(found).mean((1, 2)), 1, rtol=2e-3)
    np.testing.assert_allclose(found[0] / found[0, 0, 0], scores[0] / scores[0, 0, 0], rtol=5e-3)
    assert not _scaled(np.zeros((2, N, T)), "mine").any()


def test_gradients_whose_sum_overflows_are_a_sentence_and_no_prior(tmp_path):
    huge = giving("first_order", side("gradients", lambda a: np.full(a.shape, 2e38, np.float32)))
    chosen = settings(tmp_path, **{"regress.prior": "gradients"})
    with pytest.raises(InputError, match="mine gave gradients whose sum over the networks is beyond float32"):
        make_prior(chosen, Local(lambda _: huge))
    assert not stage_folder(chosen, "prior").exists()
    make_prior(chosen, Local(lambda _: Good()))
    assert np.load(stage_folder(chosen, "prior") / "gradients.npy").shape == (2, N, T)


def test_a_block_of_relabelled_and_other_models_is_one_call(tmp_path):
    """Of the store of retrained models, where both are listed side by side."""
    chosen, good = settings(tmp_path, **{"verify.models": 2}), Good()
    train_missing(chosen, Local(lambda _: good))
    mask = np.arange(N) > 3
    requests = [Request.of(mask, 0), Request.of(mask, 0, 1), Request.of(~mask, 1)]
    with alone(chosen) as folder:
        found = retrained(Retraining(folder / "store", chosen, Local(lambda _: good)), requests)
    assert [labels is None for labels in good.told] == [request.relabelled < 0 for request in sorted(requests, key=order_of)]
    assert np.isfinite(found.margins(requests)).all()
    assert len(Store(folder / "store").done) == 3


def order_of(request):
    return -int.from_bytes(request.packed, "little").bit_count()


# The built-in recipe as a learner.


def data_of(images, test, names=None):
    splits = [Split(torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64)) for x in (images, test)]
    for split, of_split in zip(splits, names or (), strict=False):
        object.__setattr__(split, "names", of_split)
    return Dataset(splits[0], splits[1], ("only",), "digest of the test's own")


def recipe_of(tmp_path, *data, **more):
    return Recipe(settings(tmp_path, **{"worker.main": "recipe"}), data_of(*data, **more), "cpu")


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (7, 3)])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_the_recipes_pictures_have_the_range_of_all_its_data_and_at_most_three_channels(tmp_path, channels, shown, kind):
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (5, 4, 3, channels)), rng.integers(0, 256, (2, 4, 3, channels))
    train[0, 0, 0, 0], test[1, 0, 0, 0] = 0, 255
    images = [(x if kind == "uint8" else x / 51 - 2).astype(kind) for x in (train, test)]
    learner = recipe_of(tmp_path, *images)
    assert np.array_equal(offered(learner, Pictures, "x").pictures(True, [3, 1]), train[[3, 1]][..., :shown])
    found = pictures_of(learner, False, [1])
    assert found is not None
    assert np.array_equal(found, test[[1]][..., :shown])


def test_the_recipe_offers_what_its_data_have(tmp_path):
    flat = np.zeros((4, 9), np.float32), np.ones((2, 9), np.float32)
    of_features = recipe_of(tmp_path, *flat)
    assert not isinstance(of_features, (Pictures, Named))
    assert isinstance(of_features, NamesClasses)
    constant = recipe_of(tmp_path, np.full((4, 2, 2, 1), 3.5, np.float32), np.full((2, 2, 2, 1), 3.5, np.float32))
    assert not offered(constant, Pictures, "x").pictures(True, [0]).any()
    with_names = recipe_of(tmp_path, *flat, names=(("a", "b", "c", "d"), ("e", "f")))
    assert names_of(with_names, True, [2, 0]) == ["c", "a"]
    assert named(with_names, False, 1) == "f"


def test_two_threads_that_want_the_recipes_trainer_make_one(tmp_path, monkeypatch):
    made = []

    def slow(*_, **__):
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    monkeypatch.setattr(recipes, "Trainer", slow)
    learner = recipe_of(tmp_path, np.zeros((4, 2, 2, 1), np.uint8), np.zeros((2, 2, 2, 1), np.uint8))
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(learner.beforehand)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(set(map(id, seen)))) == (1, 1)
    learner.give_back()
    assert learner.beforehand is not seen[0]


def test_names_are_shown_in_one_line_that_a_terminal_does_not_obey():
    odd = ["\u202egpj.exe", "\x1b[31mred", "\udc80.png"]
    learner = but(names=lambda self, of_train, indices: [odd[index] for index in indices])
    assert names_of(learner, True, range(3)) == odd
    for index in range(3):
        assert re.fullmatch(r"[\x20-\x7e]+", named(learner, True, index))
