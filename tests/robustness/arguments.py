"""Settings in files and flags, targets in files, flags and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.verify import verify
from tests.robustness.case import Call, Case, main_of
from tests.robustness.damage import (
    written,
)
from tests.robustness.material import copied, run_flags
from tests.robustness.tables import (
    Read,
    damaged,
    verifies,
    whole_text,
)

NUMBERS = {
    "infinity": "inf",
    "minus infinity": "-inf",
    "not a number": "nan",
    "beyond float64": "1e999",
    "other digits": "٣",
    "wide digits": "５",
    "an underscore": "1_0",
    "hexadecimal": "0x10",
    "sexagesimal": "1:30",
    "true": "true",
    "empty": "",
    "a space": " 5",
    "two signs": "+-5",
    "negative": "-7",
    "beyond 63 bits": str(2**63),
    "5,000 digits": "9" * 5000,
    "a list": "[1, 2]",
    "escapes": "\x1b[31m5",
    "a date": "2001-01-01",
    "NUL": "5\\0",
}
SETTINGS = {
    "store.seed": "worker",
    "training.epochs": "data",
    "training.peak_lr": "data",
    "store.alpha": "data",
    "verify.ratio": "data",
    "regress.targets": "regress",
    "verify.sizes": "verify",
    "store.arrays": "worker",
}
LEGITIMATE = {
    ("training.peak_lr", "beyond 63 bits"),
    ("verify.ratio", "beyond 63 bits"),
    ("verify.sizes", "a space"),
}
YAML = {
    "an alias": "store: &s {seed: 1}\nverify: *s",
    "an alias bomb": "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}' if k else 'x'] * 9)}]" for k in range(9)),
    "a merged alias": "a: &a {seed: 1}\nstore: {<<: *a}",
    "deep lists": "store: " + "[" * 30_000,
    "deep maps": "store: " + "{a: " * 9_000,
    "deep by indent": "\n".join(" " * k + f"a{k}:" for k in range(300)),
    "an object of Python": "store: {seed: !!python/object/apply:os.system ['touch called']}",
    "a binary": "store: {seed: !!binary MQ==}",
    "a list for a value": "store: {seed: [1]}",
    "a map for a value": "store: {seed: {a: 1}}",
    "null for a value": "store: {seed: null}",
    "nothing for a value": "store: {seed: }",
    "a key twice": "store: {seed: 1, seed: 2}",
    "a section twice": "store: {seed: 1}\nstore: {seed: 2}",
    "a list for a key": "? [a, b]\n: {c: 1}",
    "a map for a key": "store: {? {a: 1} : 2}",
    "two documents": "store: {seed: 1}\n---\nstore: {seed: 2}",
    "NUL in a path": 'run: {dir: "a\\0b"}',
    "escapes in a path": 'run: {dir: "a\\e[2Jb"}',
    "a very long path": f"run: {{dir: {'x' * 5000}}}",
    "large": "#" * 200_000,
    "an unknown key with escapes": '"a\\e[2J": {"b\\x07": 1}',
    "a tab": "store:\n\tseed: 1",
    "a directive": "%YAML 9.9\n---\nstore: {seed: 1}",
    "an unknown tag": "store: {seed: !a/b 3}",
}
TARGETS = {
    "too many digits": "9" * 5000,
    "out of range": "20",
    "negative": "-1",
    "other digits": "٣",
    "a fraction": "3.0",
    "words": "three,four",
    "a long name": "x" * 5000,
    "none": "",
    "commas": ",,",
    "random none": "random:0",
    "random many": "random:21",
    "random digits": "random:" + "9" * 5000,
    "random other digits": "random:٣",
    "a folder": "/",
    "a device": "/dev/zero",
    "escapes": "\x1b[2J",
}
GIVEN: dict[str, Any] = {
    "negative": [-1],
    "out of range": range(100),
    "booleans": [True],
    "a mask": np.ones(20, bool),
    "fractions": [3.0],
    "texts": ["3"],
    "none": [],
    "a number": 3,
    "nothing": None,
    "nested": [[3]],
    "an array of two dimensions": np.zeros((2, 2), int),
    "huge": [2**70],
    "NaN": [float("nan")],
}
NAMES = {
    "a folder above": "..",
    "a path": "a/b",
    "an absolute path": "/tmp",
    "hidden": ".verify",
    "of the store": "store",
    "of the weights": "regress",
    "of the page": "report",
    "of another's page": "report-x",
    "capitals": "Verify",
    "a file": "seconds.json",
    "a space": "a b",
    "empty": "",
    "long": "x" * 65,
    "letters of others": "vérify",
    "other digits": "٣",
    "an option": "-x",
    "NUL": "a\0b",
    "escapes": "\x1b[2J",
}
FLAGS_OF = {"worker": ("--gpu", "cpu"), "verify": ("--targets", "3", "--gpu", "cpu")}


def argument_cases() -> Iterator[Case]:
    """All of them."""
    for setting, stage in SETTINGS.items():
        for name, value in NUMBERS.items():
            if (setting, name) not in LEGITIMATE:
                yield Case(f"setting {setting}", name, _command(stage, *FLAGS_OF.get(stage, ()), f"--{setting}={value}"))
    read: Read = lambda folder: main_of("data", "-C", folder / "own.yaml")  # noqa: E731
    configs = {**whole_text(), **{name: written(text.encode()) for name, text in YAML.items()}}
    yield from damaged("config", ("own.yaml",), "own.yaml", configs, read)
    for name, value in NAMES.items():
        yield Case("setting verify.name", name, _command("verify", "--targets", "3", "--gpu", "cpu", f"--verify.name={value}"))
    for name, value in TARGETS.items():
        yield Case("--targets", name, _command("verify", f"--targets={value}", "--gpu", "cpu"))
    lines = {name: text for name, text in TARGETS.items() if name not in ("none", "a folder", "a device")}
    lines |= {"a line of megabytes": "7" * 2**20, "twice": "3"}
    bad = {**whole_text(), **{name: written(f"3\n{text}\n".encode()) for name, text in lines.items()}}
    bad["a huge file"] = lambda path: written(b"3\n" * 2**24)(path)
    names = ("run", "targets.txt")
    yield from damaged("targets file", names, "targets.txt", bad, verifies("--targets", "targets.txt"))
    for name, given in GIVEN.items():
        yield Case("verify(config, targets)", name, _called(given))


def _command(stage: str, *more: str) -> Callable[[Path, Path], Call]:
    def make(material: Path, folder: Path) -> Call:
        copied(material, folder, "run")
        return main_of(stage, *run_flags(folder), *more)

    return make


def _called(given: Any) -> Callable[[Path, Path], Call]:
    def make(material: Path, folder: Path) -> Call:
        copied(material, folder, "own.yaml")
        return lambda: verify("own.yaml", given)

    return make
