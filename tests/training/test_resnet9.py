"""The stacked network against a plain torch.nn one, built here by the paper's description."""

import numpy as np
import pytest
import torch
from torch import nn

from datamodels.training.resnet9 import BATCH_NORM_EPS, ResNet9


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.inner(x)


def block(c_in, c_out, kernel, stride, padding):
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=BATCH_NORM_EPS), nn.ReLU())


def plain(channels, classes, w, last_padding):
    return nn.Sequential(
        block(channels, w, 3, 1, 1),
        block(w, 2 * w, 5, 2, 2),
        Residual(block(2 * w, 2 * w, 3, 1, 1), block(2 * w, 2 * w, 3, 1, 1)),
        block(2 * w, 4 * w, 3, 1, 1),
        nn.MaxPool2d(2),
        Residual(block(4 * w, 4 * w, 3, 1, 1), block(4 * w, 4 * w, 3, 1, 1)),
        block(4 * w, 2 * w, 3, 1, last_padding),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * w, classes, bias=False),
    ).double()


def load_row(model, network, row):
    """Copy one row of the parameter matrix into the plain model."""
    parts = iter(torch.split(row, [int(np.prod(s)) for s in network.shapes.values()]))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(next(parts).view_as(module.weight))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(next(parts))
                module.bias.copy_(next(parts))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(next(parts).view(module.in_features, module.out_features).T)


@pytest.fixture(params=[(1, 8, 1), (3, 16, 0)], ids=["grey 8×8", "rgb 16×16, no last padding"])
def case(request):
    channels, size, last_padding = request.param
    network, k = ResNet9(channels, 10, 3, last_padding), 3
    rows = np.stack([network.initial_parameters(np.random.default_rng(i)) for i in range(k)])
    parameters = torch.from_numpy(rows).double()
    # Gains and shifts away from their start, so that mixing them up would show.
    parameters += 0.1 * torch.randn(parameters.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(k, 6, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return network, parameters, x


def stacked(x):
    return x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)


def test_logits_gradients_and_statistics_equal_the_plain_networks(case):
    network, parameters, x = case
    parameters.requires_grad_()
    statistics = network.initial_state([(0, k) for k in range(len(x))], torch.device("cpu"), torch.float64)
    logits = network.forward(parameters, statistics, stacked(x), training=True)
    (gradient,) = torch.autograd.grad((logits**2).sum(), parameters)
    evaluated = network.forward(parameters, statistics, stacked(x), training=False)
    for k in range(len(x)):
        model = plain(network.channels, network.classes, network.width, network.last_padding)
        load_row(model, network, parameters[k])
        expected = model(x[k]) * 0.2
        torch.testing.assert_close(logits[k], expected, rtol=1e-9, atol=1e-9)
        wanted = torch.autograd.grad((expected**2).sum(), list(model.parameters()))
        linear = wanted[-1].T  # the plain layer keeps its weight transposed
        flat = torch.cat([g.flatten() for g in (*wanted[:-1], linear)])
        torch.testing.assert_close(gradient[k], flat, rtol=1e-8, atol=1e-9)
        model.eval()
        torch.testing.assert_close(evaluated[k], model(x[k]) * 0.2, rtol=1e-9, atol=1e-9)


def test_initial_parameters_follow_from_the_generator_and_have_pytorchs_spread():
    network = ResNet9(3, 10, 16, 0)
    row = network.initial_parameters(np.random.default_rng(0))
    assert row.shape == (network.num_parameters,)
    assert np.array_equal(row, network.initial_parameters(np.random.default_rng(0)))
    model = plain(3, 10, 16, 0)
    load_row(model, network, torch.from_numpy(row).double())
    fresh = plain(3, 10, 16, 0)
    for mine, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert mine.std(correction=0).item() == pytest.approx(theirs.std(correction=0).item(), rel=0.15)
