"""A learner of one's own goes the whole road by the commands: store, prior, regression, search, relabelling, page."""

import json

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.learners import Gradients, Model, offered
from datamodels.resources import CONFIGS
from datamodels.store import Store
from datamodels.subsets import draw_masks
from tests.learners.third import Linear

FLAGS = {
    "run.dir": "run",
    "worker.main": "tests.learners.third:Linear",
    "groups.models_at_once": 0,
    "store.num_models": 400,
    "store.alpha": 0.5,
    "regress.prior": "similarity",
    "verify.methods": "datamodel,relabel,similarity",
    "verify.random_targets": 5,
    "verify.subsets": 6,
    "verify.max_size": 60,
    "verify.sizes": "10",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, command):
    folder = tmp_path_factory.mktemp("third")
    flags = ["-C", CONFIGS / "digits.yaml", *(part for key, value in FLAGS.items() for part in (f"--{key}", value))]
    done = command("", *flags, cwd=folder, path=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_its_rows_are_what_it_gives_for_the_seeds_masks(run):
    store, learner = Store(run[0] / "store"), Linear()
    masks = draw_masks(0, [5, 40], 120, 0.5)
    assert np.array_equal(store.masks([5, 40]), masks)
    expected = learner.train([Model((0, 5), masks[0]), Model((0, 40), masks[1])]).arrays["margins"]
    np.testing.assert_allclose(store.margins([5, 40]), expected, rtol=1e-5, atol=1e-6)
    assert store.meta.provenance["learner"] == {"learner": "ridge", "data": "digits"}
    # Its packages are made of files too; this package's own code is none of it.
    assert set(store.meta.provenance["sources"]) == {"tests/learners/third.py"}


def test_its_sets_flip_what_they_are_said_to_flip_judged_by_the_learner_itself(run):
    learner, told = Linear(), json.loads((run[0] / "verify" / "verify.json").read_text())
    assert {search["method"] for search in told["searches"]} == {"datamodel", "relabel", "similarity"}
    flipped = [search for search in told["searches"] if search["verdict"] == "flipped"]
    assert len(flipped) >= 5
    for search in flipped:
        mask, labels = np.ones(120, bool), None
        if search["relabelled"] is None:
            mask[search["order"][: search["size"]]] = False
        else:
            labels = learner.train_labels.copy()
            labels[search["order"][: search["size"]]] = search["relabelled"]
        new = [Model((99, k), mask, labels) for k in range(64)]
        assert learner.train(new).arrays["margins"][:, search["target"]].mean() <= 0.05


def test_the_page_shows_its_pictures_and_the_names_of_its_classes(run):
    folder, said = run
    data = folder / "report" / "data"
    assert list(data.glob("test-*.png"))
    assert list(data.glob("train-*.png"))
    assert "LDS" in said
    assert (folder / "report" / "cdf.png").exists()


def test_what_it_does_not_offer_is_said_in_a_sentence_from_one_place(run, command):
    with pytest.raises(InputError, match="the method x needs gradients, and K linear models gives none"):
        offered(Linear(), Gradients, "the method x")
    flags = ["-C", CONFIGS / "digits.yaml", *(part for key, value in FLAGS.items() for part in (f"--{key}", value))]
    arguments = [*flags, "--verify.methods", "tracin", "--verify.name", "other", "--targets", "3"]
    refused = command("verify", *arguments, cwd=run[0].parent, path=CONFIGS.parent)
    assert refused.returncode == 2
    assert "the method tracin needs networks that dattri can take apart, and K linear models gives none" in refused.stderr
