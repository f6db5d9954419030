"""Verification by one call, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datamodels.data import load
from datamodels.regress import Datamodels
from datamodels.runs import stage_folder, verdicts_folder
from datamodels.settings import BUILT_IN, Settings, parse
from datamodels.training import device_named
from datamodels.verify.record import VERDICTS, Verified, read_verified
from datamodels.verify.run import verify_targets
from datamodels.verify.subject import Subject, built_in_subject, own_subject
from datamodels.verify.targets import targets_given, targets_named
from datamodels.worker import use_gpu_of_own


def verify(config: Path | str, targets: str | Iterable[int], gpu: str | None = None, **changed: object) -> Verified:
    """Verify targets of the run that a config file describes; what verify.json tells then.

    `targets` are test indices, or what `--targets` takes. Settings are changed by name, with two underscores for the dot:
    `verify__methods="datamodel,relabel"`. The run must have its models and weights. Raises InputError as the command does.

    >>> from datamodels.verify import verify                          # doctest: +SKIP
    >>> found = verify("configs/digits.yaml", [3, 7])                 # doctest: +SKIP
    >>> {search.target: search.size for search in found.searches}     # doctest: +SKIP
    """
    flags = [part for name, value in changed.items() for part in (f"--{name.replace('__', '.')}", str(value))]
    settings, _ = parse(["-C", str(config), *flags])
    t = settings.data.test_images
    chosen = targets_named(targets, t, settings.verify.seed) if isinstance(targets, str) else targets_given(targets, t)
    models = Datamodels.load(stage_folder(settings, "regress"))
    subject = subject_of(settings, gpu)
    verify_targets(settings, subject, models, chosen)
    n, t, classes = len(subject.train_labels), len(subject.test_labels), int(subject.train_labels.max()) + 1
    return read_verified(verdicts_folder(settings) / VERDICTS, n, t, classes)


def subject_of(settings: Settings, gpu: str | None) -> Subject:
    """What a run's models are, trained on the GPU of that number, on 'cpu', or on what is there."""
    if settings.worker.main == BUILT_IN:
        return built_in_subject(settings, load(settings), device_named(gpu))
    use_gpu_of_own(gpu)
    return own_subject(settings)
