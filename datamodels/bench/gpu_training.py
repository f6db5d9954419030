"""What `gpu-check` asks of the training: the libraries agree on the card, models are right on it, and fast."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodels.bench.gpu_check import GPU, Line, Sizes, at_least, at_most, holds
from datamodels.bench.one_at_a_time import Loop, resident_batches
from datamodels.bench.train import Trial, flops_per_image, group_trial, matmul_peak, timed_steps
from datamodels.data import Dataset, Split
from datamodels.settings import MEASURED, PLAIN, GroupSettings, StoreSettings, TrainingSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, describe_groups, device_named
from datamodels.training.devices import describe_device, on_gpu, wait_for
from datamodels.training.tuning import few_steps, for_a_few_steps

PAPER_MODELS = 300_000
GRAPH_TOLERANCE = 1e-9
H100_SECONDS = 3.0
PROFILED_STEPS = 10
# Which kernels are what, by what their names contain; the first that fits counts.
KINDS = {
    "compiled by Inductor": ("triton",),
    "batch normalisation": ("batch_norm", "bn_", "batchnorm"),
    "convolutions and products": ("conv", "gemm", "xmma", "cudnn", "cutlass", "wgrad", "dgrad", "sm90_", "sm80_", "mm", "bmm"),
    "pooling and reductions": ("pool", "reduce", "amax", "softmax"),
    "images gathered": ("index", "gather", "scatter"),
    "element by element, and copies": (
        "elementwise",
        "vectorized",
        "copy",
        "cat",
        "fill",
        "memcpy",
        "memset",
        "add",
        "mul",
        "relu",
    ),
}


def random_images(sizes: Sizes) -> Dataset:
    """Random images of ten classes."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        images = rng.integers(0, 256, (n, sizes.pixels, sizes.pixels, 3), dtype=np.uint8)
        return Split(torch.from_numpy(images), torch.from_numpy(rng.integers(0, 10, n)))

    return Dataset(split(sizes.train), split(sizes.test), tuple("abcdefghij"), "random images")


def tiny(sizes: Sizes) -> tuple[Dataset, TrainingSettings]:
    """A run of a second, with all that a recipe can have, in the recipe's own number format."""
    recipe = TrainingSettings(
        width=8, last_padding=0, epochs=3, batch_size=20, peak_lr=0.3, peak_epoch=1.0, max_shift=2, flip=True, cutout=4
    )
    data = random_images(dataclasses.replace(sizes, train=120, test=40, pixels=20))
    return data, dataclasses.replace(recipe, precision=sizes.recipe.precision)


def libraries(sizes: Sizes) -> list[Line]:
    """Driver, PyTorch, CuPy and cuDNN, and that all mean the same card."""
    device = device_named(sizes.gpu)
    if not on_gpu(device):
        return [
            Line("device", describe_device(device)),
            Line("PyTorch", torch.__version__),
            Line("NumPy, in the place of CuPy", np.__version__),
        ]
    cupy = importlib.import_module("cupy")
    card, driver = torch.cuda.get_device_properties(device), _driver()
    of_torch = driver.get(str(card.uuid).lower().removeprefix("gpu-"), ("not shown", ""))
    with cupy.cuda.Device(device.index) as current:
        of_cupy = current.pci_bus_id.lower()[-7:]
        computed = float(cupy.arange(4.0).sum())
    return [
        Line("device", describe_device(device)),
        holds("driver, which shows PyTorch's card", of_torch[1] or "not shown", "shown", bool(of_torch[1])),
        Line("PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"),  # type: ignore[no-untyped-call]
        Line("CuPy", f"{cupy.__version__}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}"),
        holds("card of PyTorch and of CuPy", f"{of_torch[0]} and {of_cupy}", "one", of_torch[0] == of_cupy),
        holds("a sum on the GPU by CuPy", f"{computed:g}", "6", computed == 6),
        Line("memory", card.total_memory / 1e9, "GB"),
    ]


