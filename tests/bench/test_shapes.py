"""The bench of the lasso's shapes: all rows are there, both come to their gap, and its own objective is reckoned apart."""

import numpy as np

from datamodels.bench import shapes
from datamodels.settings import RegressSettings


def test_few_models_and_many_give_rows_whose_paths_are_at_their_gap():
    rows = shapes.bench_shapes(RegressSettings(gap=1e-4, device="cpu"), ((60, 200), (200, 60)), 1)
    assert [(row["models"], row["images"], row["targets"]) for row in rows] == [
        (60, 200, 4),
        (60, 200, 32),
        (200, 60, 4),
        (200, 60, 32),
    ]
    for row in rows:
        ours, _, same = row["largest_gaps"]
        assert ours <= 1.5e-4
        assert same <= 1.5e-4
        assert row["cpu_seconds"] > 0
        assert row["times_scikit_learn"] > 0


def test_the_gap_of_the_bench_is_zero_at_a_solution_and_not_beside_it():
    masks, margins = shapes.sparse_problem(80, 30, 2)
    x, y = masks - masks.mean(0), margins - margins.mean(0)
    top = np.abs(x.T @ y).max(0) / len(x)
    zero = np.zeros((1, 30, 2))
    np.testing.assert_allclose(shapes._gaps(masks, margins, zero, top[:, None]), 0, atol=1e-5)
    assert (shapes._gaps(masks, margins, zero, 0.5 * top[:, None]) > 1e-3).all()
