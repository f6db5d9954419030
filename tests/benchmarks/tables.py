"""The tables of the texts, each made of records: a head, then rows, all cells as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.records import LISTING, Records, machine_of

Table = list[list[str]]


class Road(NamedTuple):
    """A whole run: its record, and the words by which the table of results calls it."""

    record: str
    called: str


ROADS = (
    Road("cifar10-5k", "CIFAR-10, 5,000 images of 16×16 pixels, 500 a class"),
    Road("cifar10-small-run", "CIFAR-10, 1,000 images of 16×16 pixels, 100 a class"),
    Road("digits-demo", "digits, 200 images, 20 a class"),
    Road("digits-demo-2", "digits, a second draw of images and targets"),
)
"""The rows of the table of results, in order; a run whose record is not there has none."""


METHODS = {
    "datamodel": "removed",
    "relabel": "relabelled as the runner-up class",
    "similarity": "removed, the nearest of the class first",
    "random": "removed, the class in random order",
    "embedding": "removed, the nearest in an embedding first",
    "gradients": "removed, by first-order attribution",
    "tracin": "removed, by TracIn",
    "influence": "removed, by influence functions",
    "trak": "removed, by TRAK",
}


def _there(records: Records) -> list[tuple[str, dict[str, Any]]]:
    """What the runs are called whose records are there, and the records."""
    return [(road.called, records[road.record]) for road in ROADS if road.record in records]


def _results(records: Records) -> Table:
    there = _there(records)
    others = [method for method in ("similarity", "random") if any(method in found["by_method"] for _, found in there)]
    head = ["run", "models, LDS", "R removed: flipped, median \\|R\\|", "as many random images of the class: flipped"]
    head += [f"{METHODS[method]}: flipped, median \\|R\\|" for method in others]
    rows = [
        [
            called,
            f"{found['models']:,}, {found['lds']:.2f}",
            _flipped(found, "datamodel"),
            _by_chance(found) or "–",
            *(_flipped(found, method) for method in (*others, "relabel")),
            f"{found['machine']['cores']} cores of {found['machine']['processor']}, {found['version']}",
        ]
        for called, found in there
    ]
    return [[*head, "R relabelled: flipped, median \\|R\\|", "machine, version"], *rows]


def _by_chance(found: dict[str, Any]) -> str:
    """How many targets as many random images of the class flip as the smallest set has, of how many."""
    control = found["by_rule"].get("support")
    return f"{control['flipped_control']} of {control['tried']}" if control else ""


def _flipped(found: dict[str, Any], method: str) -> str:
    of = found["by_method"].get(method)
    return (
        "–" if of is None else f"{of['flipped']} of {_of_asked(found, of['targets'])}, {of['median_size']}{_alone(of, method)}"
    )


def _alone(of: dict[str, Any], method: str) -> str:
    """The median along the method's own order, where rivals have given other answers."""
    sizes = of.get("orders", {}).get(method, {}).get("sizes", of["sizes"])
    return "" if sizes == of["sizes"] else f" (without the rival {_or_dash(_over(np.median, sizes), 'g')})"


def _of_asked(found: dict[str, Any], searched: int) -> str:
    """How many targets were searched, and how many were drawn where that is more."""
    asked = found["targets_asked"]
    return str(searched) if asked == searched else f"{searched} ({asked} drawn)"


def _index(records: Records) -> Table:
    rows = [
        [
            f"`results/{name}.json`",
            f"`{made.command}`",
            made.n.format(**records[name]),
            machine_of(records[name]),
            records[name]["version"],
        ]
        for name, made in LISTING.items()
        if name in records
    ]
    return [["record", "command", "n", "machine", "version"], *rows]


def _fixed_size(records: Records) -> Table:
    found = records["digits-demo"]["by_rule"]["10"]
    drops = [f"{found[f'mean_margin_drop_{of}']:.2f}" for of in ("removed", "control")]
    return [
        ["", "removed: the 10 largest weights", "control: 10 random images of the class"],
        [f"mean drop of the margin, {found['targets']} random targets", *drops],
        [
            f"predictions flipped, of {found['right_before']} that were right before",
            str(found["flipped_removed"]),
            str(found["flipped_control"]),
        ],
    ]


