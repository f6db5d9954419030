"""What the tests share: a small run on real digits, and its settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from datamodels.data import Dataset, Split
from datamodels.data.sources import read_source
from datamodels.learners.function import Function
from datamodels.learners.sources import imported_sources
from datamodels.resources import CONFIGS
from datamodels.settings import DataSettings, Settings, TrainingSettings, parse
from datamodels.worker import Local, engine_of, train_missing
from tests import started
from tests.standins.cuda_cpp import have_compiler
from tests.standins.strict_cupy import StrictCupy

# The tests' networks are so small that two threads would wait for each other more than they work.
torch.set_num_threads(1)

LONG = (
    "worker/test_on_ray.py",
    "bench/test_gpu_check.py",
    "report/test_road.py",
    "robustness/",
    "data/test_road.py",
)
"""What is begun first where several processes test: the last file to be begun is the one that the others wait for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let long files come first; the others stay in their order."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((k for k, name in enumerate(LONG) if file.startswith(name)), len(LONG))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def draw_the_same_whatever_ran_before() -> None:
    """What a test draws from PyTorch's own generator is a function of the test: else it hangs on what its process has run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def restore_the_environment() -> Iterator[None]:
    """What a test, or a function of one's own that it lets train here, has set: which GPUs are seen, for one."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def forget_modules_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a file of tests has written and imported are not found by the next one, which may give the same names."""
    yield
    for name, module in list(sys.modules.items()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if file is not None and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
            del sys.modules[name]
    imported_sources.cache_clear()


SMALL = {
    "data.train_images": 60,
    "data.test_images": 20,
    "training.width": 4,
    "training.epochs": 3,
    "training.batch_size": 10,
    "training.peak_epoch": 1,
    "groups.models_at_once": 4,
    "store.num_models": 10,
    "store.alpha": 0.5,
    "verify.models": 2,
    "verify.most_models": 4,
    "verify.base_models": 4,
    "verify.sizes": "5",
    "verify.subsets": 0,
    "verify.counterfactuals": "none",
    "verify.random_targets": 2,
    "regress.heldout": 0.2,
    "regress.prior": "none",
    "prior.models": 4,
}


def flags(run_dir: Path, **changed: Any) -> list[str]:
    """Command-line flags of a small run; `store__alpha=0.3` changes store.alpha."""
    values = {**SMALL, "run.dir": str(run_dir), **{key.replace("__", "."): value for key, value in changed.items()}}
    return ["-C", str(CONFIGS / "digits.yaml"), *(part for key, value in values.items() for part in (f"--{key}", str(value)))]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a small run in a folder of its own."""
    return lambda **changed: parse(flags(tmp_path / "run", **changed))[0]


@pytest.fixture(scope="session")
def command() -> Callable[..., started.Done]:
    """Runs `python -m datamodels.STAGE` with the given arguments, in `cwd`; `path` has modules of one's own."""

    def run(stage: str, *args: object, cwd: Path | None = None, path: Path | None = None) -> started.Done:
        return started.run(f"datamodels.{stage}".rstrip("."), *args, cwd=cwd, path=path)

    return run


def built_in(settings: Settings, data: Dataset | None = None, gpu: str = "cpu") -> Local:
    """The built-in recipe on a processor, or on other devices."""
    return engine_of(settings, gpu, data)


def trained(settings: Settings, data: Dataset) -> str:
    """Train what a run lacks by the built-in recipe on a processor."""
    return train_missing(settings, built_in(settings, data))


def by(settings: Settings, function: Callable[..., Any]) -> Local:
    """A training function of the test's own, in this process."""
    return Local(lambda _: Function(settings, function))


def dataset(n: int, t: int) -> Dataset:
    """Real digits, N to train on and T to test on, without a folder."""
    raw = read_source(DataSettings("digits", train_images=n, test_images=t))
    train, test = (Split(torch.from_numpy(s.images), torch.from_numpy(s.labels)) for s in raw[:2])
    return Dataset(train, test, raw.class_names, "digest of the test's own")


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """60 training and 20 test digits."""
    return dataset(60, 20)


@pytest.fixture(scope="session")
def recipe() -> TrainingSettings:
    """A recipe that uses everything a recipe can, and takes a moment."""
    return TrainingSettings(
        width=4,
        last_padding=1,
        epochs=3,
        batch_size=10,
        peak_lr=0.3,
        peak_epoch=1.0,
        nesterov=True,
        max_shift=1,
        flip=True,
        cutout=2,
    )


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> StrictCupy:
    """A strict stand-in for CuPy with one GPU, which `import cupy` gives; `regress.device` gpu is on it then."""
    if not have_compiler:
        pytest.skip("no C++ compiler here")
    cupy = StrictCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.fixture
def only_ends_of_bars(monkeypatch):
    """Progress says of every bar what was done, and nothing else, however fast or slow the machine."""
    monkeypatch.setattr("datamodels.progress.DONE_S", 0.0)
    for name in ("WORD_AFTER_S", "RARELY_S", "OFTEN_S", "TOOK_S"):
        monkeypatch.setattr(f"datamodels.progress.{name}", 1e9)
