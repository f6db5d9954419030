"""Verification by one call, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder, verdicts_folder
from datamodels.settings import parse
from datamodels.verify.known import Examples
from datamodels.verify.record import VERDICTS, Verified, read_verified
from datamodels.verify.run import verify_targets
from datamodels.verify.targets import targets_given, targets_named
from datamodels.worker import engine_of


def verify(config: Path | str, targets: str | Iterable[int | str], gpu: str | None = None, **changed: object) -> Verified:
    """Verify targets of the run that a config file describes; what verify.json tells then.

    `targets` are test indices and texts as in a targets file, `[3, "train:17", "class:dog"]`, or what `--targets` takes, `gpu`
    what `--gpu` takes. Settings are changed by name, with two underscores for the dot: `verify__methods="datamodel,relabel"`.
    The run must have its models and weights. Raises InputError as the command does.

    >>> from datamodels.verify import verify                          # doctest: +SKIP
    >>> found = verify("configs/digits.yaml", [3, "class:7"])         # doctest: +SKIP
    >>> {search.target: search.size for search in found.searches}     # doctest: +SKIP
    """
    flags = [part for name, value in changed.items() for part in (f"--{name.replace('__', '.')}", str(value))]
    settings, _ = parse(["-C", str(config), *flags])
    models = Datamodels.load(stage_folder(settings, "regress"))
    read_store(settings)
    with engine_of(settings, gpu) as engine:
        examples, seed = Examples(engine.learner), settings.verify.seed
        chosen = targets_named(targets, examples, seed) if isinstance(targets, str) else targets_given(targets, examples, seed)
        verify_targets(settings, engine, models, chosen)
    return read_verified(verdicts_folder(settings) / VERDICTS, examples.n, examples.t, examples.classes)