def _smallest(records: Records) -> Table:
    head = ["run", "R", "predictions flipped", "median \\|R\\|", "by the majority rule", "networks a target"]
    rows = []
    for called, found in _there(records):
        for method, of in found["by_method"].items():
            numbers = [str(of["median_size"]), str(of["median_by_majority"]), f"{of['models_per_target']:.0f}"]
            flipped = f"{of['flipped']} of {_of_asked(found, of['targets'])}"
            chance = _by_chance(found) if method == "datamodel" else ""
            rows.append([called, METHODS.get(method, method), flipped, *numbers, chance])
    return [[*head, "flipped by as many random images of the class"], *rows]


def _orders(name: str, averages: bool = True) -> Callable[[Records], Table]:
    """|R| target by target, along the datamodel's order and along the nearest of the class, and of the answer where the nearest
    were asked as its rival; a dash where no set flips.
    """

    def table(records: Records) -> Table:
        by_method = records[name]["by_method"]
        answers, asked = by_method["datamodel"]["sizes"], by_method["datamodel"].get("orders", {})
        nearest, relabelled = by_method["similarity"]["sizes"], by_method.get("relabel")
        columns = {METHODS["datamodel"]: asked["datamodel"]["sizes"] if asked else answers, METHODS["similarity"]: nearest}
        if asked:
            columns["removed, the nearest asked as a rival"] = answers
        if relabelled:
            columns[METHODS["relabel"]] = relabelled["sizes"]
        ratios = {"datamodel / nearest": columns[METHODS["datamodel"]]} | (
            {"with the rival / nearest": answers} if asked else {}
        )
        rows = [
            [
                target,
                *(_or_dash(sizes[target], "d") for sizes in columns.values()),
                *(_size_ratio(sizes[target], nearest[target]) for sizes in ratios.values()),
            ]
            for target in answers
        ]
        blank = [""] * len(ratios)
        medians = ["median", *(_or_dash(_over(np.median, sizes), "g") for sizes in columns.values()), *blank]
        means = ["mean", *(_or_dash(_over(np.mean, sizes), ".1f") for sizes in columns.values()), *blank]
        return [["target", *columns, *ratios], *rows, *([medians, means] if averages else [])]

    return table


Sizes = Mapping[str, int | None]


def _or_dash(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)


def _size_ratio(ours: int | None, theirs: int | None) -> str:
    return _or_dash(None if ours is None or theirs is None else ours / theirs, ".2f")


def _over(statistic: Callable[[list[float]], Any], sizes: Sizes) -> float | None:
    """A statistic of |R| over targets, censored searches taken for larger than all; None where it is not known then."""
    found = float(statistic([np.inf if size is None else size for size in sizes.values()]))
    return found if np.isfinite(found) else None


def _stages(records: Records) -> Table:
    stages = ("data", "prior", "worker", "regress", "verify", "report")
    rows = []
    for called, found in _there(records):
        seconds = (found["seconds"].get(stage) for stage in stages)
        rows.append([called, *("" if each is None else f"{each:,.0f}" for each in seconds), f"{found['models_retrained']:,}"])
    return [["seconds", *stages, "networks trained by verify"], *rows]


def _court(records: Records) -> Table:
    head = ["what is true", "flipped", "could be", "**wrongly**", "networks", "of these fresh", "images too many"]
    rows = [
        [
            row["scenario"],
            *(f"{100 * row[key]:.1f} %" for key in ("flipped", "flippable")),
            f"**{100 * row['wrong']:.1f} %**",
            f"{row['networks']:.0f}",
            f"{row['confirming']:.0f}",
            _or_none(row["images_too_many"], ".1f"),
            _or_none(row["reported_less_true"], ".2f"),
            _or_none(row["covered"], ".2f"),
        ]
        for row in records["court-digits-cpu"]["rows"]
    ]
    return [[*head, "margin off by", "interval covers"], *rows]