def _driver() -> dict[str, tuple[str, str]]:
    """Of each card that the driver shows, by its UUID: bus, device and function, as 01:00.0, and the driver's version."""
    if shutil.which("nvidia-smi") is None:
        return {}
    line = ["nvidia-smi", "--query-gpu=uuid,pci.bus_id,driver_version", "--format=csv,noheader"]
    rows = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60).stdout.splitlines()
    found = (row.lower().split(", ") for row in rows if row.count(", ") == 2)
    return {uuid.removeprefix("gpu-"): (bus[-7:], version) for uuid, bus, version in found}


def same_bits(sizes: Sizes) -> list[Line]:
    """A block trained twice, and a captured step against a plain one."""
    device, (data, recipe) = device_named(sizes.gpu), tiny(sizes)
    masks, keys = draw_masks(0, range(5), len(data.train.labels), 0.5), [(0, i) for i in range(5)]
    lines = []
    for per_kernel in (1, 5):
        twice = [Trainer(data, recipe, device, per_kernel).margins(masks, keys) for _ in range(2)]
        differ = int((twice[0] != twice[1]).sum()) + int((~np.isfinite(twice[0])).sum())
        lines.append(at_most(f"margins that differ when trained twice, {per_kernel} a kernel", differ, 0))
    trainer = Trainer(data, recipe, device, 1, torch.float64)
    with trainer.at_work():
        replayed = trainer.group(masks, keys)
        final = replayed.train()[0]
        plain = trainer.group(masks, keys)
        for _ in range(max(plain.num_steps)):
            plain.advance()
        difference = float((final - plain.parameters).abs().max())
    return [*lines, at_most("parameters of a graph's replays less those of plain calls, float64", difference, GRAPH_TOLERANCE)]


def speed(sizes: Sizes) -> list[Line]:
    """Steps per second of each candidate and of the plain loop at the recipe; models and share of the peak of the best."""
    device, data, recipe = device_named(sizes.gpu), random_images(sizes), sizes.recipe
    peak = matmul_peak(device, torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32)
    lines = [Line("peak of a large product", peak / 1e12, "TFLOP/s")]
    wanted = GroupSettings(0, 0, MEASURED if on_gpu(device) else PLAIN)
    chosen, speeds = choose_groups(data, recipe, wanted, device)
    for groups, rate in speeds.items():
        mark = " (chosen)" * (groups == chosen)
        lines.append(Line(describe_groups(groups, device) + mark, rate if rate else "did not work", "steps/s" * bool(rate)))
    lines.append(at_least("programs that work", len({groups.program for groups in speeds if speeds[groups]}), 1))
    plain = Trainer(data, recipe, device)
    flops, loop = flops_per_image(plain) * recipe.batch_size, _loop_rate(plain)
    lines.append(Line("the plain loop, one model at a time", loop, "steps/s"))
    trainer = Trainer(data, recipe, device, chosen.models_per_kernel, program=chosen.program)
    trial = group_trial(StoreSettings(), trainer, chosen.models_at_once, 0)
    seconds = 1 / trial.models_per_s
    share = trial.steps_per_s * flops / peak
    return [
        *lines,
        at_least("the chosen one against the plain loop", trial.steps_per_s / loop, 1.0, "times"),
        Line("FLOP of a step of one model", flops / 1e12, "TFLOP"),
        at_least("share of the peak while training", share, sizes.matmul_share),
        _seconds(seconds, describe_device(device)),
        *_parts(trial),
        *_reckoned(seconds, sizes),
    ]


def _reckoned(seconds: float, sizes: Sizes) -> list[Line]:
    """How long the paper's models would take; on a processor the recipe is a tiny one, which says nothing of that."""
    what = f"{PAPER_MODELS} models of this recipe"
    return [Line(what, PAPER_MODELS * seconds / 86_400, "days")] if sizes.on == GPU else []


def _seconds(seconds: float, card: str) -> Line:
    """Seconds of a model, held to the bound where the card is the one that it was set for."""
    what = "seconds a model, drawing and evaluation included"
    return at_most(what, seconds, H100_SECONDS, "s") if "H100" in card else Line(what, seconds, "s")


