"""Verdicts that are there stay as they are: targets are added, other settings refused, names lie beside each other."""

import csv
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from datamodels.durable import write_arrays
from datamodels.errors import InputError
from datamodels.runs import page_folder, stage_folder, verdicts_folder
from datamodels.seals import write_sealed
from datamodels.settings import parse
from datamodels.store import Store
from datamodels.verify import run as stage
from datamodels.verify import verify_targets
from datamodels.worker import make_prior
from tests.conftest import built_in, flags
from tests.verify.rule import N, Seen, T, by_the_rule, changed, result_of

LISTS = ("searches", "removals", "counterfactuals")
QUICK = {"methods": "datamodel,similarity,relabel", "most_models": 16, "counterfactuals": "3", "subsets": 3, "subset_models": 2}


def written(value):
    return json.dumps(value, indent=1)


def files(folder):
    """SHA-256 of each file in a folder, but for locks and the store's own."""
    found = [path for path in folder.iterdir() if path.is_file() and "lock" not in path.name]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_new_targets_are_added_and_what_is_there_stays_word_for_word(run):
    settings, data, models = run
    chosen = changed(settings, **QUICK)
    trained: list[Seen] = []
    engine = by_the_rule(data, models, trained)
    verify_targets(chosen, engine, models, [3, 7])
    before = result_of(chosen)
    described = {name: dict(np.load(verdicts_folder(chosen) / f"{name}.npz")) for name in ("logits", "similarity")}
    line = verify_targets(chosen, engine, models, [7, 11, 3, 5])
    after = result_of(chosen)
    assert list(after["base"]) == ["3", "7", "11", "5"]
    assert all(written(after["base"][target]) == written(before["base"][target]) for target in before["base"])
    for name in LISTS:
        assert written(after[name][: len(before[name])]) == written(before[name])
        assert {record["target"] for record in after[name][len(before[name]) :]} == {11, 5}
    assert written(after["random_subsets"]) == written(before["random_subsets"])
    assert len(trained) == len(set(trained)) == after["models_used"] > before["models_used"]
    assert after["models_used"] == len(Store(stage_folder(chosen, "verify") / "store").done)
    assert f"4 targets, {len(trained)} models" in line
    kept = {name: dict(np.load(verdicts_folder(chosen) / f"{name}.npz")) for name in ("logits", "similarity")}
    assert kept["similarity"]["targets"].tolist() == [3, 7, 11, 5]
    assert np.array_equal(kept["similarity"]["similarity"][:2], described["similarity"]["similarity"])
    assert np.array_equal(kept["logits"]["logits"], described["logits"]["logits"])
    table = list(csv.DictReader((verdicts_folder(chosen) / "verify.csv").read_text().splitlines()))
    assert {int(row["target"]) for row in table} == {3, 5, 7, 11}


def test_added_targets_have_the_verdicts_that_they_have_alone_or_together(run):
    settings, data, models = run
    chosen = changed(settings, **QUICK)
    for targets in ([3, 7], [11]):
        verify_targets(chosen, by_the_rule(data, models), models, targets)
    together = changed(chosen, name="together")
    verify_targets(together, by_the_rule(data, models), models, [3, 7, 11])
    one, other = result_of(chosen), result_of(together)
    assert one["base"] == other["base"]
    assert one["models_used"] == other["models_used"]
    for name in LISTS:
        key = lambda r: (r["target"], r.get("rule", r.get("method", r.get("kind"))))  # noqa: E731
        assert sorted(one[name], key=key) == sorted(other[name], key=key)


