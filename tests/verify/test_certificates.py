"""Certificates: made in one run, confirmed in another that has config and data only; exchanged and edited ones are refused."""

import dataclasses
import functools
import itertools
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student_t

from datamodels.brittleness.judging import judge
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.runs import read_seconds, stage_folder
from datamodels.seals import read_sealed, write_sealed
from datamodels.settings import parse
from datamodels.store import Store
from datamodels.subsets import mask_without, pack
from datamodels.verify import verify_targets
from datamodels.verify.certificate import Refused, judging, read_certificate
from datamodels.verify.certificate_checking import check
from datamodels.verify.certificate_making import Wanted
from datamodels.verify.certificate_making import certify as certified
from datamodels.verify.known import Examples
from datamodels.verify.record import VERDICTS, Probe, SearchRecord
from datamodels.verify.targets import targets_given
from datamodels.worker import engine_of, train_missing
from datamodels.worker.jobs import listed_key
from tests.conftest import flags
from tests.verify.additive import NOISE, Additive, N
from tests.verify.rule import changed

RULE = Additive()
OWN = {
    "worker__main": "tests.verify.additive:Additive",
    "data__train_images": N,
    "data__test_images": 16,
    "store__num_models": 120,
    "store__margin_dtype": "float32",
    "verify__models": 8,
    "verify__most_models": 32,
    "verify__base_models": 16,
    "verify__ratio": 1.0,
    "verify__sizes": "none",
    "verify__methods": "datamodel,relabel",
}
FLIPS = 10
ALONE = 9
"""Which a single image carries."""


def settings_in(folder, **more):
    return parse(flags(folder, **{**OWN, **more}))[0]


