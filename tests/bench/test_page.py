"""The bench of the page, small: it makes a whole page, tells its size, and leaves nothing behind."""

import io

import pytest
from PIL import Image

from datamodels.bench.chromium import CHROMIUM
from datamodels.bench.page import Made, bench_page, shots
from datamodels.errors import InputError
from datamodels.settings import parse


@pytest.fixture
def of_run(tmp_path):
    return parse(["--run.dir", str(tmp_path / "run")])[0]


def test_a_small_page_is_made_and_measured(of_run, tmp_path):
    record, table = bench_page(of_run, 6, 400, 40)
    assert (record["num_train"], record["num_targets"], record["verified"]) == (400, 40, 6)
    assert record["seconds"] > 0 < record["megabytes"] < 5
    assert "made in" in table
    assert ("first_screen_seconds" in record) == (CHROMIUM is not None)
    if CHROMIUM:
        assert 0 < record["first_screen_megabytes"] < record["megabytes"]
        assert "the first screen stands after" in table
    assert list((tmp_path / "run").iterdir()) == []


def test_what_another_bench_left_is_not_touched(of_run, tmp_path):
    (tmp_path / "run" / "bench-page").mkdir(parents=True)
    with pytest.raises(InputError, match="is there already"):
        bench_page(of_run, 6, 400, 40)
    with pytest.raises(InputError, match="1 to 40 targets, not 41"):
        bench_page(of_run, 41, 400, 40)


def test_a_made_up_learner_shows_pictures_and_trains_nothing():
    made = Made(40, 20)
    assert made.pictures(True, [3, 4]).shape == (2, 32, 32, 3)
    assert made.names(False, [7]) == ["test/00007.png"]
    with pytest.raises(InputError, match="cannot be trained"):
        made.train([None])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
def test_the_first_screen_of_a_page_is_shot_wide_and_narrow(tmp_path):
    settings = parse(["--run.dir", str(tmp_path / "mine")])[0]
    (tmp_path / "mine" / "report").mkdir(parents=True)
    page = tmp_path / "mine" / "report" / "index.html"
    page.write_text("<html data-stands=all><body>page</body></html>")
    found = shots(settings, tmp_path / "out")
    assert [file.name for file in found] == ["page-mine-1280.png", "page-mine-390.png"]
    assert [Image.open(io.BytesIO(file.read_bytes())).size for file in found] == [(1280, 900), (390, 844)]
    page.unlink()
    with pytest.raises(InputError, match=r"there is no .*index\.html; run"):
        shots(settings, tmp_path)