def test_targets_that_are_there_leave_every_file_as_it_is(run):
    settings, data, models = run
    chosen = changed(settings, **QUICK)
    verify_targets(chosen, by_the_rule(data, models), models, [3, 7])
    before = files(verdicts_folder(chosen))
    trained: list[Seen] = []
    again = changed(chosen, random_targets=9)
    verify_targets(again, by_the_rule(data, models, trained), models, [7])
    assert files(verdicts_folder(chosen)) == before
    assert not trained
    for name in ("random_subsets.npz", "verify.csv"):  # what is lost of them comes back
        (verdicts_folder(chosen) / name).unlink()
    verify_targets(chosen, by_the_rule(data, models, trained), models, [7])
    assert files(verdicts_folder(chosen)) == before
    assert not trained


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("verify", "ratio", 2.0),
        ("verify", "methods", "random"),
        ("verify", "models", 4),
        ("verify", "subsets", 5),
        ("regress", "prior", "flat"),
        ("regress", "seed", 4),
    ],
)
def test_other_settings_ask_for_a_name_and_change_nothing(run, section, name, value):
    settings, data, models = run
    chosen = changed(settings, **QUICK)
    of = dataclasses.replace(models, meta={**models.meta, "regress": {"prior": "none", "seed": 0}})
    verify_targets(chosen, by_the_rule(data, models), of, [3])
    before = files(verdicts_folder(chosen))
    now = changed(chosen, **{name: value}) if section == "verify" else chosen
    other = dataclasses.replace(of, meta={**of.meta, "regress": of.meta["regress"] | ({name: value} if now is chosen else {})})
    with pytest.raises(InputError, match=rf"another setting \({section}.{name}: .* → {value}\); give --verify.name"):
        verify_targets(now, by_the_rule(data, models), other, [3, 5])
    assert files(verdicts_folder(chosen)) == before
    named = changed(now, name="second")
    verify_targets(named, by_the_rule(data, models), other, [5])
    assert set(result_of(named)["base"]) == {"5"}
    assert files(verdicts_folder(chosen)) == before


def test_verdicts_of_another_store_ask_for_a_name(run):
    settings, data, models = run
    verify_targets(settings, by_the_rule(data, models), models, [3])
    file = verdicts_folder(settings) / "verify.json"
    told = json.loads(file.read_text())
    write_sealed(file, {key: value for key, value in told.items() if key != "sha256"} | {"store_digest": "of another"})
    before = files(verdicts_folder(settings))
    with pytest.raises(InputError, match=r"made from another store .* give --verify.name"):
        verify_targets(settings, by_the_rule(data, models), models, [5])
    assert files(verdicts_folder(settings)) == before


def test_names_share_their_models(run):
    settings, data, models = run
    trained: list[Seen] = []
    chosen = changed(settings, methods="datamodel", sizes="none")
    verify_targets(chosen, by_the_rule(data, models, trained), models, [3])
    number = len(trained)
    verify_targets(changed(chosen, name="again"), by_the_rule(data, models, trained), models, [3])
    assert len(trained) == number
    assert not (stage_folder(settings, "again") / "store").exists()
    assert result_of(changed(chosen, name="again"))["searches"] == result_of(chosen)["searches"]


@pytest.mark.parametrize("name", ["data", "store", "prior", "regress", "report", "report-x", "..", "a/b", ".x", "A", "-x", ""])
def test_a_name_is_no_path_and_no_folder_of_another_stage(name, tmp_path):
    with pytest.raises(InputError, match=r"verify.name must be a plain name"):
        parse([*flags(tmp_path), f"--verify.name={name}"])


def test_each_name_has_its_page(settings):
    assert page_folder(settings()) == stage_folder(settings(), "report")
    assert verdicts_folder(settings()) == stage_folder(settings(), "verify")
    assert page_folder(settings(verify__name="fine-2")) == stage_folder(settings(), "report-fine-2")


class CrashError(Exception):
    pass


@pytest.mark.parametrize("at", ["write_used", "write_verified", "write_file"])
def test_an_addition_cut_off_while_it_writes_ends_as_one_that_was_not(run, monkeypatch, at):
    settings, data, models = run
    chosen = changed(settings, **QUICK)
    verify_targets(chosen, by_the_rule(data, models), models, [3])

    def crash(*_):
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(stage, at, crash)
        with pytest.raises(CrashError):
            verify_targets(chosen, by_the_rule(data, models), models, [3, 7])
    verify_targets(chosen, by_the_rule(data, models), models, [3, 7])
    whole = changed(chosen, name="whole")
    for targets in ([3], [7]):
        verify_targets(whole, by_the_rule(data, models), models, targets)
    assert {**result_of(chosen), "verify": 0} == {**result_of(whole), "verify": 0}
    tables = [(verdicts_folder(one) / "verify.csv").read_bytes() for one in (chosen, whole)]
    assert tables[0] == tables[1]


