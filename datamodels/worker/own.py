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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from datamodels.errors import InputError, shown
from datamodels.runs import deciding_settings, stage_seconds
from datamodels.settings import GroupSettings, Settings
from datamodels.store import ArraySpec, Meta, Store, read_meta
from datamodels.store.layout import Array
from datamodels.subsets import BoolArray, draw_masks
from datamodels.worker.arrays import declared_arrays
from datamodels.worker.blocks import Trained, train_blocks
from datamodels.worker.loop import open_or_create, state

Main = Callable[[int, BoolArray], Mapping[str, Any]]
NOT_FINITE = "its training function gave margins that are not finite"


def use_gpu_of_own(gpu: str) -> None:
    """Let one's own function see the one GPU that it is to use, or none, whatever it trains with."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if gpu == "cpu" else gpu


def own_function(name: str) -> Main:
    """The function that module:function names. Raises InputError when there is none; what its module raises is not caught."""
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
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"worker.main names {name}, and {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def train_missing_by(main: Main, settings: Settings) -> str:
    """Train every model of the run's store that is not there with one's own function; say what is there then.

    Raises InputError when the function gives anything else than what the store wants.
    """
    n, targets, total = settings.data.train_images, settings.data.test_images, settings.store.num_models

    def meta(groups: GroupSettings) -> Meta:
        margins = ArraySpec(settings.store.margin_dtype, (targets,))
        provenance = {**deciding_settings(settings), "groups": dataclasses.asdict(groups)}
        return Meta(total, n, targets, {"margins": margins, **declared_arrays(settings.store.arrays)}, provenance)

    size = settings.groups.models_at_once or 1
    groups = GroupSettings(size, min(settings.groups.models_per_kernel, size) or size)
    folder = open_or_create(settings, meta, lambda: groups)
    specs = read_meta(folder).arrays

    def train(ids: range) -> Trained:
        masks = draw_masks(settings.store.seed, ids, n, settings.store.alpha)
        rows = [call(main, i, mask, specs) for i, mask in zip(ids, masks, strict=True)]
        arrays = {name: np.stack([row[name] for row in rows]) for name in specs}
        failed = np.flatnonzero(~np.isfinite(arrays["margins"]).all(1))
        return Trained(masks, arrays, {ids[k]: NOT_FINITE for k in failed})

    if (Store(folder).missing < total).any():
        with stage_seconds(settings, "worker"):
            train_blocks(folder, total, size, train)
    return state(Store(folder), total)


def call(main: Main, index: int, mask: BoolArray, specs: Mapping[str, ArraySpec]) -> dict[str, Array]:
    """What the function gives for one model, in the store's types. Raises InputError when it is not what the store wants."""
    result = main(index, mask.copy())
    if not isinstance(result, Mapping) or set(result) != set(specs):
        given = sorted(result) if isinstance(result, Mapping) else type(result).__name__
        raise InputError(f"the training function gave {given} for model {index}; the store wants {sorted(specs)}")
    arrays = {}
    for name, spec in specs.items():
        array = as_array(result[name], f"the training function gave {name} for model {index}")
        if array.dtype.kind not in "biuf":
            raise InputError(f"the training function gave {name} for model {index} of type {array.dtype}, not real numbers")
        if array.shape != spec.shape:
            raise InputError(f"the training function gave {name} of shape {array.shape} for model {index}, not {spec.shape}")
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(spec.dtype)
    return arrays


def as_array(value: Any, what: str) -> Array:
    """A NumPy array of what a person's code gives: numbers, lists, arrays, or tensors, also on a GPU or with a gradient.

    Raises InputError, which begins with `what`, for anything else.
    """
    for step in ("detach", "cpu"):
        value = getattr(value, step)() if callable(getattr(value, step, None)) else value
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise InputError(f"{what} as no array: {shown(str(e), 200)}") from e
