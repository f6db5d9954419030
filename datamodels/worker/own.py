"""Models of one's own: `worker.main` names a function that trains one model; store, regression and verification serve it too.

    def train(index, mask):
        "Train a model on the examples where mask, bool (N,), is True."
        return {"margins": ...}  # (T,), and whatever store.arrays declares

N is data.train_images and T data.test_images. Everything random about a model should follow from `index`, so that the same
index and mask give the same model.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.errors import InputError, in_a_sentence, one_line, shown
from datamodels.progress import say
from datamodels.runs import deciding_settings, no_prior_of_own, stage_seconds
from datamodels.settings import PLAIN, GroupSettings, Settings
from datamodels.store import ArraySpec, Meta, Store, read_meta
from datamodels.store.layout import Array
from datamodels.store.precision import FEWEST, MARGINS, BeyondError, coarse, coarse_margins, rounded
from datamodels.subsets import BoolArray, draw_masks
from datamodels.training.devices import visible
from datamodels.worker.arrays import declared_arrays
from datamodels.worker.blocks import Train, Trained, train_blocks
from datamodels.worker.loop import open_or_create, state

Main = Callable[[int, BoolArray], Mapping[str, Any]]
ENOUGH = 16
"""After so many models, or a block where that is more, of which not one could be trained, the function is held to be broken."""
NOT_FINITE = "its training function gave margins that are not finite"


def use_gpu_of_own(gpu: str | None) -> None:
    """Let one's own function see the one GPU that it is to use, or none, whatever it trains with; None changes nothing.

    CUDA reads the variable when it is first asked, so that nothing may have asked before. Raises InputError as `visible` does.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible(gpu)


def own_function(name: str) -> Main:
    """The function that module:function names.

    Raises InputError when there is none, or its module ends the process; what else the module raises is not caught.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise InputError(f"worker.main takes module:function, such as my_module:train, not {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module_name}.".startswith(f"{e.name}."):
            raise
        raise InputError(f"worker.main names {name}, and there is no module {module_name} here") from e
    except (SystemExit, GeneratorExit) as e:  # as a script does at its end: the worker would end as if all were well
        raise InputError(f"worker.main names {name}, and importing {module_name} raised {one_line(e)}{_where(e)}") from e
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"worker.main names {name}, and {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def train_missing_by(main: Main, settings: Settings) -> str:
    """Train every model of the run's store that is not there with one's own function; say what is there then.

    A model at which the function fails is given up, with its words. Raises InputError when it fails at every one (`with_hope`),
    or gives anything else than what the store wants.
    """
    missing_prior = no_prior_of_own(settings)
    if missing_prior is not None:
        say(f"worker: {missing_prior}")
    n, targets, total = settings.data.train_images, settings.data.test_images, settings.store.num_models

    def meta(groups: GroupSettings) -> Meta:
        margins = ArraySpec(settings.store.margin_dtype, (targets,))
        provenance = {**deciding_settings(settings), "groups": dataclasses.asdict(groups)}
        return Meta(total, n, targets, {"margins": margins, **declared_arrays(settings.store.arrays)}, provenance)

    size = settings.groups.models_at_once or 1
    groups = GroupSettings(size, min(settings.groups.models_per_kernel, size) or size, PLAIN)
    folder = open_or_create(settings, meta, lambda: groups)
    specs = read_meta(folder).arrays

    look = _Look(folder)

    def train(ids: range) -> Trained:
        look()
        masks = draw_masks(settings.store.seed, ids, n, settings.store.alpha)
        failures, rows = dict[int, str](), list[dict[str, Array]]()
        for i, mask in zip(ids, masks, strict=True):
            others_fit = len(rows) > len(failures) or len(Store(folder).done) > 0
            rows.append(_called(main, i, mask, specs, failures, others_fit, look.see))
        arrays = {name: np.stack([row[name] for row in rows]) for name in specs}
        not_finite = np.flatnonzero(~np.isfinite(arrays["margins"]).all(1))
        return Trained(masks, arrays, {**dict.fromkeys((ids[k] for k in not_finite.tolist()), NOT_FINITE), **failures})

    if (Store(folder).missing < total).any():
        with stage_seconds(settings, "worker"):
            train_blocks(folder, total, size, with_hope(train, Store(folder), total))
        look(last=True)
    return state(Store(folder), total)


def _called(
    main: Main,
    index: int,
    mask: BoolArray,
    specs: Mapping[str, ArraySpec],
    failures: dict[int, str],
    others_fit: bool,
    see: Callable[[Array], None],
) -> dict[str, Array]:
    """As `call`, but a failure is noted, and zeros stand for what it would have given.

    Among models whose numbers fit the store's format, one whose do not has failed. Where no other's did, none will: that is
    raised.
    """
    try:
        return call(main, index, mask, specs, see)
    except (FunctionError, BeyondError) as e:
        if isinstance(e, BeyondError) and not others_fit:
            raise
        failures[index] = str(e)
        return {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}


class FunctionError(Exception):
    """One's own training function failed on a subset; in one line, with its words."""


