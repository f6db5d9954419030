"""Supports from what a verification has measured: whose margin they are taken from, and what is said where there is none."""

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest

import datamodels
from datamodels import Datamodels
from datamodels.errors import InputError
from datamodels.regress import results
from datamodels.runs import stage_folder
from datamodels.seals import read_sealed, write_sealed
from datamodels.verify import verify_targets
from tests.verify.rule import N, T, by_the_rule, changed

TOO_LOW = 2.0

support: Any = datamodels.support


@pytest.fixture
def verified(run):
    """A run whose targets 0 to 5 were verified, and its weights: of a bias that is too low for all of S."""
    settings, data, models = run
    settings = changed(settings, methods="datamodel", sizes="none", base_models=8, models=4, most_models=8)
    verify_targets(settings, by_the_rule(data, models), models, range(6))
    folder, meta = stage_folder(settings, "regress"), {**models.meta, "format_version": results.FORMAT_VERSION}
    results.write(folder, models.weights, (models.bias - TOO_LOW).astype(np.float32), models.lam, models.heldout, {}, meta)
    file = stage_folder(settings, "verify") / "verify.json"
    return Datamodels.load(folder), file, json.loads(file.read_text())


def fewest(weights, base):
    """How many images it takes, counted one by one."""
    left, taken = base, 0
    for weight in sorted(weights.astype(float), reverse=True):
        if left <= 0:
            break
        left, taken = left - weight, taken + 1
    return taken


def len_or_inf(search):
    return np.inf if search["size"] is None else search["size"]


def named(models, content, target):
    return fewest(models.weights[:, target], content["base"][str(target)]["mean_margin"])


def test_a_measured_target_is_taken_from_what_networks_on_the_whole_set_say(verified):
    models, _, content = verified
    sets = {search["target"]: search for search in content["searches"]}
    assert len(sets) > 3
    for target in range(6):
        found, on_all = support(models, target), content["base"][str(target)]
        assert found.base == "measured"
        assert found.predicted_before == on_all["mean_margin"]
        assert (found.measured.models, found.measured.low, found.measured.high) == (8, on_all["low"], on_all["high"])
        assert len(found.indices) == fewest(models.weights[:, target], on_all["mean_margin"])
        assert found.indices.tolist() == np.argsort(-models.weights[:, target], kind="stable")[: len(found.indices)].tolist()
        if target in sets and sets[target]["verdict"] == "flipped":
            assert found.verified.tolist() == sets[target]["order"][: sets[target]["size"]]
            assert repr(found).endswith(f"retraining has proved {sets[target]['size']} to flip it>")
        times = [len_or_inf(search) / named(models, content, search["target"]) for search in content["searches"]]
        assert (found.needed.targets, found.needed.median_times) == (len(times), np.median(times))
        # By the weights alone, which are two logits too low, it would be no image at all.
        assert support(*models.of(target)).predicted_before < 0


def test_any_other_is_extrapolated_and_says_by_how_much_that_was_off(verified):
    models, _, content = verified
    found = support(models, 17)
    assert (found.base, found.measured, found.verified) == ("extrapolated", None, None)
    weights, bias = models.of(17)
    assert found.predicted_before == pytest.approx(float(weights.sum(dtype=float)) + bias)
    off = [models.weights[:, t].sum() + models.bias[t] - content["base"][str(t)]["mean_margin"] for t in range(6)]
    assert found.extrapolation.targets == 6
    assert found.extrapolation.median_off == pytest.approx(np.median(off), abs=1e-5)
    assert found.extrapolation.median_off == pytest.approx(-TOO_LOW, abs=0.2)
    about = dataclasses.replace(found, predicted_before=1.0)
    assert f"in the median of 6 measured targets was {-np.median(off):.2f} too low" in repr(about)


