"""What lies beside certificate.json for who is given the folder: what it claims, in words, and how to train it all again.

README.md      the claim, the figures, what is not claimed, the commands
config.yaml    the settings that decide the networks, for this package
retrain.py     the same training in plain PyTorch, where it is the built-in one (see `training.retrain`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datamodels import training
from datamodels.brittleness.judging import Outcome
from datamodels.errors import shown
from datamodels.settings import DataSettings, Settings, TrainingSettings, WorkerSettings
from datamodels.verify.certificate import NOT, OPEN, STILL, Certificate, ImageRecord, PutBackRecord, PutBacks

SCRIPT = Path(training.__file__).with_name("retrain.py")
README, CONFIG, RETRAIN, DATA = "README.md", "config.yaml", "retrain.py", "data.npz"


def write_beside(folder: Path, found: Certificate, settings: Settings) -> None:
    """Write what lies beside a certificate into its folder, which is not its own yet."""
    (folder / README).write_text(readme(found), encoding="utf-8")
    (folder / CONFIG).write_text(config(settings), encoding="utf-8")
    if found.plain:
        (folder / RETRAIN).write_bytes(SCRIPT.read_bytes())


def config(settings: Settings) -> str:
    """The settings that decide the networks, where they are not the defaults, as a config file."""
    parts: dict[str, dict[str, Any]] = {"run": {"dir": "recheck"}}
    for name, kind in (("data", DataSettings), ("training", TrainingSettings), ("worker", WorkerSettings)):
        default = kind()
        section = dataclasses.asdict(getattr(settings, name))
        given = {key: value for key, value in section.items() if value != getattr(default, key)}
        parts |= {name: given} if given else {}
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True)


def told_of(put_back: PutBacks, claim: str) -> str:
    """What came of putting images back, in words."""
    by_one = _counted(put_back.singly, claim)
    if put_back.minimal:
        told = f"minimal by one: with any one of its {put_back.of_images} images put back it is {_word(NOT, claim)}"
    elif len(put_back.singly) < put_back.of_images:
        told = f"a sample of {len(put_back.singly)} of {put_back.of_images} images put back, each by itself: {by_one}"
    else:
        told = f"not shown to be minimal by one: with each of its {put_back.of_images} images put back by itself, {by_one}"
    if put_back.in_pairs:
        pairs = f"a sample of {len(put_back.in_pairs)} of {put_back.of_pairs} pairs put back"
        told += f"; {pairs}: {_counted(put_back.in_pairs, claim)}"
    return told


def _counted(records: Sequence[PutBackRecord], claim: str) -> str:
    return ", ".join(f"{sum(each.does == word for each in records)} {_word(word, claim)}" for word in (NOT, OPEN, STILL))


def _word(word: str, claim: str) -> str:
    """As 'still flipped', 'not flipped', 'undecided'."""
    return word if word == OPEN else f"{word} {claim}"


def readme(found: Certificate) -> str:
    """The page of a certificate, in Markdown."""
    return "\n".join([*_claim(found), *_smallness(found), *_again(found), *_made(found)])


def _claim(found: Certificate) -> list[str]:
    kept = "are left out" if found.relabelled is None else f"are told to be of class {found.relabelled}"
    after = "without R" if found.relabelled is None else "R relabelled"
    turned = "wrong" if found.claim == "flipped" else "right"
    images = [f"| {_index(image)} | {_name(image)} | {image.label} | `{image.digest or '–'}` |" for image in found.images]
    columns = ["| index | name | label | SHA-256 |", "| --- | --- | --- | --- |"]
    return [
        f"# Target {_cell(found.name)}: {found.claim} by {len(found.images)} training image{'s' * (len(found.images) > 1)}",
        "",
        f"Networks trained on all {found.num_train} images of S have the target {_opposite(turned)} in the mean. When the",
        f"images R below {kept}, networks trained otherwise alike have it {turned} in the mean: their mean margin, the right",
        f"class's logit less the largest other one, is {'at most' if turned == 'wrong' else 'above'} 0 beyond doubt",
        "(Student's t, 95 %). That is not said of each network: the target is right in",
        f"{_right(found.before.outcome)} of them before, and in {_right(found.after.outcome)} after.",
        "",
        "| trained on | networks | mean margin | interval | verdict |",
        "| --- | --- | --- | --- | --- |",
        f"| S | {_figures(found.before.outcome)} | {found.before.verdict} |",
        f"| {after} | {_figures(found.after.outcome)} | {found.after.verdict} |",
        "",
        f"R, by the order of the method {_cell(found.method)}; indices are those of S, digests are of {found.digests_of}:",
        "",
        *columns,
        *images,
        "",
        "The target:",
        "",
        *columns,
        *(f"| {_index(image)} | {_name(image)} | {image.label} | `{image.digest or '–'}` |" for image in found.targets),
        "",
    ]


def _smallness(found: Certificate) -> list[str]:
    put_back = found.put_back
    if put_back is None:
        return ["No image of R was put back: nothing is claimed of how small R is.", ""]
    records = [*put_back.singly, *put_back.in_pairs]
    told = told_of(put_back, found.claim)
    return [
        f"## How small R is\n\n{told[0].upper()}{told[1:]}.",
        f"Each is judged by networks of its own, {put_back.looks[0]} to {put_back.looks[-1]}. That no smaller set of",
        "other images does the same is not claimed.",
        "",
        "| put back | networks | mean margin | interval | verdict |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {', '.join(map(str, r.images))} | {_figures(r.outcome)} | {_word(r.does, found.claim)} |" for r in records),
        "",
    ]


def _again(found: Certificate) -> list[str]:
    lines = [
        "## Again",
        "",
        "With the data set and the package `datamodels` (its `config.yaml` may want another `data.source` elsewhere):",
        "",
        f"    python -m datamodels.verify -C {CONFIG} --recheck .",
        "",
        "checks the seal, the digests and the recipe, trains these networks again, compares their margins, trains as many that",
        "nobody has seen, and says `confirmed` (exit code 0) or `refused` and why (1). On another kind of machine rounding",
        "differs, and networks come out otherwise: there they are judged again, and not compared one by one.",
        "",
    ]
    if not found.plain:
        return [
            *lines,
            "Its networks are trained by code that is not this package's: no script for PyTorch alone can stand for it.",
            "",
        ]
    return [
        *lines,
        f"With NumPy and PyTorch alone, and the images as `{DATA}` (x_train, y_train, x_test, y_test; made with `--with-data`,",
        "or by hand: the digests tell whether it is they):",
        "",
        f"    python {RETRAIN} {DATA}",
        "",
        "trains networks by the same recipe one after another, from random numbers of PyTorch's own: they are not the networks",
        "of the certificate, and what must come out again is the verdict.",
        "",
    ]


def _made(found: Certificate) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in _mapping(found.machine.get("packages")).items())
    return [
        "## Made",
        "",
        f"{found.made}, by datamodels {found.version}, Python {found.machine.get('python')}, {packages}, on"
        f" {found.machine.get('processor')} ({found.machine.get('device')}).",
        "A network's key is the seed, 64 bits of the SHA-256 of the packed mask of the images it sees, its repetition, and",
        "1 + the class where R is relabelled. The seal is no signature: who can write can seal anew. What cannot be",
        "made up is what comes out when the networks are trained again.",
        "",
    ]


def _figures(outcome: Outcome) -> str:
    return f"{outcome.models} | {outcome.mean_margin:.2f} | {outcome.low:.2f} to {outcome.high:.2f}"


def _right(outcome: Outcome) -> str:
    """As '6 of 24'."""
    return f"{round(outcome.correct * outcome.models)} of {outcome.models}"


def _opposite(turned: str) -> str:
    return "right" if turned == "wrong" else "wrong"


def _index(image: ImageRecord) -> str:
    return str(image.index)


def _name(image: ImageRecord) -> str:
    return "–" if image.name is None else _cell(image.name)


def _cell(text: str) -> str:
    """Text of any origin in a line of a table."""
    return shown(text, 120).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}