def with_hope(train: Callable[[range], Trained], store: Store, total: int) -> Train:
    """`train`, but models of which none could be trained are not given up until one of the store, or of this process, could be.

    Such blocks are held back. Raises InputError, and gives up none, when the first ENOUGH models have failed, or a block where
    that is more, or all that are missing: then it is not their subsets.
    """
    held: dict[int, Trained] = {}
    wanted = min(ENOUGH, int((store.missing < total).sum()))
    hopeful = False

    def hopeful_train(ids: range) -> Trained | None:
        nonlocal hopeful
        hopeful = hopeful or len(Store(store.folder).done) > 0
        trained = held.pop(ids.start, None) or train(ids)
        hopeful = hopeful or len(trained.failures) < len(ids)
        if hopeful:
            return trained
        held[ids.start] = trained
        failures = {i: why for each in held.values() for i, why in each.failures.items()}
        if len(failures) >= wanted:
            first = min(failures)
            told = f"{len(failures)} models were tried, and not one could be trained; model {first}: {failures[first]}"
            raise InputError(f"{told}; none was given up, so mend the function and run the same command again")
        return None

    return hopeful_train


def call(
    main: Main, index: int, mask: BoolArray, specs: Mapping[str, ArraySpec], see: Callable[[Array], None] | None = None
) -> dict[str, Array]:
    """What the function gives for one model, in the store's types; `see` is shown the margins as they were before.

    Raises FunctionError when it fails, InputError when it gives what the store does not want, and BeyondError when a number is
    beyond its type. What the machine is to blame for, such as memory that does not suffice, comes through: the subset is not
    given up for it.
    """
    with _of_its_own("its training function raised"):
        result = main(index, mask.copy())
    with _of_its_own("what its training function gave raised"):
        given = {name: result[name] for name in result} if isinstance(result, Mapping) else None
    if given is None or set(given) != set(specs):
        names = sorted(map(_named, given)) if given is not None else type(result).__name__
        raise InputError(f"the training function gave {names} for model {index}; the store wants {sorted(specs)}")
    arrays = {}
    for name, spec in specs.items():
        # A copy: the function may fill the same array for the next model.
        array = np.array(as_array(given[name], f"the training function gave {name} for model {index}"))
        if array.dtype.kind not in "biuf":
            raise InputError(f"the training function gave {name} for model {index} of type {array.dtype}, not real numbers")
        if array.shape != spec.shape:
            raise InputError(f"the training function gave {name} of shape {array.shape} for model {index}, not {spec.shape}")
        arrays[name] = rounded(array, spec.dtype, f"{name} of model {index}")
        if see is not None and name == MARGINS:
            see(array)
    return arrays


@contextmanager
def _of_its_own(what: str) -> Iterator[None]:
    """Make a FunctionError of whatever a person's code raises, SystemExit too, but not of Ctrl-C and the machine's faults."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        if in_a_sentence(e) is not None:
            raise
        raise FunctionError(f"{what} {one_line(e)}{_where(e)}") from e


def _named(key: Any) -> str:
    """A key of what the function gave, which need not be text, as a name to show."""
    return shown(key, 80) if isinstance(key, str) else type(key).__name__


class _Look:
    """Says once, as soon as there are models enough to tell, when their margins are kept too coarsely.

    By the margins of this process's models before they are rounded; the store's own only where these stay too few.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.done, self.seen = folder, False, list[Array]()
        self.dtype = read_meta(folder).arrays[MARGINS].dtype

    def see(self, margins: Array) -> None:
        """Take in the margins (T,) of one model."""
        if not self.done and np.isfinite(margins).all():
            self.seen.append(margins.astype(np.float64))

    def __call__(self, last: bool = False) -> None:
        if self.done or (len(self.seen) < FEWEST and not last):
            return
        found = coarse_margins(np.stack(self.seen), self.dtype) if len(self.seen) >= FEWEST else coarse(Store(self.folder))
        self.done = True
        self.seen.clear()
        if found is not None:
            say(f"worker: {found}")


def _where(e: BaseException) -> str:
    """The file and the line that raised an exception."""
    frames = [frame for frame in traceback.extract_tb(e.__traceback__) if frame.filename != __file__]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def as_array(value: Any, what: str) -> Array:
    """A NumPy array of what a person's code gives: numbers, lists, arrays, or tensors, also on a GPU or with a gradient.

    What a masked array masks is no number, and becomes NaN. Raises InputError, which begins with `what`, for anything else.
    """
    try:
        for step in ("detach", "cpu"):
            value = getattr(value, step)() if callable(getattr(value, step, None)) else value
        return np.asarray(_unmasked(value))
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a person's class may raise anything
        if in_a_sentence(e) is not None:
            raise
        raise InputError(f"{what} as no array: {one_line(e, 200)}") from e


def _unmasked(value: Any) -> Any:
    """The same with NaN for what is masked, in lists of masked arrays too; `np.asarray` takes what lies under the mask."""
    if isinstance(value, (list, tuple)):
        return [_unmasked(each) for each in value]
    if not isinstance(value, np.ma.MaskedArray) or not np.ma.is_masked(value):
        return value
    return np.where(np.ma.getmaskarray(value), np.nan, np.ma.getdata(value))
