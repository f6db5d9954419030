"""What the tests of the GPU run on: the processor always, as a check of the tests themselves, and a GPU where there is one."""

import pytest
import torch

from datamodels.training import device_named


@pytest.fixture(params=["processor", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The device that a test of the training runs on."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU here")
    return device_named("cpu" if request.param == "processor" else "0")