def _or_none(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


WAYS = ("lasso", "ridge", "similarity", "gradients", "sparse")


def _samples(name: str) -> Callable[[Records], Table]:
    def table(records: Records) -> Table:
        record = records[name]
        lds = {(row["way"], row["models"]): f"{row['lds']['mean']:.3f}" for row in record["rows"]}
        ratios = {(row["way"], row["models"]): _ratio(row) for row in record["ratios"]}
        models = sorted({row["models"] for row in record["rows"]})
        rows = [[f"{m:,}", *(lds[way, m] + ratios.get((way, m), "") for way in WAYS)] for m in models]
        return [["m", *WAYS[:-1], "gradients, sparse"], *rows]

    return table


def _ratio(row: dict[str, Any]) -> str:
    """The sample ratio in brackets; where the lasso has no more models than that, none."""
    ratio = row["ratio_with_the_priors_own"]
    return f" ({'≥ ' * row['at_least']}{ratio:.1f})" if round(ratio, 1) > 1 or not row["at_least"] else ""


COSTS = {
    "gradients": "first-order attribution",
    "similarity": "similarity",
    "tracin": "TracIn",
    "influence": "influence functions",
    "trak": "TRAK",
    "trak-on-subsets": "TRAK, networks on subsets",
    "lasso": "lasso",
    "prior": "prior of gradients",
    "prior-of-trak": "prior of TRAK alone",
    "prior-and-trak": "prior of gradients and TRAK",
}


def _cost(name: str) -> Callable[[Records], Table]:
    def table(records: Records) -> Table:
        record = records[name]
        searched = len(record["searched_targets"])
        alone = f"{record['lds_of_the_class_alone']:.3f}"
        rows = [["the class of the target alone", "", "", "0", alone] + [""] * bool(searched)]
        for row in sorted(record["rows"], key=lambda row: list(COSTS).index(row["method"])):
            numbers = [f"{row[key]:,}" if row[key] else "" for key in ("networks", "models")]
            cells = [COSTS[row["method"]], *numbers, f"{row['seconds']:.3g}", f"{row['lds']['mean']:.3f}"]
            verified = [f"{row['flipped']}, {row['median_size']:g}" if row["sizes"] else ""] if searched else []
            rows.append([*cells, *verified])
        head = ["method", "networks", "models of the store", "seconds", "LDS"]
        return [head + [f"flipped of {searched}, median \\|R\\|"] * bool(searched), *rows]

    return table


REPAIRS = {
    "repair-digits-cpu": "200 digits, seed 0",
    "repair-digits-600-cpu": "600 digits, seed 0",
    "repair-digits-600-seed-1-cpu": "600 digits, seed 1",
    "repair-digits-600-seed-2-cpu": "600 digits, seed 2",
}


def _repair(records: Records) -> Table:
    rows = [
        [called, str(records[name]["targets"]), *(_repaired(row) for row in records[name]["rows"])]
        for name, called in REPAIRS.items()
    ]
    three = [records[name] for name in REPAIRS if "600" in name]
    together = []
    for k in (0, 1):
        of = [record["rows"][k] for record in three]
        repaired, wrong, images = (sum(row[key] for row in of) for key in ("repaired", "wrongly_labelled", "images"))
        by_chance = sum(row["chance"] * row["images"] for row in of) / images
        together.append(f"{repaired}, {wrong / images / by_chance:.1f}: {wrong} of {images} images")
    rows.append(["600 digits, these three", str(sum(record["targets"] for record in three)), *together])
    return [["", "targets", "removed: repaired, times chance", "relabelled: repaired, times chance"], *rows]


def _repaired(row: dict[str, Any]) -> str:
    least, most = row["ratio_interval"]
    return f"{row['repaired']}, {row['ratio']:.1f} ({least:.1f} to {most:.1f})"


def _train(records: Records) -> Table:
    columns = [records[f"train-{name}-cpu"] for name in ("digits", "cifar10-small")]
    by_name = [{row["name"]: row for row in record["rows"]} for record in columns]
    names = list(dict.fromkeys(name for rows in by_name for name in rows))
    measured = ("models/s", "ratio", "of matmul peak", "cores busy")
    head = [f"{of}: {what}" for of in ("digits", "cifar10-small") for what in measured]
    return [["", *head], *([name, *(cell for rows in by_name for cell in _speed(rows.get(name)))] for name in names)]


def _speed(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 4
    shares = [f"{100 * row[key]:.0f} %" for key in ("share_of_matmul_peak", "cores_busy")]
    return [f"{row['models_per_s']:.2f}", f"{row['times_one_at_a_time']:.2f}", *shares]


AT_ONCE = (1, 8, 16, 64, 128, 256)


def _own_networks(records: Records) -> Table:
    called = {
        "train-convnet-cpu": "`configs/convnet.yaml`, 1,000 images of CIFAR-10",
        "train-probe-cpu": "`configs/probe.yaml`, 512 features of 5,000 examples",
    }
    rows = []
    for name, words in called.items():
        times = {row["models_at_once"]: row for row in records[name]["rows"] if not row["one_at_a_time"]}
        rows.append([words, *(f"{times[k]['times_one_at_a_time']:.3g}" if k in times else "" for k in AT_ONCE)])
    return [["", *(f"{k} at once" for k in AT_ONCE)], *rows]


ACCURACIES = (
    ("digits", "digits"),
    ("CIFAR-10, 1,000 images of 16×16 pixels", "cifar10-small"),
    ("CIFAR-10, 5,000 images of 16×16 pixels", "cifar10-5k"),
)


def _accuracy(records: Records) -> Table:
    rows = [
        [called, row["trained_on"], f"{row['images']:,}", str(row["models"]), _percent(row)]
        for called, name in ACCURACIES
        for row in records[f"accuracy-{name}-cpu"]["rows"]
    ]
    return [["", "trained on", "images", "models", "accuracy, 95 % interval"], *rows]


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['mean']:.1f} ± {100 * row['half_interval']:.1f} %"


def _lasso(records: Records) -> Table:
    head = ["images", "models", "targets", "images a model", "CPU s", "scikit-learn, to our gap", "to its own"]
    return [
        head,
        *(
            [f"{row['images']:,}", f"{row['models']:,}", str(row["targets"]), f"{row['images_per_model']:g}"]
            + [f"{row['cpu_seconds']:.3g}"]
            + [f"{row[key]:.2f} times" for key in ("times_scikit_learn_to_our_gap", "times_scikit_learn")]
            for row in records["lasso-bench-cpu"]["rows"]
        ),
    ]


def _workers(records: Records) -> Table:
    rows = records["workers-bench-disk"]["rows"]
    blocks = sorted({row["block"] for row in rows})
    by = {(row["workers"], row["block"]): f"{row['models_per_s']:,.0f}" for row in rows}
    return [
        ["workers", *(f"models/s, blocks of {block}" for block in blocks)],
        *([str(w), *(by.get((w, block), "") for block in blocks)] for w in sorted({row["workers"] for row in rows})),
    ]


TABLES: dict[str, Callable[[Records], Table]] = {
    "results": _results,
    "records": _index,
    "fixed-size": _fixed_size,
    "smallest": _smallest,
    "orders": _orders("cifar10-5k"),
    "orders-fine": _orders("cifar10-5k-fine", averages=False),
    "orders-405": _orders("cifar10-5k-405", averages=False),
    "orders-small": _orders("cifar10-small-run"),
    "stages": _stages,
    "court": _court,
    "samples-digits": _samples("samples-digits-cpu"),
    "samples-cifar10-small": _samples("samples-cifar10-small-cpu"),
    "cost-digits": _cost("cost-digits-cpu"),
    "cost-cifar10-small": _cost("cost-cifar10-small-cpu"),
    "repair": _repair,
    "train": _train,
    "own-networks": _own_networks,
    "accuracy": _accuracy,
    "lasso": _lasso,
    "workers": _workers,
}
