"""What the process of a node makes of the learner, and how much of a GPU it takes."""

import pytest
import torch

from datamodels.data import Dataset, Split
from datamodels.learners.recipe import Recipe
from datamodels.training import memory
from datamodels.worker.sending import recipe_of_sent, sent


class Lying:
    """A value that lies here already."""

    def __init__(self, value):
        self.get = lambda: value


def one_image():
    images = Split(torch.zeros((1, 8, 8, 1), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    return Dataset(images, images, ("0",), "a digest")


@pytest.mark.parametrize(("share", "parts"), [(0.5, [0.5 * memory.OF_ITS_PART]), (1.0, []), (0.0, [])])
def test_a_process_keeps_to_its_share_of_a_gpus_memory(settings, monkeypatch, share, parts):
    given = list[float]()
    monkeypatch.setattr(memory, "on_gpu", lambda _: share > 0)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, _: given.append(part))
    there = Lying(sent(one_image()))
    assert isinstance(recipe_of_sent(settings(), share, there, "cpu"), Recipe)  # type: ignore[arg-type]
    assert given == parts
