"""Verification on a small run: what is trained, on what, and how it is judged."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats

from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder
from datamodels.store import Store
from datamodels.training import Trainer
from datamodels.verify import built_in_subject, verify
from datamodels.verify.judge import judge
from datamodels.verify.retrain import retrain
from datamodels.verify.run import plan, removal_rules
from datamodels.verify.subject import Request
from datamodels.worker import train_missing

CPU = torch.device("cpu")


def planted(data, store):
    """Datamodels with weights of one's own choice, as if a regression had made them from the store."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(60, 20)).astype(np.float32)
    bias = 1 - weights.sum(0)  # g(S) = 1 for every target
    meta = {"store_digest": store.digest(), "regress": {}, "targets": [0, 20]}
    return Datamodels(weights, bias, np.ones(20), np.arange(2), {}, meta)


@pytest.fixture
def run(settings):
    """A trained run: its settings, data, and planted weights."""
    chosen = settings()
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    train_missing(chosen, data, CPU)
    return chosen, data, planted(data, read_store(chosen))


def test_the_verdicts_are_of_models_retrained_without_r(run):
    settings, data, models = run
    verify(settings, built_in_subject(settings, data, CPU), models, [3, 11])
    result = json.loads((stage_folder(settings, "verify") / "verify.json").read_text())
    store = Store(stage_folder(settings, "verify") / "store")
    masks, repetitions = store.masks(store.done), store.array("repetition", store.done)
    assert [(r["target"], r["rule"]) for r in result["removals"]] == [(3, "support"), (3, "5"), (11, "support"), (11, "5")]
    assert result["models_used"] == len(store.done)
    for removal in result["removals"]:
        target, r = removal["target"], removal["removed_indices"]
        weights = models.weights[:, target]
        assert sorted(weights[r].tolist(), reverse=True) == pytest.approx(removal["removed_weights"])
        assert min(weights[r]) >= np.delete(weights, r).max()
        if removal["rule"] == "support":
            assert removal["predicted_after"] <= 0 < 1 - weights[r[:-1]].sum()
        for state, missing in (("before", []), ("after", r)):
            rows = [i for i, mask in enumerate(masks) if np.flatnonzero(~mask).tolist() == sorted(missing)]
            assert sorted(repetitions[rows].tolist()) == [0, 1, 2]
            margins = store.margins(store.done[rows])[:, target].astype(float)
            assert removal[state]["mean_margin"] == pytest.approx(margins.mean())
            assert removal[state]["correct"] == pytest.approx((margins > 0).mean())


def test_the_control_removes_other_images_of_the_targets_class_for_each_model(run):
    settings, data, models = run
    removal = plan(settings.verify, built_in_subject(settings, data, CPU), models, 3, "5")
    label, labels = int(data.test.labels[3]), data.train.labels.numpy()
    expected = min(5, int((labels == label).sum()))
    sets = []
    for request in removal.control:
        mask = np.unpackbits(np.frombuffer(request.packed, np.uint8), count=60, bitorder="little")
        removed = np.flatnonzero(mask == 0)
        assert len(removed) == removal.control_size == expected
        assert (labels[removed] == label).all()
        sets.append(tuple(removed))
    assert [request.repetition for request in removal.control] == [0, 1, 2]
    assert removal.control == plan(settings.verify, built_in_subject(settings, data, CPU), models, 3, "5").control


def test_what_was_trained_is_not_trained_again_and_new_targets_add_to_it(run, monkeypatch):
    settings, data, models = run
    verify(settings, built_in_subject(settings, data, CPU), models, [3])
    first = Store(stage_folder(settings, "verify") / "store")
    before = (stage_folder(settings, "verify") / "verify.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "margins", lambda *_: pytest.fail("trained again"))
        verify(settings, built_in_subject(settings, data, CPU), models, [3])
    assert (stage_folder(settings, "verify") / "verify.json").read_bytes() == before
    verify(settings, built_in_subject(settings, data, CPU), models, [4, 3])
    second = Store(stage_folder(settings, "verify") / "store")
    assert len(second.done) > len(first.done)
    assert np.array_equal(second.margins(first.done), first.margins(first.done))


def test_a_retrained_model_follows_from_seed_mask_and_repetition(run):
    settings, data, _ = run
    masks = np.random.default_rng(0).random((3, 60)) < 0.7
    requests = [Request.of(mask, r) for mask in masks for r in range(2)]
    margins = retrain(stage_folder(settings, "other"), settings, built_in_subject(settings, data, CPU), requests)
    trainer = Trainer(data, settings.training, CPU, dtype=torch.float64)
    for k in (0, 3, 5):
        alone = trainer.margins(masks[k // 2 : k // 2 + 1], [requests[k].key(settings.verify.seed)])
        # float32 in a group against float64 alone: the same model, but for rounding that training amplifies
        assert np.corrcoef(alone[0], margins[k])[0, 1] > 0.95
    assert len({request.key(1) for request in requests}) == len(requests)
    assert not np.array_equal(margins[0], margins[1])


def test_other_settings_and_stale_weights_are_refused(run):
    settings, data, models = run
    verify(settings, built_in_subject(settings, data, CPU), models, [3])
    other = dataclasses.replace(settings, verify=dataclasses.replace(settings.verify, seed=9))
    with pytest.raises(InputError, match=r"other settings \(seed: 1 → 9\)"):
        verify(other, built_in_subject(other, data, CPU), models, [3])
    stale = dataclasses.replace(models, meta={**models.meta, "store_digest": "of another store"})
    with pytest.raises(InputError, match="not from the store as it is now"):
        verify(settings, built_in_subject(settings, data, CPU), stale, [3])


def test_removal_rules_are_checked(settings):
    def rules(text):
        return removal_rules(dataclasses.replace(settings().verify, sizes=text), 60)

    assert rules("support, 20,5,20") == ["support", "20", "5"]
    for bad in ("all", "0", "60", "5,", "-3"):
        with pytest.raises(InputError, match=r"verify.sizes takes"):
            rules(bad)


def test_an_outcome_has_students_interval():
    margins = np.random.default_rng(0).normal(0.3, 1, 16)
    outcome = judge(margins)
    low, high = stats.ttest_1samp(margins, 0).confidence_interval(0.95)
    assert (outcome.low, outcome.high) == pytest.approx((low, high))
    assert outcome.correct == (margins > 0).mean()


def test_a_prediction_is_wrong_only_when_the_whole_interval_is():
    assert judge(np.array([-1.0, -1.1, -0.9, -1.0])).wrong
    assert not judge(np.array([-1.0, -3.0, 2.0, 1.0])).wrong
    noise = np.random.default_rng(0).normal(0, 1, (2000, 16))
    # A target whose true mean is 0 is called wrong in one of forty draws: the upper end of a two-sided 95 % interval.
    assert np.mean([judge(row).wrong for row in noise]) == pytest.approx(0.025, abs=0.012)


def test_nothing_is_trained_where_no_set_should_flip_the_target(run):
    settings, data, models = run
    far = dataclasses.replace(models, bias=models.bias + 100)
    chosen = dataclasses.replace(settings, verify=dataclasses.replace(settings.verify, sizes="support"))
    assert "for 1 targets no set is known" in verify(chosen, built_in_subject(chosen, data, CPU), far, [3])
    (removal,) = json.loads((stage_folder(settings, "verify") / "verify.json").read_text())["removals"]
    assert (removal["reaches_threshold"], removal["after"], removal["control"]) == (False, None, None)
    assert removal["before"]["models"] == len(Store(stage_folder(settings, "verify") / "store").done) == 3
