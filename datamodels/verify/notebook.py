"""Verification by one call, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder, verdicts_folder
from datamodels.settings import parse
from datamodels.verify.record import VERDICTS, Verified, read_verified
from datamodels.verify.run import verify_targets
from datamodels.verify.targets import targets_given, targets_named
from datamodels.worker import engine_of


def verify(config: Path | str, targets: str | Iterable[int], gpu: str | None = None, **changed: object) -> Verified:
    """Verify targets of the run that a config file describes; what verify.json tells then.

    `targets` are test indices, or what `--targets` takes, `gpu` what `--gpu` takes. Settings are changed by name, with two
    underscores for the dot: `verify__methods="datamodel,relabel"`. The run must have its models and weights. Raises
    InputError as the command does.

    >>> from datamodels.verify import verify                          # doctest: +SKIP
    >>> found = verify("configs/digits.yaml", [3, 7])                 # doctest: +SKIP
    >>> {search.target: search.size for search in found.searches}     # doctest: +SKIP
    """
    flags = [part for name, value in changed.items() for part in (f"--{name.replace('__', '.')}", str(value))]
    settings, _ = parse(["-C", str(config), *flags])
    models = Datamodels.load(stage_folder(settings, "regress"))
    t = read_store(settings).meta.num_targets
    chosen = targets_named(targets, t, settings.verify.seed) if isinstance(targets, str) else targets_given(targets, t)
    with engine_of(settings, gpu) as engine:
        verify_targets(settings, engine, models, chosen)
        labels = engine.learner.train_labels
    return read_verified(verdicts_folder(settings) / VERDICTS, len(labels), t, int(labels.max()) + 1)
