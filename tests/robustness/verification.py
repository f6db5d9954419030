"""Verdicts that are read again, embeddings, the inbox, and functions of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from datamodels import Datamodels, support
from datamodels.runs import read_seconds
from datamodels.store import Store, merge_if_free
from datamodels.store.check import check
from datamodels.subsets import draw_masks, pack
from datamodels.verify.certificate import Certificate
from datamodels.verify.measured import Measured
from datamodels.verify.methods import embedding_named
from datamodels.verify.record import Claims, Verified
from datamodels.verify.typed import form_of
from tests.robustness.case import GONE_ON, Call, Case, main_of
from tests.robustness.damage import (
    ARCHIVES,
    FILES,
    HEADERS,
    VALUES,
    Damage,
    put,
    text_of_json,
)
from tests.robustness.material import N, copied, run_flags, settings_of
from tests.robustness.tables import (
    FUZZ,
    Read,
    all_written,
    damaged,
    random_bytes,
    values,
    verifies,
)

REPORTED = ("run/data", "run/store", "run/regress", "run/verify/verify.json")
"""What a report is made of, and a recheck."""
ADDED_TO = ("run/data", "run/store", "run/regress", "run/prior", "run/verify")
"""What further targets are verified from."""
ON_ALL: dict[str, object] = {
    "models": 2,
    **dict.fromkeys(("mean_margin", "low", "high", "correct", "correct_low", "correct_high"), 0.5),
}
ON_ALL |= {"confidence": None, "label": 1}


def verification_cases() -> Iterator[Case]:
    read: Read = verifies("--recheck", "run/verify/verify.json")
    yield from damaged("recheck", REPORTED, "run/verify/verify.json", {**FILES, **text_of_json()}, read)
    yield from damaged("recheck values", REPORTED, "run/verify/verify.json", values(form_of(Claims), False), read)
    beyond = {
        "an image beyond": put(("searches", 0, "order", 0), 60),
        "an image twice": put(("searches", 0, "order"), [1, 1, 2]),
        "a target beyond": put(("searches", 0, "target"), 20),
        "a size beyond": put(("searches", 0, "size"), 61),
        "a class beyond": put(("searches", 0, "relabelled"), 10),
        "another store": put(("store_digest",), "x"),
    }
    yield from damaged("recheck images", REPORTED, "run/verify/verify.json", beyond, read)

    yield from _certificates()

    def reported(folder: Path) -> Call:
        return main_of("report", *run_flags(folder))

    yield from damaged("report of verify.json", REPORTED, "run/verify/verify.json", {**FILES, **random_bytes(6)}, reported)
    yield from damaged("report of values", REPORTED, "run/verify/verify.json", values(form_of(Verified), False), reported)
    of_report = {
        **beyond,
        "a rule that is a path": put(("removals", 0, "rule"), "../../precious"),
        "a rule of other digits": put(("removals", 0, "rule"), "٣"),
        "a method of its own": put(("searches", 0, "method"), "magic"),
        "a label beyond": put(("removals", 0, "label"), 10),
        "weights for fewer": put(("removals", 0, "removed_weights"), []),
        "half a control": put(("removals", 0, "control"), None),
        "a margin of a target beyond": put(("base", "20"), ON_ALL),
        "a margin of no target": put(("base", "three"), ON_ALL),
        "a target in other digits": put(("base", "٣"), ON_ALL),
        "a removal without a margin before": put(("removals", 0, "target"), 5),
        "a counterfactual of no kind": put(("counterfactuals", 0, "kind"), "middle"),
        "a counterfactual beyond": put(("counterfactuals", 0, "target"), 20),
        "another format": put(("format_version",), 5),
    }
    yield from damaged("report of images", REPORTED, "run/verify/verify.json", of_report, reported)
    yield from _added()
    yield from _supports()
    seconds: Read = lambda folder: lambda: read_seconds(settings_of(folder))  # noqa: E731
    damages = {**FILES, **text_of_json(), **{f"a value {k}": put(("data",), v, seal=False) for k, v in VALUES.items()}}
    yield from damaged("seconds.json", ("run/seconds.json",), "run/seconds.json", damages, seconds, (GONE_ON,))

    def embedded(folder: Path) -> Call:
        def call() -> None:
            labels = SimpleNamespace(train_labels=np.zeros(60), test_labels=np.zeros(20))
            chosen = settings_of(folder, verify__embedding=str(folder / "embedding.npy"), verify__methods="embedding")
            embedding_named(chosen.verify, labels, ["embedding"])

        return call

    yield from damaged("embedding", ("embedding.npy",), "embedding.npy", {**FILES, **all_written(HEADERS)}, embedded)
    yield from _inbox()
    yield from _own()


def _certificates() -> Iterator[Case]:
    """A certificate that others made, by its folder."""
    read: Read = verifies("--recheck", "certificate")
    file, names = "certificate/certificate.json", ("run/data", "certificate")
    alike = ("after", "put_back.in_pairs", "targets.0", "put_back.singly.0.outcome")  # of kinds that are damaged beside them
    kinds = ("left out", " null", " a text", " an object", " huge")
    found = values(form_of(Certificate), False)
    of_form = {name: found[name] for name in found if not name.startswith(alike) and name.endswith(kinds)}
    damages = {**FILES, **text_of_json(), **of_form}
    damages |= {f"groups of {name}": put(("groups", "models_at_once"), value) for name, value in VALUES.items()}
    damages["another program"] = put(("groups", "program"), "x")
    damages["another version"] = put(("format_version",), 2)
    yield from damaged("certificate values", names, file, damages, read)


def _added() -> Iterator[Case]:
    """A target more, where verdicts are."""
    more: Read = verifies("--targets", "5")
    of_all = {
        **FILES,
        **text_of_json(),
        "another setting": put(("verify", "ratio"), 3.0),
        "another format": put(("format_version",), 5),
    }
    nothing_there = ("missing", "a link to nothing")
    verdicts = {name: damage for name, damage in of_all.items() if name not in nothing_there}
    yield from damaged("added to verify.json", ADDED_TO, "run/verify/verify.json", verdicts, more)
    counted = {**FILES, **all_written(HEADERS)}
    yield from damaged("added to models_used.npy", ADDED_TO, "run/verify/models_used.npy", counted, more)


def _supports() -> Iterator[Case]:
    """A support in Python, which takes the margin before from verify.json where there is one."""
    of = ("run/store", "run/regress", "run/verify/verify.json")
    asked: Read = lambda folder: lambda: support(Datamodels.load(folder / "run" / "regress"), 3)  # noqa: E731
    nothing_there = ("missing", "a link to nothing", "a loop of links")
    files = {name: damage for name, damage in {**FILES, **text_of_json()}.items() if name not in nothing_there}
    yield from damaged("support by verify.json", of, "run/verify/verify.json", files, asked)
    values_of = values(form_of(Measured), False)
    yield from damaged("support by verify.json values", of, "run/verify/verify.json", values_of, asked)
    images = {"an image beyond": put(("searches", 0, "order", 0), 60)}
    yield from damaged("support by verify.json images", of, "run/verify/verify.json", images, asked)


def _inbox() -> Iterator[Case]:
    def lay(kind: str, damage: Damage) -> Damage:
        def laid(path: Path) -> None:
            store = path.parent
            for name in ("done", "checksums"):
                marks = np.load(store / f"{name}.npy", mmap_mode="r+")
                marks[[3, 4]] = 0
                marks.flush()
            good, bad = (store / "inbox" / f"000000000{k}-x.{kind}" for k in (3, 4))
            for file, i in ((good, 3), (bad, 4)):
                if kind == "json":
                    file.write_text(json.dumps({str(i): "diverged"}))
                else:
                    margins = Store(store).margins([i])
                    np.savez(file, ids=np.array([i]), masks=pack(draw_masks(3, [i], N, 0.5)), margins=margins)
            damage(bad)

        return laid

    def merged(folder: Path) -> Call:
        return lambda: merge_if_free(folder / "store")

    def others_stand(material: Path, folder: Path) -> None:
        store, whole = Store(folder / "store"), Store(material / "store")
        assert not check(folder / "store"), "the store has bad rows"
        assert 3 in store.done or 3 in store.failures, "the good file was not taken"
        same = np.setdiff1d(store.done, [4])
        assert np.array_equal(store.margins(same), whole.margins(same)), "rows that were done are others now"
        assert not list((folder / "store" / "inbox").glob("[0-9]*")), "the bad file is still there"

    no_file = ("missing", "a loop of links")
    for kind, damages in (("npz", {**FILES, **ARCHIVES, **random_bytes(FUZZ)}), ("json", {**FILES, **text_of_json()})):
        laid = {name: lay(kind, damage) for name, damage in damages.items() if name not in no_file}
        yield from damaged(f"inbox .{kind}", ("store",), "store/meta.json", laid, merged, (GONE_ON,), others_stand)


RESULTS = {
    "complex": "{'margins': np.ones(5) + 1j}",
    "text": "{'margins': np.array(['x'] * 5)}",
    "objects": "{'margins': np.array([None] * 5)}",
    "another shape": "{'margins': np.ones(4)}",
    "two dimensions": "{'margins': np.ones((5, 1))}",
    "ragged": "{'margins': [1, [2, 3], 4, 5, 6]}",
    "nothing": "None",
    "a list": "[1.0] * 5",
    "another name": "{'margin': np.ones(5)}",
    "a name more": "{'margins': np.ones(5), 'logits': np.ones(5)}",
    "a name that is a path": "{'../margins': np.ones(5)}",
    "dates": "{'margins': np.zeros(5, 'M8[s]')}",
    "a generator": "{'margins': (i for i in range(5))}",
}


def _own() -> Iterator[Case]:
    for name, result in RESULTS.items():

        def make(material: Path, folder: Path, result: str = result) -> Call:
            copied(material, folder, "own.yaml", "hostile_own.py")
            module = folder / "hostile_own.py"
            module.write_text(module.read_text().replace("RESULT = {}", f"RESULT = {{'all': {result}}}"))
            sys.path.insert(0, str(folder))
            return main_of("worker", "-C", "own.yaml", "--gpu", "cpu")

        yield Case("own function", name, make)
