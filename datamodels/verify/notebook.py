"""Verification by one call, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodels.regress import Datamodels
from datamodels.runs import read_store, stage_folder, verdicts_folder
from datamodels.settings import Settings, parse
from datamodels.verify.certificate_making import Wanted
from datamodels.verify.certificate_making import certify as certified
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
    settings = _settings(config, changed)
    models = Datamodels.load(stage_folder(settings, "regress"))
    read_store(settings)
    with engine_of(settings, gpu) as engine:
        examples, seed = Examples(engine.learner), settings.verify.seed
        chosen = targets_named(targets, examples, seed) if isinstance(targets, str) else targets_given(targets, examples, seed)
        verify_targets(settings, engine, models, chosen)
    return read_verified(verdicts_folder(settings) / VERDICTS, examples.n, examples.t, examples.classes)


def certify(config: Path | str, target: int | str, gpu: str | None = None, **more: object) -> Path:
    """The new folder of a certificate of one answer that `verify` gave; see `certificate_making`.

    `more` are `method`, `out`, `put_back` and `with_data`, as `--method`, `--out`, `--putback` and `--with-data`, and settings
    as in `verify`. Raises InputError as the command does, and Refused where networks, trained once more, do not bear it out.

    >>> from datamodels.verify import certify                                  # doctest: +SKIP
    >>> certify("configs/digits.yaml", 13, out="for-a-friend")                 # doctest: +SKIP
    """
    own: dict[str, Any] = {name: more.pop(name) for name in ("method", "out", "put_back", "with_data") if name in more}
    if own.get("out") is not None:
        own["out"] = Path(own["out"])
    settings = _settings(config, more)
    read_store(settings)
    with engine_of(settings, gpu) as engine:
        return certified(settings, engine, Wanted(str(target), **own))[0]


def _settings(config: Path | str, changed: Mapping[str, object]) -> Settings:
    flags = [part for name, value in changed.items() for part in (f"--{name.replace('__', '.')}", str(value))]
    return parse(["-C", str(config), *flags])[0]
