import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.verify import draw_targets, read_targets, write_targets
from datamodels.verify.targets import targets_given, targets_named


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
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_targets(tmp_path / "binary", 20)


def test_drawn_targets_come_back_from_their_file(tmp_path):
    targets = draw_targets(7, 50, 3)
    assert len(set(targets)) == 7
    assert targets == draw_targets(7, 50, 3) != draw_targets(7, 50, 4)
    write_targets(tmp_path / "t.txt", targets)
    assert read_targets(tmp_path / "t.txt", 50) == targets


def test_a_mark_before_the_text_and_windows_line_ends_are_no_part_of_it(tmp_path):
    (tmp_path / "targets.txt").write_bytes(b"\xef\xbb\xbf3\r\n7 # seven\r\n")
    assert read_targets(tmp_path / "targets.txt", 20) == [3, 7]


def test_more_indices_than_a_file_name_has_room_for():
    assert targets_named(",".join(map(str, range(100))), 100, 0) == list(range(100))
    for wanted in ("9" * 5000, "1," + "x" * 300, "random:" + "9" * 5000, "random:٣", "\0", ""):
        with pytest.raises(InputError):
            targets_named(wanted, 100, 0)


def test_a_call_takes_indices_in_any_iterable():
    for given in (
        range(3, 100),
        (i for i in range(3, 100)),
        np.arange(3, 100),
        map(np.int32, range(3, 100)),
        [*range(3, 100), 3],
    ):
        assert targets_given(given, 100) == list(range(3, 100))


@pytest.mark.parametrize("given", [[-1], [100], [True], np.ones(100, bool), [3.0], ["3"], [None], [], 3, None, [2**70], [[3]]])
def test_a_call_refuses_what_is_no_index(given):
    with pytest.raises(InputError, match="targets"):
        targets_given(given, 100)
