"""The records in `results/`: which there are, by which command each was made, over how many things it is, on what machine."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"


class UnknownRecordError(Exception):
    """A text or a table wants a record that is not in `results/`."""


class Records:
    """The records of a folder, by name, each read once."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    @cached_property
    def names(self) -> list[str]:
        """Of all records, in order."""
        return sorted(file.stem for file in self.folder.glob("*.json"))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self:
            raise UnknownRecordError(f"there is no record {name}.json in {self.folder}")
        if name not in self._read:
            self._read[name] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return self._read[name]


class Made(NamedTuple):
    """How a record came to be: its command, and over how many of what its figures are, as a format that the record fills."""

    command: str
    n: str


def _bench(words: str) -> str:
    return f"python -m datamodels.bench {words}"


SMALL = "-C configs/cifar10-small.yaml"
DIGITS_600 = "--data.train_images 600 --data.test_images 1000 --store.num_models 800"
SECOND_DRAW = "--data.seed 1 --store.seed 1 --verify.seed 2 --run.dir runs/digits-2"
"""Other images, other models, other targets than the demo's."""
_EARLIER_SIZES = "--data.train_images 500 --store.alpha 0.5"
LISTING = {
    "accuracy-cifar10-5k-cpu": Made(_bench("accuracy -C configs/cifar10-5k.yaml"), "{rows[0][models]} models of either kind"),
    "accuracy-cifar10-small-cpu": Made(_bench(f"accuracy {SMALL}"), "{rows[0][models]} models of either kind"),
    "accuracy-digits-cpu": Made(_bench("accuracy -C configs/digits.yaml"), "{rows[0][models]} models of either kind"),
    "cifar10-5k": Made(
        "python -m datamodels -C configs/cifar10-5k.yaml --gpu cpu,cpu",
        "{targets} targets searched, of {targets_asked} drawn; 1 run",
    ),
    "cifar10-5k-405": Made(
        "python -m datamodels.verify -C configs/cifar10-5k.yaml --gpu cpu,cpu --targets 405"
        " --verify.methods datamodel,similarity --verify.rivals none --verify.models 4 --verify.most_models 64"
        " --verify.ratio 1.05 --verify.name finer, then datamodels.report",
        "{targets} target, chosen; 1 run",
    ),
    "cifar10-5k-controls": Made(
        "python -m datamodels.verify -C configs/cifar10-5k.yaml --gpu cpu,cpu"
        " --targets 16,42,69,120,126,133,206,225,244,397,405,459"
        " --verify.methods random --verify.counterfactuals 50 --verify.name controls, then datamodels.report",
        "{by_method[random][targets]} targets, those of cifar10-5k; 1 run",
    ),
    "cifar10-5k-fine": Made(
        "python -m datamodels.verify -C configs/cifar10-5k.yaml --gpu cpu,cpu --targets 405,206"
        " --verify.methods datamodel,similarity --verify.rivals none --verify.ratio 1.05 --verify.name fine,"
        " then datamodels.report",
        "{targets} targets, chosen; 1 run",
    ),
    "cifar10-5k-rival": Made(
        "python -m datamodels.verify -C configs/cifar10-5k.yaml --gpu cpu,cpu"
        " --targets 16,42,69,120,126,133,206,225,244,397,405,459 --verify.methods datamodel --verify.name rival,"
        " then datamodels.report",
        "{targets} targets, those of cifar10-5k; 1 run",
    ),
    "cifar10-small-run": Made(
        f"python -m datamodels {SMALL} --verify.methods datamodel,similarity --verify.subsets 0 --verify.counterfactuals none",
        "{targets} targets searched, of {targets_asked} drawn; 1 run",
    ),
    "cluster-ingest-bench-disk": Made(_bench("cluster --part ingest --run.dir runs/bench"), "medians of {rounds} rounds"),
    "cluster-overhead-digits-cpu": Made(
        _bench("cluster --part overhead -C configs/digits.yaml"), "medians of 3 rounds of {models} models"
    ),
    "cluster-scaling-bench-disk": Made(
        _bench("cluster --part scaling --run.dir runs/bench"), "1 round, {blocks_of_worker} blocks a worker"
    ),
    "cost-cifar10-small-cpu": Made(_bench(f"cost {SMALL}"), "{targets} targets, {subsets} subsets × {subset_models} networks"),
    "cost-digits-cpu": Made(
        _bench("cost -C configs/digits.yaml --store.num_models 1600 --verify.subsets 60"),
        "{targets} targets, {subsets} subsets × {subset_models} networks",
    ),
    "court-digits-cpu": Made(
        _bench("court -C configs/digits.yaml"), "{searches:,} searches a line, margins of {networks} networks"
    ),
    "digits-demo": Made("make demo", "{targets} random targets, 1 run"),
    "digits-demo-2": Made(f"python -m datamodels -C configs/digits.yaml {SECOND_DRAW}", "{targets} random targets, 1 run"),
    "fit-bench-cpu": Made(_bench("fit --size 10000,60000,1000,20 --regress.lam_ratio 0.1"), "1 run"),
    "lasso-bench-cpu": Made(_bench("lasso"), "medians of {rounds} rounds"),
    "page-bench-cpu": Made(_bench("page"), "1 page, opened twice"),
    "prior-cifar10-small-cpu": Made(
        _bench(f"prior {SMALL}") + " --data.train_images 5000 --training.epochs 10", "{models} networks"
    ),
    "regress-bench-cpu": Made(_bench("regress"), "1 run; growth: medians of {growth_rounds} rounds"),
    "repair-digits-cpu": Made(_bench("repair -C configs/digits.yaml --seed 0"), "{targets} targets"),
    "repair-digits-600-cpu": Made(_bench(f"repair -C configs/digits.yaml --seed 0 {DIGITS_600}"), "{targets} targets"),
    "repair-digits-600-seed-1-cpu": Made(_bench(f"repair -C configs/digits.yaml --seed 1 {DIGITS_600}"), "{targets} targets"),
    "repair-digits-600-seed-2-cpu": Made(_bench(f"repair -C configs/digits.yaml --seed 2 {DIGITS_600}"), "{targets} targets"),
    "robustness": Made("make robustness", "every case once"),
    "samples-cifar10-small-cpu": Made(
        _bench(f"samples {SMALL} --store.num_models 2600")
        + " --n 1 --regress.gap 1e-2 --regress.lams 40 --regress.lam_ratio 0.01",
        "draws of the models: {draws}; {targets} targets",
    ),
    "samples-digits-cpu": Made(
        _bench("samples -C configs/digits.yaml --run.dir runs/many --store.num_models 3400"),
        "draws of the models: {draws}; {targets} targets",
    ),
    "store-bench-disk": Made(_bench("store --run.dir runs/bench"), "medians of {rounds} rounds, {rows:,} rows"),
    "train-cifar10-small-cpu": Made(
        _bench(f"train {SMALL}") + " --data.train_images 1500 --training.epochs 15", "medians of {rounds} rounds"
    ),
    "train-convnet-cpu": Made(_bench("train -C configs/convnet.yaml"), "medians of {rounds} rounds"),
    "train-digits-cpu": Made(_bench(f"train -C configs/digits.yaml {_EARLIER_SIZES}"), "medians of {rounds} rounds"),
    "train-probe-cpu": Made(_bench("train -C configs/probe.yaml"), "medians of {rounds} rounds"),
    "workers-bench-disk": Made(_bench("workers --run.dir runs/bench"), "{models:,} models, 1 round"),
}
"""Every record, by name. Those that are listed and not there are wanted, and have no line in the texts until they are."""


def machine_of(record: dict[str, Any]) -> str:
    """The machine and the versions of a record, in a few words."""
    machine = record["machine"]
    on = "" if record.get("device", "cpu") in ("cpu", "disk") else f"{record['device']}, "
    torch = machine["packages"]["torch"].partition("+")[0]
    return f"{on}{machine['cores']} cores of {machine['processor']}, Python {machine['python']}, torch {torch}"
