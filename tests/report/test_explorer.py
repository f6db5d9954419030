"""What the explorer makes of weights, against the same by brute force; thumbnails, against the pictures that went in."""

import base64
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from datamodels.data import Dataset, Split
from datamodels.report import explorer, sprites
from datamodels.report.gallery import FEATURES, PICTURES, Gallery
from datamodels.report.scripts import TYPES, blocks, packed, plain, write_script
from tests.learners.test_given import but

N, T, CLASSES = 40, 23, 4
LABELS, TARGET_LABELS = np.arange(N) % CLASSES, np.arange(T) % CLASSES


def drawn(share, seed=0):
    """Weights (N, T), of which so large a share is not 0."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(N, T)) * (rng.random((N, T)) < share)).astype(np.float32)


def nothing(*_):
    return None


@pytest.mark.parametrize("share", [1.0, 0.3, 0.04, 0.0])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_strongest_are_the_largest_of_either_sign_in_order(share, k):
    weights = drawn(share)
    found = explorer.strongest(weights, k)
    for row in range(N):
        for sign, indices, values in ((1, found.carriers, found.carried), (-1, found.opponents, found.opposed)):
            order = [j for j in np.argsort(-sign * weights[row], kind="stable") if sign * weights[row, j] > 0][:k]
            shown = indices[row][indices[row] != explorer.NONE]
            assert shown.tolist() == order
            assert values[row, : len(order)].tolist() == weights[row, order].tolist()
            assert not values[row, len(order) :].any()


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_of_any_size_give_the_same(block):
    weights = drawn(0.5)
    whole = explorer.by_target(weights, LABELS, CLASSES, T, nothing)
    parts = explorer.by_target(weights, LABELS, CLASSES, block, nothing)
    assert all((a == b).all() for a, b in zip(whole.strongest, parts.strongest, strict=True))
    assert whole.strongest.carriers.tolist() == explorer.strongest(weights.T.copy(), explorer.STRONGEST).carriers.tolist()
    expected = np.stack([weights[label == LABELS].sum(0) for label in range(CLASSES)])
    np.testing.assert_allclose(parts.by_class, expected, rtol=1e-5, atol=1e-6)
    back = explorer.by_image(weights, block, nothing)
    assert back.strongest.carriers.tolist() == explorer.strongest(weights, explorer.BACK).carriers.tolist()
    np.testing.assert_allclose(back.total, weights.sum(1), rtol=1e-5, atol=1e-6)


def test_classes_that_are_not_known_give_nothing():
    found = explorer.by_target(drawn(1.0), np.full(N, -1), 1, T, nothing)
    assert not found.by_class.any()
    assert np.isnan(explorer.between_classes(found.by_class, np.full(T, -1), 1)).all()


def test_between_classes_is_the_mean_over_targets_of_sums_over_images():
    weights = drawn(1.0)
    gives = explorer.between_classes(explorer.by_target(weights, LABELS, CLASSES, 5, nothing).by_class, TARGET_LABELS, CLASSES)
    for a in range(CLASSES):
        for b in range(CLASSES):
            part = weights[a == LABELS][:, b == TARGET_LABELS]
            assert gives[a, b] == pytest.approx(part.sum() / part.shape[1], rel=1e-4, abs=1e-5)


def test_times_among_counts_targets():
    weights = drawn(0.6)
    found = explorer.strongest(weights.T.copy(), explorer.STRONGEST)
    counts = [sum(i in found.carriers[t, : explorer.AMONG] for t in range(T)) for i in range(N)]
    assert explorer.times_among(found.carriers, N).tolist() == counts
    listed = explorer.most_of(np.array(counts), weights.sum(1))
    assert [count for _, count in listed] == sorted((c for c in counts if c), reverse=True)[: explorer.LISTED]


def test_alike_are_those_with_the_largest_cosines():
    weights = drawn(0.7)
    found = explorer.alike(weights)
    x = weights / np.linalg.norm(weights, axis=0)
    cosines = x.T @ x
    np.fill_diagonal(cosines, -np.inf)
    assert found.exact
    for target in range(T):
        order = np.argsort(-cosines[target])[: explorer.NEIGHBOURS]
        np.testing.assert_allclose(found.cosines[target], cosines[target, order], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cosines[target, found.neighbours[target]], cosines[target, order], rtol=1e-4, atol=1e-5)


def of_low_rank(seed=1, noise=0.02):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(N, CLASSES))
    return (centres[:, TARGET_LABELS] + noise * rng.normal(size=(N, T))).astype(np.float32)


def test_cosines_of_leading_directions_rank_as_those_of_the_weights(monkeypatch):
    weights = of_low_rank()
    exact = explorer.alike(weights)
    monkeypatch.setattr(explorer, "MOST_WORK", 0)
    monkeypatch.setattr(explorer, "DIRECTIONS", 8)
    near = explorer.alike(weights)
    assert not near.exact
    assert spearmanr(near.cosines.ravel(), exact.cosines.ravel()).statistic > 0.9
    same = [TARGET_LABELS[near.neighbours[t, :4]] == TARGET_LABELS[t] for t in range(T)]
    assert np.all(same)


def test_leading_directions_are_those_of_the_singular_value_decomposition():
    weights = of_low_rank(noise=0.0)
    lengths = np.linalg.norm(weights, axis=0)
    found = explorer.leading(weights, lengths, CLASSES)
    x = weights / lengths
    np.testing.assert_allclose(found @ found.T, x.T @ x, atol=1e-4)


def test_the_map_puts_those_together_whose_weights_are_alike_and_is_always_the_same():
    labels = np.arange(80) % CLASSES
    centres = np.random.default_rng(2).normal(size=(N, CLASSES))
    weights = (centres[:, labels] + 0.3 * np.random.default_rng(3).normal(size=(N, 80))).astype(np.float32)
    places = explorer.alike(weights).places
    assert places.min() >= 0 <= places.max() <= 1
    assert (places == explorer.alike(weights).places).all()
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    same = labels[:, None] == labels[None]
    assert apart[same].mean() < 0.5 * apart[~same].mean()


@pytest.mark.parametrize("t", [1, 2, 3])
def test_few_targets_have_few_neighbours_and_a_place_each(t):
    found = explorer.alike(drawn(1.0)[:, :t])
    assert found.neighbours.shape == (t, t - 1)
    assert np.isfinite(found.places).all()
    assert found.places.shape == (t, 2)
    assert np.isfinite(explorer.alike(np.zeros((N, t), np.float32)).places).all()


def test_wrong_labels_are_doubted_first():
    """Ridge regressions on random subsets of blobs, of which some labels are wrong; the weights are those of least squares."""
    rng = np.random.default_rng(0)
    n, t = 60, 60
    centres = 2.0 * rng.normal(size=(3, 8))
    labels, tests = np.arange(n) % 3, np.arange(t) % 3
    x, z = centres[labels] + rng.normal(size=(n, 8)), centres[tests] + rng.normal(size=(t, 8))
    wrong = rng.choice(n, 6, replace=False)
    told = labels.copy()
    told[wrong] = (told[wrong] + 1) % 3
    masks, margins = rng.random((1500, n)) < 0.5, []
    for mask in masks:
        y = np.eye(3)[told[mask]]
        b = np.linalg.solve(x[mask].T @ x[mask] + np.eye(8), x[mask].T @ y)
        scores = z @ b
        own = scores[np.arange(t), tests]
        scores[np.arange(t), tests] = -np.inf
        margins.append(own - scores.max(1))
    centred = masks - masks.mean(0)
    weights = np.linalg.lstsq(centred, np.array(margins) - np.mean(margins, 0), rcond=None)[0]
    doubted = [image for image, _ in explorer.doubts(weights.sum(1), told)]
    assert len(set(doubted[:6]) & set(wrong)) >= 5
    assert explorer.doubts(weights.sum(1), np.full(n, -1)) == []


def test_twins_are_found_and_told_by_their_difference():
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (k, 16, 12, 3)).astype(np.uint8) for k in (50, 30))
    test[4] = train[17]
    test[9] = np.clip(train[3].astype(int) + 4, 0, 255)

    def looks(of_train, indices):
        return (train if of_train else test)[list(indices)]

    found = explorer.twins(sprites.from_afar(test), sprites.from_afar(train), looks)
    assert tuple(found[0]) == (4, 17, 0.0)
    assert found[1][:2] == (9, 3)
    assert found[1].difference == pytest.approx(np.sqrt(((train[3].astype(float) - test[9]) ** 2).mean()))
    assert all(a.difference <= b.difference for a, b in itertools.pairwise(found))


# Thumbnails.


def cut(folder, name, index, tiles):
    """A thumbnail as the page shows it, out of its file."""
    number, place = divmod(index, sprites.PER_FILE)
    sheet = np.asarray(Image.open(folder / f"{name}-{number}.{tiles.extension}"))
    y, x = place // sprites.COLUMNS * tiles.step[1], place % sprites.COLUMNS * tiles.step[0]
    return sheet[y : y + tiles.height, x : x + tiles.width]


@pytest.mark.parametrize(("shape", "number"), [((8, 8, 1), 100), ((5, 9, 3), 65), ((32, 32, 3), 1000), ((40, 30, 3), 1000)])
def test_thumbnails_are_the_pictures(tmp_path, shape, number):
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (number, 1, 1, shape[2]))
    pictures = np.broadcast_to(flat, (number, *shape)).astype(np.uint8)
    tiles = sprites.tiles_for(shape, number)
    seen = sprites.write_sprites(tmp_path, "train", number, tiles, lambda which: pictures[list(which)], nothing)
    assert len(list(tmp_path.iterdir())) == -(-number // sprites.PER_FILE)
    for index in (0, 1, 7, 8, number - 1):
        found = cut(tmp_path, "train", index, tiles).reshape(tiles.height, tiles.width, -1)
        apart = np.abs(found.astype(int) - pictures[index, 0, 0])
        # What a codec does to the edge between two thumbnails reaches a pixel or two.
        assert apart.max() == 0 if tiles.extension == "png" else apart[3:-3, 3:-3].max() <= 6
    np.testing.assert_allclose(seen, np.repeat(pictures[:, 0, 0].mean(1)[:, None], 64, 1), atol=1e-3)


def test_thumbnails_of_many_large_pictures_keep_to_the_budget():
    assert sprites.tiles_for((8, 8, 1), 700)[:2] == (8, 8)
    assert sprites.tiles_for((32, 32, 3), 60_000)[:2] == (32, 32)
    assert sprites.tiles_for((224, 112, 3), 300)[:2] == (64, 128)
    wide = sprites.tiles_for((224, 224, 3), 100_000)
    assert wide.width < 40
    assert all(step % sprites.CODEC_STEP == 0 for step in wide.step)


def test_from_afar_is_the_mean_of_parts():
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3)).astype(np.uint8)
    expected = picture[0].mean(2).reshape(8, 2, 8, 3).mean((1, 3)).ravel()
    np.testing.assert_allclose(sprites.from_afar(picture)[0], expected, rtol=1e-5)
    assert sprites.from_afar(picture[:, :3, :5]).shape == (1, 64)


# What is to be seen of rows of features.


def of_features(train, test):
    data = Dataset(
        Split(torch.from_numpy(train), torch.zeros(len(train), dtype=torch.int64)),
        Split(torch.from_numpy(test), torch.zeros(len(test), dtype=torch.int64)),
        ("a",),
        "of the test",
    )
    learner = but(pictures=None)
    learner.data = data
    return Gallery(learner)


@pytest.mark.parametrize("d", [1, 7, 64, 3000])
def test_rows_of_features_are_seen_as_cells(d):
    rng = np.random.default_rng(0)
    train, test = rng.normal(5, 3, (50, d)).astype(np.float32), rng.normal(5, 3, (4, d)).astype(np.float32)
    test[1] = train.mean(0)
    test[2] = train.mean(0) + 100
    examples = of_features(train, test)
    assert examples.seen == FEATURES
    shown = examples.looks(False, [0, 1, 2])
    assert shown.dtype == np.uint8
    assert shown.shape[0] == 3
    assert min(d, 1024) <= shown.shape[1] * shown.shape[2] <= 1100
    assert np.abs(shown[1].astype(int) - 128).max() <= 1
    assert set(np.unique(shown[2]).tolist()) <= {0, 128}
    if d <= 64:
        z = (test[0] - train.mean(0)) / train.std(0)
        np.testing.assert_allclose(shown[0].ravel()[:d], 127.5 * (1 - np.clip(z / 2.5, -1, 1)), atol=1.01)


def test_what_is_seen_is_pictures_or_nothing_else():
    assert Gallery(but()).seen == PICTURES
    assert Gallery(but(pictures=None)).seen is None
    assert Gallery(but()).looks(True, [2, 5]).shape == (2, 6, 7, 3)


# Scripts.


@pytest.mark.parametrize("kind", TYPES)
def test_packed_arrays_are_little_endian_bytes(kind):
    array = np.arange(6).reshape(2, 3)
    found = packed(array, kind)
    back = np.frombuffer(base64.b64decode(found["base64"]), np.dtype(TYPES[kind]).newbyteorder("<"))
    assert found["type"] == kind
    assert back.tolist() == list(range(6))


def test_scripts_hold_json_and_nothing_that_ends_them(tmp_path):
    content = {"a": [1.23456789, float("nan"), np.float32(np.inf), np.int64(3)], "b": "</script>\u2028é", 5: np.arange(2)}
    write_script(tmp_path, "x", content)
    text = (tmp_path / "x.js").read_text(encoding="ascii")
    call = re.fullmatch(r'DM\.put\("x",(.*)\);\n', text)
    assert call is not None
    found = json.loads(call[1])
    assert found == {"a": [1.2346, None, None, 3], "b": "</script>\u2028é", "5": [0, 1]}
    assert plain(SimpleNamespace) is SimpleNamespace


def test_blocks_cover_everything_once():
    assert blocks(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert blocks(0, 4) == []
