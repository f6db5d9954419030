"""The road of a data set of one's own: written by another library, prepared for a run, loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from datamodels.data import Dataset, load, prepare
from datamodels.settings import Settings


@pytest.fixture
def chosen(settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run on all of a data set; `source="x"` sets data.source."""

    def of(dataset: str, **data: Any) -> Settings:
        values = {"dataset": dataset, "train_images": 0, "test_images": 0, **data}
        return settings(**{f"data__{name}": str(value) for name, value in values.items()})

    return of


@pytest.fixture
def loaded(chosen: Callable[..., Settings]) -> Callable[..., Dataset]:
    """The data of a run, after they have been written as .npy files and read back."""

    def of(dataset: str, **data: Any) -> Dataset:
        wanted = chosen(dataset, **data)
        prepare(wanted, use_ffcv=False)
        return load(wanted)

    return of
