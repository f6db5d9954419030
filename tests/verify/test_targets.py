import pytest

from datamodels.errors import InputError
from datamodels.verify import draw_targets, read_targets, write_targets


def write(tmp_path, text):
    (tmp_path / "targets.txt").write_text(text)
    return tmp_path / "targets.txt"


def test_indices_comments_and_blank_lines(tmp_path):
    text = "# chosen by hand\n3\n\n  0  # a boat\n19"
    assert read_targets(write(tmp_path, text), 20) == [3, 0, 19]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "lists no targets"),
        ("# nothing\n\n", "lists no targets"),
        ("1\n2\nboat\n", "line 3: 'boat' is not a test index"),
        ("1\n2 3\n", "line 2: '2 3' is not"),
        ("-1\n", "line 1: '-1' is not"),
        ("1.0\n", "line 1: '1.0' is not"),
        ("٣\n", "line 1: '٣' is not"),
        ("5\n7\n# again\n5\n", "line 4: target 5 stands on line 1 already"),
        ("4\n20\n", "line 2: 20 is out of range; test indices run from 0 to 19"),
    ],
)
def test_bad_files_are_refused_by_their_line(tmp_path, text, named):
    with pytest.raises(InputError) as caught:
        read_targets(write(tmp_path, text), 20)
    assert named in str(caught.value)
    assert "targets.txt" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read the targets file"):
        read_targets(tmp_path / "nowhere.txt", 20)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        read_targets(tmp_path / "binary", 20)


def test_drawn_targets_come_back_from_their_file(tmp_path):
    targets = draw_targets(7, 50, 3)
    assert len(set(targets)) == 7
    assert targets == draw_targets(7, 50, 3) != draw_targets(7, 50, 4)
    write_targets(tmp_path / "t.txt", targets)
    assert read_targets(tmp_path / "t.txt", 50) == targets
