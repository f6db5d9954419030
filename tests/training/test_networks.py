"""Which network a recipe names, and the data that networks are given: images of bytes or floats, and features."""

import dataclasses

import numpy as np
import pytest
import torch

from datamodels.data import Dataset, Split
from datamodels.errors import InputError
from datamodels.runs import deciding_settings
from datamodels.settings import PADDED, GroupSettings, TrainingSettings, parse
from datamodels.training import Trainer, choose_groups
from datamodels.training.batches import Batches, Images
from datamodels.training.draws import draw
from datamodels.training.group import augmentation_of
from tests.conftest import flags

CPU = torch.device("cpu")


def split(images):
    return Split(images, torch.arange(len(images)) % 3)


def of(train, test):
    return Dataset(split(train), split(test), tuple("abc"), "digest")


@pytest.fixture
def features():
    """12 training and 5 test features of 7 numbers, one of which is always the same."""
    values = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (17, 7)).astype(np.float32))
    values[:, 4] = 0.1
    return of(values[:12], values[12:])


def test_features_are_normalised_number_by_number_and_gathered_as_they_are(features, recipe):
    images = Images(features, recipe.max_shift, CPU, torch.float64)
    rows, theirs = (s.images.double().numpy() for s in (features.train, features.test))
    varied = [0, 1, 2, 3, 5, 6]
    for mine, whole in ((images.train, rows), (images.test, theirs)):
        oracle = (whole - rows.mean(0))[:, varied] / rows.std(0)[varied]
        np.testing.assert_allclose(mine[:, varied], oracle, atol=1e-9)
    assert not images.train[:, 4].abs().max() > 1e-7
    augmentation = augmentation_of(recipe, images)
    assert (augmentation.max_shift, augmentation.flip, augmentation.cutout) == (0, False, 0)
    draws = [draw((0, k), np.arange(12) % 2 == k, 3, 2, augmentation, images.height, images.width) for k in range(2)]
    batches = Batches(draws, images, augmentation)
    for step in range(len(draws[0].image)):
        x, labels = batches.at(torch.tensor([step]), slice(0, 2))
        assert x.shape == (3, 14)
        for k, d in enumerate(draws):
            assert torch.equal(x[:, 7 * k : 7 * k + 7], images.train[d.image[step]])
            assert torch.equal(labels[k], features.train.labels[d.image[step]])


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_channel_of_one_value_is_no_nan(kind, recipe):
    pixels = torch.randint(256, (10, 8, 8, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(kind)
    pixels[..., 1] = 7
    train = Images(of(pixels[:6], pixels[6:]), 1, CPU, torch.float64).train
    assert train.isfinite().all()
    assert not train[:, 1].any()
    assert float(train[:, 0].std(correction=0)) == pytest.approx(1)
    data = of(pixels[:6], pixels[6:])
    margins = Trainer(data, dataclasses.replace(recipe, batch_size=3), CPU).margins(np.ones((1, 6), bool), [(0, 0)])
    assert np.isfinite(margins).all()


def test_images_of_floats_are_those_of_bytes(digits, recipe):
    floats = [dataclasses.replace(s, images=s.images.float() / 16) for s in (digits.train, digits.test)]
    data = dataclasses.replace(digits, train=floats[0], test=floats[1])
    mine, theirs = (Images(d, 1, CPU, torch.float64) for d in (data, digits))
    torch.testing.assert_close(mine.pixels, theirs.pixels, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine.test, theirs.test, rtol=1e-9, atol=1e-9)


def test_resnet9_takes_no_features(features, recipe):
    with pytest.raises(InputError, match=r"training\.network resnet9 takes images, and the data are features, 7 each"):
        Trainer(features, recipe, CPU)


def test_programs_of_resnet9_are_of_no_other_network(digits):
    other, padded = TrainingSettings(network="my_module:Net"), GroupSettings(4, 0, PADDED)
    for refused in (lambda: Trainer(digits, other, CPU, program=PADDED), lambda: choose_groups(digits, other, padded, CPU)):
        with pytest.raises(InputError, match=r"groups\.program padded is of resnet9 alone; my_module:Net is trained by"):
            refused()


def test_a_run_names_its_network_only_where_it_is_not_the_default(tmp_path):
    before, other = (parse(flags(tmp_path, **more))[0] for more in ({}, {"training__network": "my_module:Net"}))
    assert "network" not in deciding_settings(before)["training"]
    assert deciding_settings(other)["training"]["network"] == "my_module:Net"


@pytest.mark.parametrize("name", ["resnet18", "my_module:", ":Net", "my_module"])
def test_a_network_is_one_of_a_few_or_of_a_module(tmp_path, name):
    with pytest.raises(InputError, match=r"training\.network"):
        parse(flags(tmp_path, training__network=name))
