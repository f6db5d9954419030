"""Do the sets that repair wrong predictions name the images whose labels are wrong?

Some labels of S, drawn by a seed, are changed to another class; models, weights and verification are the run's own, with
`verify.goal` repair, on test targets that networks trained on all of S have wrong beyond doubt. Counted is how many of the
images in the sets are wrongly labelled ones, beside their share in S, which is what sets of random images would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodels.bench.record import Record, describe, header
from datamodels.brittleness.judging import FLIPPED
from datamodels.data import load, prepare
from datamodels.data.raw import RawData
from datamodels.data.sources import read_source
from datamodels.errors import InputError
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.runs import stage_folder, verdicts_folder
from datamodels.settings import REPAIR, Settings
from datamodels.subsets import Array, IndexArray
from datamodels.training import device_named
from datamodels.verify import verify_targets
from datamodels.verify.record import VERDICTS, SearchRecord, Verified, read_verified
from datamodels.worker import Engine, engine_of, train_missing

SHARE, MOST_TARGETS = 0.05, 60
DRAWS = 10_000
"""Of the bootstrap over targets."""


def bench_repair(
    settings: Settings, share: float = SHARE, seed: int = 0, gpu: str | None = None, targets: int = MOST_TARGETS
) -> tuple[Record, str]:
    """The share of wrongly labelled images among those that repair, of at most so many targets, as a record and as a table.

    The run lies in a folder of its own, named after share and seed, and goes on where it was. Raises InputError for a share
    that leaves no wrong label, or no right one, and where no target is wrong beyond doubt.
    """
    if targets < 1:
        raise InputError(f"--n is how many targets are repaired at most, 1 or more, not {targets}")
    settings, raw = _of_its_own(settings, share, seed), read_source(settings.data)
    changed, wrong = with_wrong_labels(raw, share, seed)
    print(prepare(settings, raw=changed), flush=True)
    data = load(settings)
    if not np.array_equal(data.train.labels.numpy(), changed.train.labels):
        raise InputError(f"{stage_folder(settings, 'data')} has other labels than those drawn; delete it, or give another seed")
    with engine_of(settings, gpu, data) as engine:
        print(train_missing(settings, engine), flush=True)
        print(regress(settings, gpu), flush=True)
        models, t = Datamodels.load(stage_folder(settings, "regress")), len(data.test.labels)
        on_all = _verified(settings, engine, models, range(t), methods="none", name="on-all")
        mistaken = [target for target, base in on_all.base.items() if base.outcome.verdict == FLIPPED]
        if not mistaken:
            raise InputError(f"of {t} test images networks have none wrong beyond doubt; give more data.test_images")
        drawn = np.random.default_rng(seed).permutation(mistaken)[:targets].tolist()
        found = _verified(settings, engine, models, sorted(drawn))
    n, labels = len(raw.train.labels), changed.train.labels
    record = {
        **header("repair", settings, data, device_named(gpu)),
        "share": share,
        "seed": seed,
        "wrong_labels": [
            {"image": int(i), "was": int(raw.train.labels[i]), "is": int(labels[i])} for i in sorted(wrong.tolist())
        ],
        "test_targets": t,
        "wrong_beyond_doubt": len(mistaken),
        "targets": len(drawn),
        "rows": [row_of(method, found.searches, wrong, labels) for method in dict.fromkeys(s.method for s in found.searches)],
    }
    about = (
        f"{len(wrong)} of {n} labels wrong ({len(wrong) / n:.1%}); of {t} test targets {len(mistaken)} wrong beyond doubt, "
        f"{len(drawn)} of them asked about"
    )
    return record, "\n".join([describe(record), about, *map(_told, record["rows"])])


def with_wrong_labels(raw: RawData, share: float, seed: int) -> tuple[RawData, IndexArray]:
    """The data with a share of the labels of S changed to another class, each class alike, and which images these are.

    Raises InputError for a share of which nothing, or everything, is wrong.
    """
    labels, rng = raw.train.labels.copy(), np.random.default_rng(seed)
    number = round(share * len(labels))
    if not 0 < number < len(labels):
        raise InputError(f"--share {share} of {len(labels)} labels is {number}; some must be wrong, and some right")
    wrong = rng.choice(len(labels), number, replace=False)
    classes = len(raw.class_names)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, number)) % classes
    return raw._replace(train=raw.train._replace(labels=labels)), wrong.astype(np.int64)


def _of_its_own(settings: Settings, share: float, seed: int) -> Settings:
    """The settings of a run beside the one that is given, of nothing but searches, among all images: what makes a prediction
    wrong need not be of the class that it is taken for.
    """
    run = dataclasses.replace(settings.run, dir=f"{settings.run.dir}-wrong-{share:g}-{seed}")
    searches = dataclasses.replace(settings.verify, goal=REPAIR, candidates="all")
    verify = dataclasses.replace(searches, sizes="none", counterfactuals="none", subsets=0)
    return dataclasses.replace(settings, run=run, verify=verify)


def _verified(settings: Settings, engine: Engine, models: Datamodels, targets: Sequence[int], **changed: Any) -> Verified:
    settings = dataclasses.replace(settings, verify=dataclasses.replace(settings.verify, **changed))
    print(verify_targets(settings, engine, models, targets), flush=True)
    learner = engine.learner
    n, t, classes = len(learner.train_labels), len(learner.test_labels), int(learner.train_labels.max()) + 1
    found = read_verified(verdicts_folder(settings) / VERDICTS, n, t, classes)
    return dataclasses.replace(found, searches=tuple(s for s in found.searches if s.target in set(targets)))


def row_of(method: str, found: Sequence[SearchRecord], wrong: IndexArray, labels: IndexArray) -> Record:
    """One method's sets: how many of their images are wrongly labelled, beside the share of those in S."""
    searches = [search for search in found if search.method == method]
    sets = [np.array(search.order[: search.size]) for search in searches if search.size is not None]
    counts = np.array([(np.isin(images, wrong).sum(), len(images)) for images in sets], np.int64).reshape(-1, 2)
    chance = len(wrong) / len(labels)
    named = np.unique(np.concatenate([*sets, np.zeros(0, np.int64)]))
    hits, images = counts.sum(0).tolist()
    share = hits / images if images else 0.0
    return {
        "method": method,
        "targets": len(searches),
        "repaired": len(sets),
        "images": images,
        "wrongly_labelled": hits,
        "share": share,
        "chance": chance,
        "ratio": share / chance,
        "ratio_interval": [end / chance for end in _interval(counts)] if len(sets) > 1 else None,
        "sets_with_one": int((counts[:, 0] > 0).sum()),
        "different_images": len(named),
        "different_wrongly_labelled": int(np.isin(named, wrong).sum()),
        "median_size": float(np.median(counts[:, 1])) if len(sets) else None,
        "breaks": _mean([search.breaks for search in searches if search.size is not None]),
        "repairs": _mean([search.repairs for search in searches if search.size is not None]),
        "verdicts": [_of_set(search, wrong) for search in searches],
    }


def _of_set(search: SearchRecord, wrong: IndexArray) -> Record:
    images = search.order[: search.size] if search.size is not None else ()
    about = {"target": search.target, "label": search.label, "verdict": search.verdict, "images": list(images)}
    return {**about, "wrongly_labelled": [i for i in images if i in set(wrong.tolist())]}


def _mean(turned: Sequence[tuple[int, ...] | None]) -> float | None:
    """The mean number of other predictions that a set turns."""
    return float(np.mean([len(targets or ()) for targets in turned])) if turned else None


def _interval(counts: Array) -> tuple[float, float]:
    """The 95 % interval of a share, by the bootstrap over targets: sets have images in common, and are not of one size."""
    rng = np.random.default_rng(0)
    sums = counts[rng.integers(0, len(counts), (DRAWS, len(counts)))].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return float(low), float(high)


def _told(row: Record) -> str:
    interval = row["ratio_interval"]
    within = f" (95 % interval {interval[0]:.1f} to {interval[1]:.1f}, bootstrap over targets)" if interval else ""
    return (
        f"{row['method']}: {row['repaired']} of {row['targets']} targets repaired; {row['wrongly_labelled']} of the "
        f"{row['images']} images in their sets wrongly labelled, {row['share']:.1%} against {row['chance']:.1%} in S: "
        f"{row['ratio']:.1f} times as often as chance{within}; "
        f"{row['different_wrongly_labelled']} of {row['different_images']} different images"
    )
