"""The page of a run of CIFAR-10's size, made up: how long it takes to make, how large it is, how soon it can be seen."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from scipy.sparse import csr_matrix

from datamodels import __version__
from datamodels.bench.chromium import CHROMIUM, chromium
from datamodels.bench.record import Record, describe
from datamodels.brittleness import Outcome
from datamodels.durable import write_file
from datamodels.errors import InputError
from datamodels.machine import describe_machine
from datamodels.regress.results import provenance, write
from datamodels.report import report
from datamodels.runs import deciding_settings, page_folder, stage_folder, verdicts_folder
from datamodels.settings import RunSettings, Settings
from datamodels.store import ArraySpec, Meta, Store, create, deliver
from datamodels.subsets import Array, IndexArray, draw_masks
from datamodels.verify.record import FORMAT_VERSION, OnAll, Probe, SearchRecord, Verified, write_verified

N, T, CLASSES, MODELS = 50_000, 10_000, 10, 32
SIDE = 32
NONZEROS = 200
VERIFIED = 300
OPENED = 5


class Made:
    """A learner whose examples are made up: pictures of smooth blots with some noise, of ten classes."""

    name, models_at_once = "made up", 1
    class_names = tuple(f"class {k}" for k in range(CLASSES))

    def __init__(self, n: int, t: int) -> None:
        self.provenance = {"learner": "made up"}
        self.train_labels, self.test_labels = np.arange(n) % CLASSES, np.arange(t) % CLASSES

    def train(self, models: Sequence[Any]) -> Any:
        """Nothing: a page trains none."""
        raise InputError(f"{len(models)} models of a made-up learner cannot be trained")

    def pictures(self, of_train: bool, indices: Sequence[int]) -> Array:
        """Pictures (k, 32, 32, 3)."""
        rng = np.random.default_rng([int(of_train), int(indices[0])])
        blots = rng.uniform(0, 255, (len(indices), SIDE // 4, SIDE // 4, 3)).repeat(4, 1).repeat(4, 2)
        smooth: Array = np.mean([np.roll(blots, shift, axis) for axis in (1, 2) for shift in (-2, -1, 0, 1, 2)], 0)
        found: Array = np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)
        return found

    def names(self, of_train: bool, indices: Sequence[int]) -> list[str]:
        """Names as files have them."""
        return [f"{'train' if of_train else 'test'}/{index:05d}.png" for index in indices]


def bench_page(settings: Settings, verified: int = VERIFIED, n: int = N, t: int = T) -> tuple[Record, str]:
    """The bench as a record for JSON and as a table; it works in a folder of the run's, which it removes.

    Raises InputError where a bench's folder is left from before, or there are fewer targets than are to be verified.
    """
    if not 1 <= verified <= t:
        raise InputError(f"the bench verifies 1 to {t} targets, not {verified}")
    folder = stage_folder(settings, "bench-page")
    if folder.exists():
        raise InputError(f"{folder} is there already; another bench is at work, or was cut off: delete it")
    of_run = dataclasses.replace(settings, run=RunSettings(dir=str(folder)))
    try:
        _make_up(of_run, verified, n, t)
        start = time.monotonic()
        report(of_run, Made(n, t))
        seconds = time.monotonic() - start
        page = page_folder(of_run)
        sizes = [file.stat().st_size for file in page.rglob("*") if file.is_file()]
        opened = _opened(page / "index.html")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = {
        "bench": "page",
        "version": __version__,
        "device": "cpu",
        "machine": describe_machine(),
        "num_train": n,
        "num_targets": t,
        "verified": verified,
        "seconds": round(seconds, 1),
        "megabytes": round(sum(sizes) / 1e6, 1),
        "files": len(sizes),
        **opened,
    }
    return record, _table(record)


def _opened(page: Path) -> Record:
    """Seconds until the first screen stands, the best and the median of several, and the bytes that it takes; without Chromium
    nothing.
    """
    if CHROMIUM is None:
        return {}
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.size(1280)
        seconds = sorted(browser.open(page, until="first") for _ in range(OPENED))
        files = {Path(unquote(urlparse(url).path)) for url in browser.requests()}
    return {
        "first_screen_seconds": [round(seconds[0], 2), round(seconds[OPENED // 2], 2)],
        "first_screen_megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 2),
    }


WIDTHS = {1280: 900, 390: 844}
"""Of the screens that a page is shown on, with their heights."""


def shots(settings: Settings, out: Path) -> list[Path]:
    """The first screen of a run's page as PNGs, page-RUN-1280.png and page-RUN-390.png in a folder; their paths.

    Raises InputError where the run has no page, or there is no Chromium.
    """
    page = page_folder(settings) / "index.html"
    if not page.is_file():
        raise InputError(f"there is no {page}; run python -m datamodels.report with the same config")
    found = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        for width, height in WIDTHS.items():
            browser.size(width, height)
            browser.open(page)
            found.append(out / f"page-{Path(settings.run.dir).name}-{width}.png")
            write_file(found[-1], browser.screenshot())
    return found


def _make_up(settings: Settings, verified: int, n: int, t: int) -> None:
    """A run's store, weights and verdicts, of which nothing was trained."""
    rng = np.random.default_rng(0)
    store = stage_folder(settings, "store")
    create(store, Meta(MODELS, n, t, {"margins": ArraySpec("float16", (t,))}, deciding_settings(settings)))
    margins = rng.normal(2, 2, (MODELS, t)).astype(np.float16)
    deliver(store, np.arange(MODELS), draw_masks(0, range(MODELS), n, settings.store.alpha), {"margins": margins})
    about = provenance(Store(store), settings.regress)
    heldout = np.arange(MODELS // 2, MODELS)
    lds = rng.uniform(0.3, 0.9, t)
    metrics = {"mean": {"lds": float(lds.mean()), "nonzeros": float(NONZEROS)}, "per_target": {"lds": lds.tolist()}}
    weights = _weights(rng, n, t)
    write(
        stage_folder(settings, "regress"),
        weights,
        np.zeros(t, np.float32),
        np.ones(t),
        heldout,
        {**metrics, "models_heldout": len(heldout)},
        about,
    )
    verdicts_folder(settings).mkdir()
    write_verified(verdicts_folder(settings), _verdicts(weights.tocsc(), about, verified))


def _weights(rng: np.random.Generator, n: int, t: int) -> csr_matrix:
    """Sparse weights (N, T), three in four of them of the target's class, and those above 0."""
    most = min(NONZEROS, n // (2 * CLASSES))
    own = np.stack([rng.choice(n // CLASSES, most, replace=False) * CLASSES + k % CLASSES for k in range(t)])
    values = rng.exponential(0.05, own.shape)
    other = np.arange(most) % 4 == 0
    own[:, other] = (own[:, other] + 1) % n
    values[:, other] *= -0.5
    columns = np.repeat(np.arange(t), most)
    found = csr_matrix((values.ravel().astype(np.float32), (own.ravel(), columns)), (n, t))
    found.sum_duplicates()
    return found


def _verdicts(weights: Any, about: Any, verified: int) -> Verified:
    """Verdicts on so many targets, spread over all of them, each of a search that ended with a set."""
    t = weights.shape[1]
    targets = np.linspace(0, t - 1, verified).astype(int).tolist()
    before, after = Outcome(16, 3.0, 2.0, 4.0, 1.0, 0.8, 1.0, None), Outcome(16, -1.0, -2.0, -0.1, 0.1, 0.0, 0.3, None)
    return Verified(
        format_version=FORMAT_VERSION,
        version=__version__,
        store_digest=str(about["store_digest"]),
        regress=about["regress"],
        verify={"goal": "flip", "base_models": 16, "max_size": 1000},
        inputs={},
        looks=(8, 16),
        models_used=16 * verified,
        random_subsets=None,
        base={target: OnAll(before, target % CLASSES) for target in targets},
        searches=tuple(_search(weights, target, after) for target in targets),
        removals=(),
        counterfactuals=(),
    )


def _search(weights: Any, target: int, after: Outcome) -> SearchRecord:
    column = weights[:, [target]].toarray()[:, 0]
    order: IndexArray = np.argsort(-column)[: 5 + target % 40]
    return SearchRecord(
        target=target,
        label=target % CLASSES,
        method="datamodel",
        relabelled=None,
        verdict="flipped",
        size=len(order),
        tried=len(order),
        order=tuple(order.tolist()),
        weights=tuple(column[order].tolist()),
        base_margin=3.0,
        models=48,
        probes=(Probe(len(order), 0.0, 16, "flipped", after, float(column[order].sum())),),
        breaks=(),
        repairs=(),
    )


def _table(record: Record) -> str:
    lines = [
        describe(record),
        f"N = {record['num_train']}, T = {record['num_targets']}, {record['verified']} targets verified",
        f"made in {record['seconds']:.0f} s: {record['megabytes']:.1f} MB in {record['files']} files",
    ]
    if "first_screen_seconds" in record:
        best, median = record["first_screen_seconds"]
        told = f"the first screen stands after {median:.2f} s in Chromium (median of {OPENED}, best {best:.2f})"
        lines.append(f"{told}, having loaded {record['first_screen_megabytes']:.2f} MB")
    else:
        lines.append("no Chromium here to open it with")
    return "\n".join(lines)
