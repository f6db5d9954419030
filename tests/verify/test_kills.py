"""A few kills over the whole road, of parents and children; `make kills` does many."""

import pytest

from tests.verify.kills import command, differences, disturbed


@pytest.mark.slow
def test_a_road_that_is_killed_and_resumed_ends_as_if_it_had_not_been(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(whole, {}).wait() == 0, (tmp_path / "whole.log").read_text()
    count = disturbed(broken, 3, {}, seed=1, most_s=4.0)
    assert count["parent"] + count["child"] == 3
    assert differences(whole, broken) == []
