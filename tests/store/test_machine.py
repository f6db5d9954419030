"""Any sequence of creating, appending, handing over, merging, growing and crashing keeps what was said to be done."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from datamodels import durable
from datamodels.errors import InputError
from datamodels.store import ArraySpec, Meta, Store, Writer, create, deliver, grow, hand_over
from datamodels.store.check import GIVEN_UP, WHOLE, check
from tests.store.test_crashes import CrashError, Recorder

N, T = 9, 3
IDS = st.lists(st.integers(0, 19), min_size=1, max_size=6, unique=True)


def content(ids, version):
    """Rows of models; a second training of a model, another version, may differ, and must not replace the first."""
    rngs = [np.random.default_rng([i, version]) for i in ids]
    return np.stack([rng.random(N) < 0.5 for rng in rngs]), {
        "margins": np.stack([rng.normal(size=T) for rng in rngs]).astype("f4")
    }


class StoreMachine(RuleBasedStateMachine):
    """The store beside a model of it: which version of a row may be there, and which rows were once seen done."""

    @initialize(m=st.integers(1, 12))
    def create_store(self, m):
        self.base = Path(tempfile.mkdtemp())
        self.folder, self.m = self.base / "store", m
        create(self.folder, Meta(m, N, T, {"margins": ArraySpec("float32", (T,))}, {}))
        self.seen, self.failed, self.offered = {}, {}, {}

    def teardown(self):
        if hasattr(self, "base"):
            shutil.rmtree(self.base)

    def offer(self, ids, version):
        ids = [i for i in ids if i < self.m]
        for i in ids:
            self.offered.setdefault(i, set()).add(version)
        return ids, *content(ids or [0], version)

    def bring(self, function, ids, version):
        ids, masks, arrays = self.offer(ids, version)
        if ids:
            function(self.folder, ids, masks, arrays)

    @rule(ids=IDS, version=st.integers(0, 2))
    def append(self, ids, version):
        self.bring(deliver, ids, version)
        assert set(Store(self.folder).done) >= {i for i in ids if i < self.m and i not in self.failed}

    @rule(ids=IDS, version=st.integers(0, 2))
    def into_the_inbox(self, ids, version):
        self.bring(hand_over, ids, version)

    @rule()
    def merge(self):
        with Writer(self.folder) as writer:
            writer.merge()
        assert not list((self.folder / "inbox").glob("[0-9]*"))

    @rule(i=st.integers(0, 19))
    def give_up(self, i):
        if i < self.m:
            with Writer(self.folder) as writer:
                writer.give_up({i: f"reason {i}"})

    @rule(more=st.integers(0, 4))
    def enlarge(self, more):
        self.m = min(self.m + more, 20)
        grow(self.folder, self.m)

    @rule(fewer=st.integers(1, 4))
    def shrink_is_refused(self, fewer):
        with pytest.raises(InputError, match="cannot shrink"):
            grow(self.folder, self.m - fewer)

    @rule()
    def create_again_is_refused(self):
        with pytest.raises(InputError, match="exists already"):
            create(self.folder, Meta(1, 1, 1, {"margins": ArraySpec("float32", (1,))}, {}))

    @rule(ids=IDS, version=st.integers(0, 2), at=st.integers(0, 40), half=st.booleans(), more=st.integers(0, 3))
    def crash(self, ids, version, at, half, more):
        target = min(self.m + more, 20)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CrashError):
            patch.setattr(durable, "os", Recorder(at, half=half))
            self.bring(deliver, ids, version)
            grow(self.folder, target)
        self.m = Store(self.folder).meta.num_models
        assert self.m <= target

    @invariant()
    def what_was_done_stays_and_is_what_was_offered(self):
        if not hasattr(self, "folder"):
            return
        store = Store(self.folder)
        assert store.meta.num_models == self.m
        masks, margins = store.masks(store.done), store.margins(store.done)
        for k, i in enumerate(store.done.tolist()):
            held = (masks[k].tobytes(), margins[k].tobytes())
            versions = {v: content([i], v) for v in self.offered[i]}
            assert held in {(m[0].tobytes(), a["margins"][0].tobytes()) for m, a in versions.values()}
            assert self.seen.setdefault(i, held) == held
        assert set(self.seen) == set(store.done.tolist())
        assert set(self.failed) <= set(store.failures)
        self.failed = store.failures
        assert {fault.what for fault in check(self.folder)} <= {WHOLE, GIVEN_UP}


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase
