"""Randomness by the key: distributions as PyTorch's functions have them, one for each model, step and call."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from datamodels.training.channels import SideBySide
from datamodels.training.randomness import Keyed

N = 200_000
WIDE = torch.ones(N, dtype=torch.float64)


def keyed(seed=1, step=0, kind=Keyed):
    return kind(torch.tensor(seed), torch.tensor(step))


@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (lambda: torch.rand(N), stats.uniform()),
        (lambda: torch.rand((N,), dtype=torch.float64), stats.uniform()),
        (lambda: torch.rand_like(WIDE), stats.uniform()),
        (lambda: torch.randn(2, N // 2), stats.norm()),
        (lambda: torch.randn_like(WIDE), stats.norm()),
        (lambda: torch.normal(3 * WIDE, 2.0), stats.norm(3, 2)),
        (lambda: torch.normal(3.0, 2.0, (N,)), stats.norm(3, 2)),
        (lambda: torch.empty(N).normal_(1, 0.5), stats.norm(1, 0.5)),
        (lambda: torch.empty(N).uniform_(-1, 3), stats.uniform(-1, 4)),
        (lambda: torch.empty(N).exponential_(2.0), stats.expon(scale=0.5)),
    ],
)
def test_continuous_numbers_have_their_law(draw, law):
    with keyed():
        first, second = (draw().flatten().numpy() for _ in range(2))
    assert stats.kstest(first[:20_000].astype(np.float64), law.cdf).pvalue > 1e-3
    assert first.mean() == pytest.approx(law.mean(), abs=5 * law.std() / N**0.5)
    assert first.std() == pytest.approx(law.std(), rel=0.02)
    for other in (second, np.roll(first, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / N**0.5


@pytest.mark.parametrize(
    ("draw", "values", "chances"),
    [
        (lambda: torch.bernoulli(0.2 * WIDE), [0, 1], [0.8, 0.2]),
        (lambda: (0.2 * WIDE).bernoulli(), [0, 1], [0.8, 0.2]),
        (lambda: torch.empty(N).bernoulli_(0.2), [0, 1], [0.8, 0.2]),
        (lambda: torch.randint(3, (N,)), [0, 1, 2], [1 / 3] * 3),
        (lambda: torch.randint(-1, 2, (N,)), [-1, 0, 1], [1 / 3] * 3),
        (lambda: torch.randint(high=2, size=(N,)), [0, 1], [0.5, 0.5]),
        (lambda: torch.randint_like(WIDE, 2, 4), [2, 3], [0.5, 0.5]),
        (lambda: F.dropout(WIDE, 0.3), [0, 1 / 0.7], [0.3, 0.7]),
        (lambda: F.dropout1d(WIDE.view(-1, 2, 1), 0.3), [0, 1 / 0.7], [0.3, 0.7]),
        (lambda: torch.dropout(WIDE, 0.3, True), [0, 1 / 0.7], [0.3, 0.7]),
        (lambda: F.dropout(WIDE.clone(), 0.3, inplace=True), [0, 1 / 0.7], [0.3, 0.7]),
        (lambda: F.dropout(WIDE, 1.0), [0], [1]),
    ],
)
def test_choices_have_their_chances(draw, values, chances):
    with keyed():
        found = draw().flatten().double()
    for value, chance in zip(values, chances, strict=True):
        share = float((found - value).abs().lt(1e-9).double().mean())
        assert share == pytest.approx(chance, abs=5 * (chance * (1 - chance) / N) ** 0.5)


def test_dropout_of_channels_takes_whole_ones():
    x = torch.ones(50, 40, 3, 5)
    with keyed():
        found = {2: F.dropout2d(x, 0.3), 3: F.dropout3d(x[..., None], 0.3), 1: F.dropout1d(x[:, :, 0], 0.3)}
        single = F.dropout1d(x[0, :, 0], 0.5)
        selu = F.feature_alpha_dropout(x, 0.3, True)
    for each in (*found.values(), selu):
        flat = each.flatten(2)
        assert (flat == flat[:, :, :1]).all()
        assert 0.65 < (flat[:, :, 0] == flat.max()).double().mean() < 0.75
    assert (single == single[:, :1]).all()
    assert set(single[:, 0].tolist()) == {0.0, 2.0}


def test_alpha_dropout_keeps_mean_and_variance():
    with keyed():
        found = F.alpha_dropout(torch.randn(N), 0.3, True)
    assert abs(float(found.mean())) < 0.02
    assert float(found.var()) == pytest.approx(1, abs=0.02)


def test_a_permutation_has_each_number_once():
    with keyed():
        first, second = torch.randperm(50), torch.randperm(50)
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_without_dropout_is_pytorchs_and_with_it_drops(causal):
    q, k, v = torch.randn(3, 2, 4, 60, 8, dtype=torch.float64)
    oracle = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    with keyed():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, is_causal=causal), oracle)
        many = torch.stack([F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=causal) for _ in range(400)])
    assert (many[0] - oracle).abs().max() > 0.01
    # Dropout scales what it keeps: in the mean nothing changes.
    torch.testing.assert_close(many.mean(0), oracle, atol=6 * float(many.std(0).max()) / 20, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_drawn_where_nothing_is_dropped(training):
    with keyed() as mode:
        assert torch.equal(F.dropout(WIDE, 0.0 if training else 0.5, training), WIDE)
        assert torch.equal(F.alpha_dropout(WIDE, 0.5), WIDE)
    assert mode.calls == 0


def test_models_under_vmap_have_what_they_have_alone_and_steps_and_models_differ():
    def one(seed, step):
        with Keyed(seed, step):
            return F.dropout(torch.ones(1000), 0.5), torch.randn(1000)

    seeds, steps = torch.tensor([5, 6, 5, 5]), torch.tensor([0, 0, 1, 0])
    together = torch.vmap(one, randomness="error")(seeds, steps)
    for k in range(4):
        for mine, alone in zip(together, one(seeds[k], steps[k]), strict=True):
            assert torch.equal(mine[k], alone)
    for rows in together:
        assert torch.equal(rows[0], rows[3])
        assert np.abs(np.corrcoef(rows[:3].numpy()) - np.eye(3)).max() < 0.2


def test_what_names_a_generator_is_pytorchs():
    with keyed():
        found = torch.rand(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, torch.rand(5, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, *own: F.batch_norm(x, own[0], own[1], own[2], own[3], True),
        lambda x, *own: F.batch_norm(x, own[0], own[1], training=False),
        lambda x, *own: F.batch_norm(x, None, None, own[2], training=True),
        lambda x, *own: F.max_pool2d(x, 2),
        lambda x, *own: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x, *own: F.avg_pool2d(x, 2, 1),
        lambda x, *own: F.adaptive_avg_pool2d(x, 2),
        lambda x, *own: F.adaptive_max_pool2d(x, 1),
    ],
)
def test_channels_side_by_side_are_those_of_each_model(function, dim):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(*((5, 3, 6, 6) if dim is None else (3, 5, 3, 6, 6)), dtype=torch.float64, generator=rng)
    mean, variance, gain, shift = torch.rand(4, 3, 3, dtype=torch.float64, generator=rng) + 0.5
    gain.requires_grad_()
    alone = [t.clone() for t in (mean, variance)]

    def one(x, *own):
        with keyed(kind=SideBySide):
            return function(x, *own)

    found = torch.vmap(one, (dim if dim is None else 0, 0, 0, 0, 0))(x, mean, variance, gain, shift)
    if dim == 1:
        found = torch.vmap(one, (1, 0, 0, 0, 0))(x.transpose(0, 1), mean.clone(), variance.clone(), gain, shift)
    oracle = torch.stack([function(x if dim is None else x[k], *(t[k] for t in (*alone, gain, shift))) for k in range(3)])
    torch.testing.assert_close(found, oracle, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((mean, variance), tuple(alone), rtol=1e-9, atol=1e-12)
    if found.requires_grad:
        mine, theirs = (torch.autograd.grad(out.square().sum(), gain)[0] for out in (found, oracle))
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
