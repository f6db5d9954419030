"""A trained run with planted weights, shared by the tests of verification."""

import pytest

from datamodels.data import load, prepare
from datamodels.runs import read_store
from datamodels.verify import methods
from tests.conftest import trained
from tests.verify.rule import planted


@pytest.fixture
def run(settings, monkeypatch):
    """A trained run: its settings, data, and planted weights, which are taken as they are."""
    monkeypatch.setattr(methods, "shrunk_weights", lambda store, targets, weights, group, apart: weights.astype(float))
    looks = {"verify__models": 2, "verify__most_models": 24, "verify__base_models": 32}
    search = {
        "verify__methods": "datamodel,relabel,random,similarity",
        "verify__candidates": "all",
        "verify__ratio": 1.25,
        "verify__sizes": 5,
    }
    chosen = settings(**looks, **search)
    prepare(chosen, use_ffcv=False)
    data = load(chosen)
    trained(chosen, data)
    return chosen, data, planted(read_store(chosen))