def _parts(trial: Trial) -> list[Line]:
    whole = trial.start_s + trial.num_steps * trial.step_s + trial.evaluation_s
    return [
        Line("of it drawing, warm-up and capture", trial.start_s / whole),
        Line("of it steps", trial.num_steps * trial.step_s / whole),
        Line("of it evaluation", trial.evaluation_s / whole),
    ]


def _loop_rate(trainer: Trainer) -> float:
    """Steps per second of the loop that one would write, with the images on the device."""
    subset = np.arange(len(trainer.images.labels) // 2)
    with contextlib.closing(resident_batches(trainer, subset)) as batches:
        loop = Loop(trainer, subset, batches)
        loop.advance(0)
        _, step_s = timed_steps(lambda step: loop.advance(step + 1), loop.num_steps - 1, trainer.device)
    return 1 / step_s


def split(sizes: Sizes) -> list[Line]:
    """What the time of a step goes into, by the profiler: kernels on a GPU, operations on a processor."""
    device, data = device_named(sizes.gpu), random_images(sizes)
    recipe = for_a_few_steps(sizes.recipe, sizes.train)
    trainer = Trainer(data, recipe, device, 1)
    activities = [torch.profiler.ProfilerActivity.CUDA if on_gpu(device) else torch.profiler.ProfilerActivity.CPU]
    with trainer.at_work():
        group = few_steps(trainer, 1)
        advance = group.warmed_up()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(PROFILED_STEPS):
                group.step.zero_()
                advance()
            wait_for(device)
    spent: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        taken = event.self_device_time_total if on_gpu(device) else event.self_cpu_time_total
        spent[_kind(event.key)] += taken
    whole = sum(spent.values()) or 1.0
    told = [Line(f"of a step: {kind}", taken / whole) for kind, taken in sorted(spent.items(), key=lambda item: -item[1])]
    return [*told, at_least("kinds of work in the profile", len(spent), 2)]


def _kind(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def little_memory(sizes: Sizes) -> list[Line]:
    """With room for some models and not for all, groups are halved until they fit, and every model is trained."""
    device, models = device_named(sizes.gpu), 8
    data, recipe = tiny(sizes)
    width = 64 if on_gpu(device) else 8  # of a GPU's memory smaller ones would take too little to tell
    recipe = dataclasses.replace(recipe, width=width, batch_size=100, epochs=4, precision="float32")
    masks, keys = draw_masks(0, range(models), len(data.train.labels), 0.9), [(0, i) for i in range(models)]
    one = Trainer(data, recipe, device, 1).margins(masks[:1], keys[:1])
    trainer = Trainer(data, recipe, device)
    with _capped(device, 3 * 4 * recipe.batch_size * trainer.network.largest_map(20, 20)):
        found = trainer.margins(masks, keys)
    at_once = trainer.at_once or models
    return [
        at_most("models at once that were left of 8", at_once, models // 2),
        at_most("models without margins", int((~np.isfinite(found)).any(1).sum()), 0),
        at_most("margins of a model less those that it has alone", float(np.abs(found[0] - one[0]).max()), 0.1),
    ]


@contextlib.contextmanager
def _capped(device: torch.device, largest: int) -> Iterator[None]:
    """Let PyTorch have little memory: on a GPU six times so many bytes more than now, on a processor no tensor of more bytes.

    A forward pass keeps about six times its largest activation. A limit of the process would not do on a processor: libraries
    end by a signal where theirs cannot be had.
    """
    if not on_gpu(device):
        with _NoLargeTensor(largest):
            yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 6 * largest) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


class _NoLargeTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets PyTorch in this thread run out of memory when a tensor would have more bytes."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() > self.most:
                raise torch.OutOfMemoryError(
                    f"out of memory: {leaf.untyped_storage().nbytes()} bytes, and {self.most} are allowed"
                )
        return out
