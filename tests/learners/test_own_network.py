"""`training.network: module:Class` from the settings to the page: one version of the class a run, in one process or several."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from datamodels.data import load, prepare
from datamodels.errors import InputError
from datamodels.learners import Model
from datamodels.learners.recipe import Recipe
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.runs import read_store, stage_folder
from datamodels.store.check import check
from datamodels.verify import verify_targets
from datamodels.worker import engine_of, train_missing

PLAIN = "tests.training.own_networks:Random"
NET = """
import torch
from torch import nn

SCALE = 1.0


class Net(nn.Module):
    def __init__(self, classes, shape):
        super().__init__()
        self.linear = nn.Linear(shape[1] * shape[2], classes)

    def forward(self, x):
        return SCALE * self.linear(x.flatten(1))
"""


@pytest.fixture
def one_s_own(settings, tmp_path, monkeypatch):
    """Settings of a run with a network in a file of its own, `name`.py."""

    def made(name, text=NET, **more):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return settings(training__network=f"{name}:Net", **more)

    return made


@pytest.mark.parametrize("prior", ["gradients", "similarity"])
def test_the_whole_road_of_a_network_of_ones_own(settings, prior):
    chosen = settings(
        training__network=PLAIN,
        training__peak_lr=0.1,
        regress__prior=prior,
        store__num_models=60,
        groups__models_at_once=15,
        verify__methods="datamodel,relabel,similarity,gradients",
    )
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    engine = engine_of(chosen, "cpu", data)
    assert "60 of 60 models are done" in train_missing(chosen, engine)
    meta = read_store(chosen).meta.provenance
    assert meta["training"]["network"] == PLAIN
    assert list(meta["sources"]) == ["tests/training/own_networks.py"]
    regress(chosen)
    verify_targets(chosen, engine, Datamodels.load(stage_folder(chosen, "regress")), [3, 8])
    verdicts = json.loads((stage_folder(chosen, "verify") / "verify.json").read_text())
    assert {removal["target"] for removal in verdicts["removals"]} == {3, 8}
    assert report(chosen, engine.learner)


def test_the_readmes_network_is_trained_many_at_once(one_s_own, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n# mynet.py\n(.*?)```", text, re.DOTALL)
    chosen = one_s_own("net_of_the_readme", example.replace("MyNet", "Net"))
    prepare(chosen, use_ffcv=False)
    assert f"{chosen.store.num_models} of {chosen.store.num_models} models are done" in train_missing(
        chosen, engine_of(chosen, "cpu", load(chosen))
    )
    assert "one after another" not in capsys.readouterr().out


def test_two_processes_bring_the_rows_of_one(settings, tmp_path):
    stores = []
    for name, gpu in (("one", "cpu"), ("two", "cpu,cpu")):
        chosen = settings(run__dir=str(tmp_path / name), training__network=PLAIN, store__num_models=12)
        prepare(chosen, use_ffcv=False)
        with engine_of(chosen, gpu, load(chosen)) as engine:
            assert "12 of 12" in train_missing(chosen, engine)
        stores.append(read_store(chosen))
        assert check(stores[-1].folder) == []
    assert stores[0].digest() == stores[1].digest()


def test_a_changed_network_is_refused_by_its_file_and_goes_on_when_trusted(one_s_own, monkeypatch):
    chosen, more = one_s_own("net_in_two"), one_s_own("net_in_two", store__num_models=12)
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    train_missing(chosen, engine_of(chosen, "cpu", data))
    # As another process would find them, which imports them anew.
    monkeypatch.setattr("datamodels.worker.decided.imported_sources", lambda name: {f"{name}.py": "another"})
    with pytest.raises(InputError, match=r"net_in_two.py has changed since .* was made with it; give --worker.trust_changed"):
        train_missing(more, engine_of(more, "cpu", data))
    trusted = one_s_own("net_in_two", store__num_models=12, worker__trust_changed_code=True)
    assert "12 of 12" in train_missing(trusted, engine_of(trusted, "cpu", data))


def test_a_process_that_would_import_another_version_refuses(one_s_own):
    chosen = one_s_own("net_of_one_version")
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    Recipe(chosen, data, "cpu")
    with pytest.raises(InputError, match=r"net_of_one_version.py has changed since the work was made with it"):
        Recipe(chosen, data, "cpu", sources={"net_of_one_version.py": "another"})


def test_a_run_is_of_one_network(one_s_own, settings):
    first, other = one_s_own("net_a"), one_s_own("net_b")
    prepare(first, use_ffcv=False)
    data = load(first)
    train_missing(first, engine_of(first, "cpu", data))
    for wanted in (other, settings()):
        with pytest.raises(InputError, match=r"training"):
            train_missing(wanted, engine_of(wanted, "cpu", data))


def test_a_network_that_is_not_there_makes_no_store(settings):
    chosen = settings(training__network="no_such_module_anywhere:Net")
    prepare(chosen, use_ffcv=False)
    with pytest.raises(InputError, match="there is no module no_such_module_anywhere here"):
        train_missing(chosen, engine_of(chosen, "cpu", load(chosen)))
    with pytest.raises(InputError):
        read_store(chosen)


def test_a_network_that_gives_other_logits_makes_no_store_also_where_groups_are_given(settings):
    chosen = settings(training__network="tests.training.own_networks:too_many_logits", groups__models_at_once=4)
    prepare(chosen, use_ffcv=False)
    with pytest.raises(InputError, match="gives logits of shape"):
        train_missing(chosen, engine_of(chosen, "cpu", load(chosen)))
    assert not stage_folder(chosen, "store").exists()


def test_a_run_of_the_default_network_names_neither_network_nor_files(settings):
    chosen = settings()
    prepare(chosen, use_ffcv=False)
    train_missing(chosen, engine_of(chosen, "cpu", load(chosen)))
    provenance = read_store(chosen).meta.provenance
    assert "network" not in provenance["training"]
    assert "sources" not in provenance


def test_features_are_similar_to_themselves(one_s_own):
    chosen = one_s_own("net_of_features")
    prepare(chosen, use_ffcv=False)
    learner = Recipe(chosen, load(chosen), "cpu")
    train_missing(chosen, engine_of(chosen, "cpu", load(chosen)))
    found = learner.features([Model((0, 5), np.ones(60, bool))])
    assert found["features_train"].shape == (1, 60, 64)
    np.testing.assert_allclose(np.linalg.norm(found["features_train"][0], axis=1), 1, rtol=1e-5)
