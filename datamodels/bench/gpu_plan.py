"""The checks of `gpu-check`, in their order, and how large they are on a GPU and on the processor."""

from __future__ import annotations

import torch

from datamodels.bench import gpu_regress, gpu_training
from datamodels.bench.gpu_check import GPU, PLACES, PROCESSOR, Named, Sizes, checkout, run_checks, summary
from datamodels.bench.record import Record
from datamodels.errors import InputError
from datamodels.settings import Settings, TrainingSettings

CHECKS = (
    Named("libraries", gpu_training.libraries, 60),
    Named("tests/gpu", gpu_regress.suite, 200),
    Named("the same bits", gpu_training.same_bits, 60),
    Named("little memory", gpu_training.little_memory, 60),
    Named("speed of training", gpu_training.speed, 240),
    Named("what a step goes into", gpu_training.split, 60),
    Named("regression", gpu_regress.regression, 180),
    Named("the whole road", gpu_regress.road, 120),
)
ROAD = (
    *("--data.train_images", "60", "--data.test_images", "20", "--training.width", "4", "--training.epochs", "3"),
    *("--training.batch_size", "10", "--training.peak_epoch", "1", "--groups.models_at_once", "4", "--store.num_models", "100"),
    *("--prior.models", "2", "--verify.models", "2", "--verify.most_models", "2", "--verify.base_models", "2"),
    *("--verify.subsets", "0", "--verify.counterfactuals", "none", "--verify.random_targets", "2", "--verify.sizes", "3"),
)
TINY = TrainingSettings(width=4, last_padding=0, epochs=2, batch_size=20, peak_epoch=1.0, max_shift=2, flip=True, cutout=4)


def sizes_on(on: str, gpu: str | None, settings: Settings) -> Sizes:
    """How large the checks are: on a GPU the recipe of the settings, that of configs/cifar10.yaml if none are given."""
    if on == PROCESSOR:
        tests = ("tests/gpu/test_training.py::test_padded_images_train_the_same_models",)
        return Sizes(on, "cpu", TINY, 200, 40, 20, 60, 400, 8, 10, 8, ROAD, tests, matmul_share=0, gemm_share=0)
    if gpu == "cpu":
        raise InputError("--gpu is cpu, but gpu-check is to judge a GPU; --on processor tries the script itself")
    n, t, recipe = settings.data.train_images or 50_000, settings.data.test_images or 10_000, settings.training
    shares = {"matmul_share": 0.4, "gemm_share": 0.3}
    return Sizes(on, gpu or "0", recipe, n, t, 32, 20_000, 40_000, 2_048, 10, 64, ROAD, ("tests/gpu",), **shares)


def gpu_check(settings: Settings, on: str, gpu: str | None) -> tuple[Record, str]:
    """All checks; the record for JSON, and the verdict as a line. Raises InputError for other words, or without a checkout."""
    if on not in PLACES:
        raise InputError(f"--on is {' or '.join(PLACES)}, not {on!r}")
    checkout()
    if on == PROCESSOR:
        torch.set_num_threads(1)
    record = run_checks(sizes_on(on, gpu, settings), CHECKS, apart=on == GPU)
    return record, summary(record)