def test_descriptions_that_are_damaged_or_of_other_models_are_made_anew(run):
    settings, data, models = run
    chosen = changed(settings, methods="similarity", sizes="none", most_models=8)
    verify_targets(chosen, by_the_rule(data, models), models, [3])
    file = verdicts_folder(chosen) / "similarity.npz"
    whole = dict(np.load(file).items())
    for broken in (
        {**whole, "similarity": whole["similarity"] * np.nan},
        {**whole, "targets": whole["targets"].repeat(2)},
        {**whole, "similarity": whole["similarity"][:, 1:]},
        {**whole, "of": np.array("others")},
        {name: array for name, array in whole.items() if name != "targets"},
    ):
        write_arrays(file, broken)
        (verdicts_folder(chosen) / "verify.json").unlink()
        verify_targets(chosen, by_the_rule(data, models), models, [3])
        made = np.load(file)
        assert all(np.array_equal(made[name], whole[name]) for name in whole)


@pytest.mark.parametrize("changed_file", ["prior", "embedding", "gradients"])
def test_verdicts_of_other_files_are_not_added_to(run, tmp_path, changed_file):
    settings, data, models = run
    embedding, gradients = tmp_path / "embedding.npy", stage_folder(settings, "prior") / "gradients.npy"
    np.save(embedding, np.random.default_rng(3).normal(size=(N + T, 5)))
    method = {"prior": "datamodel", "embedding": "embedding", "gradients": "gradients"}[changed_file]
    chosen = changed(settings, methods=method, sizes="none", embedding=str(embedding), max_size=8)
    if method == "gradients":
        prior = dataclasses.replace(chosen, regress=dataclasses.replace(chosen.regress, prior="gradients"))
        make_prior(prior, built_in(prior, data))
    of = dataclasses.replace(models, meta={**models.meta, "prior_digest": "first"})
    verify_targets(chosen, by_the_rule(data, models), of, [3])
    verify_targets(chosen, by_the_rule(data, models), of, [7])
    before = files(verdicts_folder(chosen))
    if changed_file == "prior":
        of = dataclasses.replace(models, meta={**models.meta, "prior_digest": "second"})
    elif changed_file == "embedding":
        np.save(embedding, np.random.default_rng(4).normal(size=(N + T, 5)))
    else:
        prior = dataclasses.replace(prior, prior=dataclasses.replace(prior.prior, models=2))
        make_prior(prior, built_in(prior, data))
        assert gradients.exists()
    with pytest.raises(InputError, match=f"another setting .digest of.{changed_file}: .*; give --verify.name"):
        verify_targets(chosen, by_the_rule(data, models), of, [11])
    assert files(verdicts_folder(chosen)) == before


def test_models_of_a_verification_that_was_cut_off_before_its_verdicts_are_not_counted(run, monkeypatch):
    settings, data, models = run
    chosen = changed(settings, methods="none", sizes="5")
    verify_targets(chosen, by_the_rule(data, models), models, [3])

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("datamodels.verify.run.write_verified", cut_off)
        with pytest.raises(KeyboardInterrupt):
            verify_targets(chosen, by_the_rule(data, models), models, [7, 11])
    verify_targets(chosen, by_the_rule(data, models), models, [5])
    whole = changed(settings, methods="none", sizes="5", name="whole")
    verify_targets(whole, by_the_rule(data, models), models, [3, 5])
    assert result_of(chosen)["models_used"] == result_of(whole)["models_used"]


def test_the_count_of_models_is_refused_where_its_file_is_gone(run):
    settings, data, models = run
    chosen = changed(settings, methods="none", sizes="none")
    verify_targets(chosen, by_the_rule(data, models), models, [3])
    (verdicts_folder(chosen) / "models_used.npy").unlink()
    with pytest.raises(InputError, match=re.escape("cannot count the models of the verdicts in")):
        verify_targets(chosen, by_the_rule(data, models), models, [5])