def verified(folder, targets, **more):
    settings = settings_in(folder, **more)
    engine = engine_of(settings, None)
    train_missing(settings, engine)
    regress(settings)
    models = Datamodels.load(stage_folder(settings, "regress"))
    verify_targets(settings, engine, models, targets_given(targets, Examples(engine.learner)))
    return settings, engine


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the rule, and certificates of it: of a flip by removal, and by other labels; and of a behaviour."""
    folder = tmp_path_factory.mktemp("one")
    settings, engine = verified(folder / "run", [FLIPS, ALONE, "both: 11, 15"])
    for target, method in (("10", "datamodel"), ("10", "relabel"), ("9", "datamodel"), ("both: 11, 15", "datamodel")):
        name = f"{target.partition(':')[0]}-{method}"
        certified(settings, engine, Wanted(target, method, folder / name, 2 if target == "both: 11, 15" else 32))
    return folder


def checked(path, folder, **more):
    settings = settings_in(folder, **more)
    return check(settings, functools.partial(engine_of, gpu=None), path)


def read_seconds_of(folder):
    """The stages whose time is counted in a run."""
    return set(json.loads((folder / "seconds.json").read_text()))


def edited(made, tmp_path, change, name=f"{FLIPS}-datamodel"):
    """A certificate changed by a function, and sealed anew."""
    told = read_sealed(made / name / "certificate.json")
    change(told)
    write_sealed(tmp_path / "certificate.json", told)
    return tmp_path / "certificate.json"


@pytest.mark.parametrize("name", ["10-datamodel", "10-relabel", "9-datamodel", "both-datamodel"])
def test_a_certificate_of_one_run_is_confirmed_in_another_that_has_nothing_of_it(made, tmp_path, name):
    line = checked(made / name, tmp_path / "other")
    assert line.startswith("confirmed: target ")
    assert "have the margins that it tells of (to 0.001)" in line
    assert [path.name for path in (tmp_path / "other").iterdir() if path.is_dir()] == ["checked"]
    # By its file as well, and without training anything twice.
    (store,) = (tmp_path / "other" / "checked").glob("*/verify/store")
    assert read_seconds_of(store.parents[1]) == {"recheck"}
    before = Store(store).meta.num_models
    assert checked(made / name / "certificate.json", tmp_path / "other") == line
    assert Store(store).meta.num_models == before


def test_it_says_what_the_rule_and_scipy_say(made):
    told = read_sealed(made / "10-datamodel" / "certificate.json")
    (search,) = [
        s for s in read_sealed(made / "run/verify/verify.json")["searches"] if (s["target"], s["method"]) == (10, "datamodel")
    ]
    removed = [image["index"] for image in told["images"]]
    assert removed == search["order"][: search["size"]]
    assert [image["label"] for image in told["images"]] == RULE.train_labels[removed].tolist()
    for kind, images in (("before", []), ("after", removed)):
        mask = mask_without(N, images)
        margins = np.array([network["margin"] for network in told[kind]["networks"]])
        keys = [network["key"] for network in told[kind]["networks"]]
        noise = np.array([np.random.default_rng(key).normal(0, NOISE, len(RULE.test_labels))[10] for key in keys])
        np.testing.assert_allclose(margins, RULE.mean(mask)[10] + noise, atol=1e-6)
        level = 1 - 0.05 / told[kind]["looks"]
        low, high = student_t.interval(level, len(margins) - 1, margins.mean(), margins.std(ddof=1) / np.sqrt(len(margins)))
        assert (told[kind]["low"], told[kind]["high"]) == pytest.approx((low, high))
    assert (told["before"]["verdict"], told["after"]["verdict"]) == ("held", "flipped")
    assert told["claim"] == "flipped"
    page = (made / "10-datamodel" / "README.md").read_text()
    assert f"flipped by {len(removed)} training images" in page
    right = [sum(each["margin"] > 0 for each in told[kind]["networks"]) for kind in ("before", "after")]
    numbers = [len(told[kind]["networks"]) for kind in ("before", "after")]
    assert f"{right[0]} of {numbers[0]} of them before, and in {right[1]} of {numbers[1]} after." in page
    assert "no script for PyTorch alone" in page
    assert not (made / "10-datamodel" / "retrain.py").exists()


@pytest.mark.parametrize("name", ["10-datamodel", "10-relabel", "9-datamodel", "both-datamodel"])
def test_images_put_back_are_judged_as_the_rule_has_it(made, name):
    told = read_sealed(made / name / "certificate.json")
    columns, removed = [image["index"] for image in told["targets"]], [image["index"] for image in told["images"]]
    most = 2 if name == "both-datamodel" else 32
    put_back = told["put_back"]
    tried = [tuple(each["images"]) for each in put_back["singly"]]
    assert len(tried) == len(set(tried)) == min(most, len(removed))
    assert {image for (image,) in tried} <= set(removed)
    pairs = [tuple(each["images"]) for each in put_back["in_pairs"]]
    assert set(pairs) <= set(itertools.combinations(removed, 2))
    assert len(pairs) == min(8, most, put_back["of_pairs"] if len(removed) > 2 else 0)
    for each in [*put_back["singly"], *put_back["in_pairs"]]:
        left = [image for image in removed if image not in each["images"]]
        mask, labels = mask_without(N, left), None
        if told["relabelled"] is not None:
            labels, mask = np.where(mask, RULE.train_labels, told["relabelled"]), np.ones(N, bool)
        truth = RULE.mean(mask, labels)[columns].mean()
        assert np.mean(each["margins"]) == pytest.approx(truth, abs=5 * NOISE / np.sqrt(len(each["margins"])))
        if abs(truth) > 0.1:
            assert each["does"] == ("not" if truth > 0 else "still")
    found = read_certificate(made / name)
    assert found.put_back is not None
    assert found.put_back.minimal == (len(tried) == len(removed) and all(e["does"] == "not" for e in put_back["singly"]))


def exchanged(told):
    """Another image of S of the same label in the place of one of R, all else as it was."""
    index = next(
        i for i in range(N) if i not in [image["index"] for image in told["images"]] and i % 4 == told["images"][0]["label"]
    )
    told["images"][0]["index"] = index


def rekeyed(told):
    """An exchanged image, with keys that fit: only training tells."""
    exchanged(told)
    packed = pack(mask_without(N, [image["index"] for image in told["images"]])).tobytes()
    for network in told["after"]["networks"]:
        network["key"] = list(listed_key(told["seed"], packed, network["repetition"], -1))
    told["put_back"] = None


def nudged(told):
    """One margin made lower, with an interval that fits."""
    told["after"]["networks"][1]["margin"] -= 0.05
    outcome = judge(np.array([n["margin"] for n in told["after"]["networks"]]))
    told["after"] |= dataclasses.asdict(outcome)


def put(*place, value):
    def change(told):
        for key in place[:-1]:
            told = told[key]
        told[place[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (exchanged, "keys of its networks on S∖R are not those of this set R"),
        (rekeyed, "trained again here it has"),
        (nudged, "trained again here it has"),
        (put("after", "networks", 0, "margin", value=-9.0), "is not that of their margins"),
        (put("after", "mean_margin", value=-9.0), "is not that of their margins"),
        (put("after", "verdict", value="held"), "is not that of their margins"),
        (put("claim", value="repaired"), "claims 'repaired'"),
        (put("before", "networks", 0, "repetition", value=1), "one network on S twice"),
        (put("seed", value=7), "keys of its networks on S are not"),
        (put("images", 0, "label", value=3), "is another here than the certificate tells of (label 3 there"),
        (put("images", 0, "index", value=N), "R is not made of different indices"),
        (put("images", 1, "digest", value="0" * 64), "is another here than the certificate tells of (digest"),
        (put("targets", 0, "index", value=8), "target 8 is another here|digest|label|it says that its target is"),
        (put("targets", 0, "index", value=99), "its target is not made of different indices"),
        (put("train_digest", value="0" * 64), "the training set here is another"),
        (put("targets_digest", value="0" * 64), "the set of targets here is another"),
        (put("num_train", value=41), "it is of 41 training images"),
        (put("recipe", "learner", value={"learner": "other"}), "trained otherwise than the settings here say (learner.learner"),
        (put("put_back", "singly", 0, "does", value="still?"), "put back is not what the margins there say"),
        (put("put_back", "singly", 0, "images", value=[N - 1]), "put-back image that is none of R"),
        (put("put_back", "of_images", value=1), "as many images to be put back"),
        (put("relabelled", value=4), "relabels images as class 4"),
        (put("name", value="3"), "it says that its target is 10, 3, and its margins are of 10, 10"),
        (put("target", value=3), "it says that its target is 3, 10, and its margins are of 10, 10"),
        (put("label", value=-1), "it says that its target is of class -1 of"),
        (put("classes", value=1000), "of 1000, and that is of"),
    ],
)
def test_what_is_not_so_is_refused_with_the_reason(made, tmp_path, change, reason):
    path = edited(made, tmp_path, change)
    with pytest.raises(Refused) as e:
        checked(path, tmp_path / "other")
    assert any(part in str(e.value) for part in reason.split("|")), e.value


def test_a_broken_seal_is_refused_before_anything_is_looked_at(made, tmp_path):
    text = (made / "10-datamodel" / "certificate.json").read_text()
    (tmp_path / "certificate.json").write_text(text.replace('"flipped"', '"repaired"', 1))
    with pytest.raises(Refused, match="was changed after it was sealed"):
        checked(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def on_another_machine(told):
    told["machine"]["processor"] = "an abacus"


def test_on_another_kind_of_machine_networks_are_judged_and_not_compared(made, tmp_path):
    def small(told):
        on_another_machine(told)
        nudged(told)

    line = checked(edited(made, tmp_path, small), tmp_path / "other")
    assert "are judged as it says" in line
    assert "an abacus" in line

    def lying(told):
        on_another_machine(told)
        for network in told["after"]["networks"]:
            network["margin"] += 4
        told["claim"] = "repaired"
        told["after"] |= dataclasses.asdict(judge(np.array([n["margin"] for n in told["after"]["networks"]])))
        told["after"]["verdict"], told["after"]["looks"] = "held", 1
        for network in told["before"]["networks"]:
            network["margin"] -= 4
        told["before"] |= dataclasses.asdict(judge(np.array([n["margin"] for n in told["before"]["networks"]])))
        told["before"]["verdict"], told["put_back"] = "flipped", None

    with pytest.raises(Refused, match=r"networks on S, trained again here, are judged held, not flipped"):
        checked(edited(made, tmp_path, lying), tmp_path / "third")


def test_fresh_networks_must_bear_the_claim_out(made, tmp_path, monkeypatch):
    """A set that only its own networks call flipped, as where the best of many was chosen."""
    monkeypatch.setattr(Additive, "train", fresh_are_right(Additive.train))
    with pytest.raises(Refused, match=r"\d+ fresh networks without R are judged held"):
        checked(made / "10-datamodel", tmp_path / "other")


def test_fresh_networks_must_have_the_target_on_s_as_those_of_the_certificate(made, tmp_path, monkeypatch):
    """A target that networks on S have wrong, but for those few that the certificate tells of."""
    monkeypatch.setattr(Additive, "train", fresh_on_all_are_wrong(Additive.train))
    with pytest.raises(Refused, match=r"\d+ fresh networks on S are judged flipped"):
        checked(made / "10-datamodel", tmp_path / "other")


def test_it_is_said_that_images_put_back_were_not_trained_again(made, tmp_path):
    assert "what it says of images put back was not trained again" in checked(made / "10-datamodel", tmp_path / "other")


def fresh_on_all_are_wrong(train):
    def other(self, models):
        found = train(self, models)
        for k, model in enumerate(models):
            if model.key[3] >= 10**6 and model.mask.all():
                found.arrays["margins"][k] -= 99
        return found

    return other


def fresh_are_right(train):
    def other(self, models):
        found = train(self, models)
        for k, model in enumerate(models):
            if model.key[3] >= 10**6:
                found.arrays["margins"][k] += 9
        return found

    return other


class CrashError(KeyboardInterrupt):
    pass


def test_what_was_cut_off_goes_on_and_ends_the_same(made, tmp_path, monkeypatch):
    settings, engine = verified(tmp_path / "run", [FLIPS], verify__methods="datamodel")
    before = read_seconds(settings)
    train, trained = Additive.train, list[tuple[int, ...]]()

    def counted(self, models):
        if len(trained) in (16, 40):
            trained.append(())
            raise CrashError
        trained.extend(model.key for model in models)
        return train(self, models)

    monkeypatch.setattr(Additive, "train", counted)
    wanted = Wanted(str(FLIPS), out=tmp_path / "made")
    crashes = 0
    while not (tmp_path / "made").exists():
        with suppress(CrashError):
            crashes += 1
            certified(settings, engine, wanted)
    keys = [key for key in trained if key]
    assert crashes >= 2
    assert len(keys) == len(set(keys))
    one, other = (read_sealed(folder / "certificate.json") for folder in (tmp_path / "made", made / "10-datamodel"))
    assert {**one, "made": ""} == {**other, "made": ""}
    after = read_seconds(settings)
    assert after.pop("certify") > 0  # which took none of the verification's time
    assert after == before


@pytest.mark.parametrize(
    ("target", "more", "told"),
    [
        ("12", {}, "no search for target 12 by the method datamodel"),
        ("9", {"method": "trak"}, "no search for target 9 by the method trak; there is one by datamodel, relabel"),
        ("9,10", {}, "--certify takes one target"),
        ("other: 9, 10", {}, "no verdict on other"),
        ("99", {}, "out of range"),
        ("9", {"put_back": -1}, "--putback takes a number of images from 0 on"),
        ("9", {"with_data": True}, "--with-data is for the built-in training"),
        ("9", {"out": Path("9-datamodel")}, "is there already; a certificate is never written over something"),
    ],
)
def test_what_cannot_be_certified_is_a_sentence(made, target, more, told):
    settings = settings_in(made / "run")
    if "out" in more:
        more = {"out": made / more["out"]}
    with pytest.raises(InputError, match=told):
        certified(settings, engine_of(settings, None), Wanted(target, **more))


def test_verdicts_of_another_seed_or_store_and_sets_that_were_not_found_are_none_to_certify(made, tmp_path):
    settings = settings_in(made / "run")
    engine = engine_of(settings, None)
    with pytest.raises(InputError, match=r"made with verify.seed 1, not 5"):
        certified(changed(settings, seed=5), engine, Wanted("9"))
    with pytest.raises(InputError, match="nothing to certify before"):
        certified(changed(settings, name="nothing"), engine, Wanted("9"))
    told = read_sealed(made / "run/verify/verify.json")
    for name, change in (("other", {"store_digest": "x"}), ("censored", {})):
        (made / "run" / name).mkdir()
        searches = (
            [{**s, "size": None, "verdict": "censored"} for s in told["searches"]] if name == "censored" else told["searches"]
        )
        write_sealed(made / "run" / name / VERDICTS, {**told, "searches": searches, **change})
    with pytest.raises(InputError, match="another store than that of this run"):
        certified(changed(settings, name="other"), engine, Wanted("9"))
    with pytest.raises(InputError, match="nothing to certify"):
        certified(changed(settings, name="censored"), engine, Wanted("9"))


def test_a_certificate_names_the_rival_by_whose_order_its_set_is(made, tmp_path):
    told = read_sealed(made / "run/verify/verify.json")
    (made / "run" / "rival").mkdir()
    searches = [{**s, "along": "similarity"} if s["method"] == "datamodel" else s for s in told["searches"]]
    write_sealed(made / "run" / "rival" / VERDICTS, {**told, "searches": searches})
    settings = settings_in(made / "run", verify__name="rival")
    certified(settings, engine_of(settings, None), Wanted(str(ALONE), out=tmp_path / "of-a-rival"))
    assert read_sealed(tmp_path / "of-a-rival" / "certificate.json")["method"] == "similarity"
    pages = [file.read_text(encoding="utf-8") for file in (tmp_path / "of-a-rival").glob("*.md")]
    assert any("R, by the order of the method similarity;" in page for page in pages)
    assert "confirmed" in checked(tmp_path / "of-a-rival", tmp_path / "elsewhere")


def test_networks_that_do_not_bear_the_claim_out_make_no_certificate(made, tmp_path):
    told = read_sealed(made / "run/verify/verify.json")
    (made / "run" / "lying").mkdir()
    write_sealed(made / "run" / "lying" / VERDICTS, {**told, "searches": [{**s, "size": 1} for s in told["searches"]]})
    settings = settings_in(made / "run", verify__name="lying")
    with pytest.raises((Refused, InputError), match=r"trained once more by themselves, are judged held|no probe"):
        certified(settings, engine_of(settings, None), Wanted("10", out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_networks_that_confirmed_a_set_are_those_that_judge_it_and_more():
    outcome = judge(np.array([-1.0, -1.2, -0.8]))
    for fresh, most, number in ((4, 16, 16), (16, 16, 16), (24, 16, 24)):
        probe = Probe(2, 0.0, 3, "flipped", outcome, 1.0, fresh)
        search = SearchRecord(1, 1, "datamodel", None, "flipped", 2, 2, (3, 4), (0.1, 0.1), 1.0, 16, (probe,))
        assert judging(search, most) == range(500_000, 500_000 + number)