def test_without_a_verification_it_says_that_nobody_has_measured(verified, tmp_path):
    models, _, _ = verified
    shutil.copytree(models.folder, tmp_path / "elsewhere" / "weights")
    for alone in (Datamodels.load(tmp_path / "elsewhere" / "weights"), dataclasses.replace(models, folder=None)):
        found = support(alone, 3)
        assert (found.base, found.extrapolation) == ("extrapolated", None)
        assert found.predicted_before == support(*alone.of(3)).predicted_before
    # Told where the verdicts are, it takes them all the same.
    assert support(alone, 3, verdicts=verified[1]).base == "measured"
    assert support(alone, 3, verdicts=str(verified[1].parent)).base == "measured"


def test_of_several_verdicts_that_of_most_networks_counts_and_the_smallest_set(verified):
    models, file, content = verified
    target = next(search["target"] for search in content["searches"] if search["verdict"] == "flipped")
    other = {key: value for key, value in content.items() if key != "sha256"}
    more = json.loads(json.dumps(other))
    more["base"][str(target)] |= {"models": 64, "mean_margin": 0.75}
    (search,) = [search for search in more["searches"] if search["target"] == target]
    search |= {"order": search["order"][:1], "weights": search["weights"][:1], "size": 1}
    folder = file.parent.with_name("trial")
    folder.mkdir()
    write_sealed(folder / "verify.json", more)
    found = support(models, target)
    assert (found.predicted_before, found.measured.models, len(found.verified)) == (0.75, 64, 1)
    assert support(models, target, verdicts=file).predicted_before == content["base"][str(target)]["mean_margin"]
    # A relabelled set, and one that repairs, are no removals that flip.
    for how in ({"relabelled": 3}, {"verdict": "repaired"}, {"verdict": "censored", "size": None}):
        before = dict(search)
        search |= how
        write_sealed(folder / "verify.json", more)
        assert support(models, target, verdicts=folder).verified is None
        search |= before
    # Verdicts of another store, or such as were made before models were added, are none of these weights.
    write_sealed(folder / "verify.json", {**more, "store_digest": "another"})
    assert support(models, target).measured.models == 8
    with pytest.raises(InputError, match="another store than the one that the weights are from"):
        support(models, target, verdicts=folder)


def test_a_training_image_is_in_no_set_of_its_own(verified):
    models, _, content = verified
    meta = models.folder.parent / "store" / "meta.json"
    largest = int(np.argmax(models.weights[:, 3]))
    targets = [largest if column == 3 else 0 for column in range(T)]
    write_sealed(meta, {**read_sealed(meta), "provenance": {"train_targets": targets}})
    found = support(models, 3)
    assert largest not in found.indices
    without = np.delete(models.weights[:, 3], largest)
    assert len(found.indices) == fewest(without, content["base"]["3"]["mean_margin"])


def test_where_weights_name_no_image_nothing_is_said_of_how_many_it_took(verified):
    models, _, content = verified
    searched = [search["target"] for search in content["searches"]]
    weights = np.array(models.weights)
    weights[:, searched] = -0.01
    results.write(models.folder, weights, models.bias, models.lam, models.heldout, {}, models.meta)
    found = support(Datamodels.load(models.folder), searched[0])
    assert (len(found.indices), found.reaches, found.needed) == (0, False, None)


def test_nonsense_is_refused_in_a_sentence(verified):
    models, file, content = verified
    with pytest.raises(InputError, match=f"the weights are of targets 0:{T}, 20 is not among them"):
        support(models, T)
    for target in (1.5, True, "3"):
        with pytest.raises(InputError, match="a target is a whole number, not"):
            support(models, target)
    with pytest.raises(InputError, match="give its datamodels and a target"):
        support(*models.of(3), verdicts=file)
    with pytest.raises(InputError, match="nowhere"):
        support(models, 3, verdicts="nowhere")
    content["searches"][0]["order"][0] = N
    write_sealed(file, {key: value for key, value in content.items() if key != "sha256"})
    with pytest.raises(InputError, match=f"none of the {N} that the weights are of"):
        support(models, 3)
    file.write_text(file.read_text().replace("mean_margin", "margin", 1))
    with pytest.raises(InputError, match=r"verify\.json"):
        support(models, 3)
