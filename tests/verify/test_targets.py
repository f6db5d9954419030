import time
from types import SimpleNamespace

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.verify import draw_targets, read_targets, write_targets
from datamodels.verify.known import Behaviour, Examples, Targets
from datamodels.verify.targets import Asked, Group, Mistaken, numbered, targets_given, targets_named

LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
ANIMALS = ("dog", "cat", "sea:horse")
FILES = ("dog/1.png", "cat/1.png", "horse/1.png", "dog/2.png", "cat/2.png", "same.png", "same.png", "7", "boat: a", "c.png")


def only(t):
    """T test images that are known by their indices alone, of no known class."""
    return Examples(SimpleNamespace(name="x", train_labels=np.full(5, -1), test_labels=np.full(t, -1)))


def animals(names=True, classes=True):
    """Ten test images of three classes, and training images 4 and 1 as targets 10 and 11, with names or without."""
    train = [f"train/{k}.png" for k in range(6)]

    def named(of_train, indices):
        return [([*train] if of_train else [*FILES, train[4], train[1]])[k] for k in indices]

    about = {
        "name": "x",
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_labels": np.array([*LABELS, 1, 1]),
        "train_targets": (4, 1),
    }
    more = ({"names": named} if names else {}) | ({"class_names": ANIMALS} if classes else {})
    return Examples(SimpleNamespace(**about, **more))


def write(tmp_path, text):
    (tmp_path / "targets.txt").write_text(text)
    return tmp_path / "targets.txt"


def named(tests, classes=()):
    """Test images of names, of classes."""
    train = [f"{name} of train" for name in tests]
    about = {"name": "x", "train_labels": np.arange(len(tests)) % 3, "test_labels": np.arange(len(tests)) % 3}

    def names(of_train, indices):
        return [(train if of_train else tests)[k] for k in indices]

    return Examples(SimpleNamespace(**about, names=names, class_names=list(classes)))


def test_a_name_with_a_hash_or_a_comma_is_that_name(tmp_path):
    examples = named(["a", "a#1", "a #1", "a,b", "b"], ["x", "x#y", "x,y"])
    text = "a#1\na #1\na,b # that\n4# none\nclass:x#y\nclass:x,y # all\n"
    groups = [Group("class:x#y", (1, 4)), Group("class:x,y", (2,))]
    assert read_targets(write(tmp_path, text), examples) == [1, 2, 3, 4, *groups]
    for asked, found in (("a#1", 1), ("a,b", 3), ("file:a,b", 3), ("class:x,y", groups[1])):
        assert targets_named(asked, examples, 0) == [found]
    assert targets_named("a,b,b", named(["a", "a,b", "b"]), 0) == [0, 2]


def test_names_with_halves_of_characters_can_be_written():
    examples = named(["a\udcff", "b", "c"], ["x\udcff", "y", "z"])
    assert (examples.name(0), examples.class_name(0)) == ("a\\udcff", "x\\udcff")
    assert targets_given(["a\\udcff", "class:x\\udcff"], examples) == [0, Group("class:x\\udcff", (0,))]


def test_classes_whose_names_are_numbers_have_no_others():
    assert targets_given(["class:2"], named("abc", ["1", "2", "3"])) == [Group("class:2", (1,))]
    with pytest.raises(InputError, match=r"there is no class '0'; there are 1, 2, 3"):
        targets_given(["class:0"], named("abc", ["1", "2", "3"]))


def test_as_many_names_as_there_are_images_take_no_time(tmp_path):
    names = [f"folder/{k}.png" for k in range(20_000)]
    start = time.process_time()
    assert read_targets(write(tmp_path, "\n".join(names)), named(names)) == list(range(20_000))
    assert time.process_time() - start < 5


def test_indices_comments_and_blank_lines(tmp_path):
    text = "# chosen by hand\n3\n\n  0  # a boat\n19"
    assert read_targets(write(tmp_path, text), only(20)) == [3, 0, 19]


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
        read_targets(write(tmp_path, text), only(20))
    assert named in str(caught.value)
    assert "targets.txt" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read the targets file"):
        read_targets(tmp_path / "nowhere.txt", only(20))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_targets(tmp_path / "binary", only(20))


def test_drawn_targets_come_back_from_their_file(tmp_path):
    targets = draw_targets(7, 50, 3)
    assert len(set(targets)) == 7
    assert targets == draw_targets(7, 50, 3) != draw_targets(7, 50, 4)
    assert draw_targets(60, 50, 3) == list(range(50))
    write_targets(tmp_path / "t.txt", targets)
    assert read_targets(tmp_path / "t.txt", only(50)) == targets


def test_a_mark_before_the_text_and_windows_line_ends_are_no_part_of_it(tmp_path):
    (tmp_path / "targets.txt").write_bytes(b"\xef\xbb\xbf3\r\n7 # seven\r\n")
    assert read_targets(tmp_path / "targets.txt", only(20)) == [3, 7]


def test_more_indices_than_a_file_name_has_room_for():
    assert targets_named(",".join(map(str, range(100))), only(100), 0) == list(range(100))
    for wanted in ("9" * 5000, "1," + "x" * 300, "random:" + "9" * 5000, "random:٣", "\0", ""):
        with pytest.raises(InputError):
            targets_named(wanted, only(100), 0)


def test_a_call_takes_indices_in_any_iterable():
    for given in (
        range(3, 100),
        (i for i in range(3, 100)),
        np.arange(3, 100),
        map(np.int32, range(3, 100)),
        [*range(3, 100), 3],
    ):
        assert targets_given(given, only(100)) == list(range(3, 100))


@pytest.mark.parametrize("given", [[-1], [100], [True], np.ones(100, bool), [3.0], ["x"], [None], [], 3, None, [2**70], [[3]]])
def test_a_call_refuses_what_is_no_index(given):
    with pytest.raises(InputError, match="targets"):
        targets_given(given, only(100))


def test_one_file_takes_every_kind_of_target(tmp_path):
    lines = """# all of them
    3
    train:4            # a training image
    cat/2.png          # by name
    file:7             # a name that an index has
    train:train/1.png
    boats: 3, train:4, dog/1.png
    class:dog
    mistaken:sea:horse:cat
    random:4"""
    drawn = draw_targets(4, 10, 7)
    horses = Mistaken("mistaken:sea:horse:cat", 2, 1)
    wanted = [3, 10, 4, 7, 11, Group("boats", (3, 10, 0)), Group("class:dog", (0, 3, 6, 9)), horses]
    assert read_targets(write(tmp_path, lines), animals(), 7) == [*wanted, *(d for d in drawn if d not in (3, 4, 7))]
    by_number = targets_given([np.int64(3), "class:1", "mistaken:2:0"], animals(names=False, classes=False))
    assert by_number == [3, Group("class:1", (1, 4, 7)), Mistaken("mistaken:2:0", 2, 0)]
    # A file of the version before has nothing but indices, and is read as before also where there is more.
    assert read_targets(write(tmp_path, "7\n0 # a\n9\n"), animals()) == [7, 0, 9]


def test_tens_of_thousands_of_names_are_found_without_searching_for_each(tmp_path):
    n = 50_000
    about = {"name": "x", "train_labels": np.arange(n) % 3, "test_labels": np.arange(n) % 3, "train_targets": range(n - 2)}
    named = SimpleNamespace(**about, names=lambda of_train, indices: [f"{k}.png" for k in indices])
    examples, start = Examples(named), time.process_time()
    assert read_targets(write(tmp_path, "".join(f"train:{k}.png\n" for k in range(n - 2))), examples) == list(range(2, n))
    assert time.process_time() - start < 20


def test_what_targets_are_called_is_read_as_them_again():
    for examples in (animals(), animals(names=False), animals(False, False)):
        behaviours = (Behaviour("class:dog" if examples.class_names else "class:0", 12, (0, 3, 6, 9)),)
        targets = Targets(examples, behaviours)
        for number in {*range(13)} - {5, 6}:
            (asked,) = targets_given(
                [f"file:{targets.name(number)}" if number in (7, 8) and examples.test_names else targets.called(number)],
                examples,
            )
            assert (asked if isinstance(asked, int) else 12) == number
    assert animals(False, False).name(3) is None
    assert animals(False, False).name(11) == "train:1"


def test_a_line_of_targets_takes_commas_and_one_list():
    examples = animals()
    assert targets_named("3,train:4, class:dog,3", examples, 0) == [3, 10, Group("class:dog", (0, 3, 6, 9))]
    assert targets_named("boats: 3, 7", examples, 0) == [Group("boats", (3, 7))]
    assert targets_named("dog/2.png", examples, 0) == [3]
    assert targets_named("random:10", examples, 0) == list(range(10))  # and no training image
    with pytest.raises(InputError, match="the list 'boats: 3' stands alone, or in a file"):
        targets_named("3,boats: 3,7", examples, 0)
    with pytest.raises(InputError, match="cannot read the targets file"):
        targets_named("nowhere.txt", examples, 0)


HOSTILE = {
    "train:2": "training image 2 is no target: .* set data.train_targets, .* before the models are trained",
    "train:6": "train:6 is out of range; training images run from 0 to 5",
    "train:x.png": "there is no training image of the name 'x.png'",
    "same.png": "2 test images have the name 'same.png': give the index, as 5",
    "file:cat/9.png": "there is no test image of the name 'cat/9.png'",
    "10": "10 is out of range; test indices run from 0 to 9",
    "class:cow": "there is no class 'cow'; there are dog, cat, sea:horse",
    "class:": "there is no class ''",
    "mistaken:dog": "mistaken: takes two classes, as mistaken:dog:cat, not 'dog'",
    "mistaken:dog:cow": "there is no class 'cow'",
    "mistaken:cat:cat": "two different classes, not cat twice",
    "boats: 3,,7": "the list boats has nothing between two commas",
    "boats:": "the list boats has nothing between two commas, or after its colon",
    "boats: 3, dog/2.png": "the list boats has dog/2.png twice",
    "boats: 3, class:dog": "'class:dog' is not a test index",
    "boats: 3, boat": "'boat' is not a test index",
    "two words: 3": "'two words: 3' is not a test index",
    "random:11": "random:11: there are 1 to 10 targets to draw",
    "7, 8": "'7, 8' is not a test index",
    "\x1b[2J": "is not a test index",
    "train:4\ntrain:train/4.png": "line 2: target 10 stands on line 1 already",
    "class:dog\nclass:0": "line 2: the behaviour class:dog stands on line 1 already",
    "boats: 3\nboats: 4": "line 2: the behaviour boats stands on line 1 already",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_targets_are_one_sentence_that_names_the_line(tmp_path, text):
    file = write(tmp_path, text)
    with pytest.raises(InputError, match=HOSTILE[text]) as caught:
        read_targets(file, animals())
    told = str(caught.value)
    assert told.startswith(f"{file}, line {2 if chr(10) in text else 1}")
    assert told.isprintable()
    assert ". " not in told.removeprefix(str(file))
    if "\n" not in text:
        with pytest.raises(InputError, match="targets"):
            targets_given([text], animals())


def test_two_behaviours_of_one_name_and_classes_of_no_image_are_refused():
    with pytest.raises(InputError, match="two behaviours are called boats"):
        targets_given(["boats: 3", "boats: 4"], animals())
    with pytest.raises(InputError, match="no class is known here"):
        targets_given(["class:0"], only(4))
    examples = Examples(SimpleNamespace(name="x", train_labels=np.arange(3), test_labels=np.array([0, 1])))
    with pytest.raises(InputError, match="no test image is of class 2"):
        targets_given(["class:2"], examples)


def test_behaviours_are_numbered_from_t_on_in_the_order_in_which_they_are_asked():
    asked: list[Asked] = [3, Group("boats", (3, 7)), Mistaken("mistaken:dog:cat", 0, 1), 10, Group("boats", (3, 7)), 3]
    known, numbers = numbered(asked, Targets(animals()), lambda _: (0, 9))
    assert numbers == [3, 12, 13, 10]
    assert known.behaviours == (Behaviour("boats", 12, (3, 7)), Behaviour("mistaken:dog:cat", 13, (0, 9)))

    def never(_):
        raise AssertionError

    again, numbers = numbered([*asked[1:3], Group("more", (10, 11, 4))], known, never)
    assert numbers == [12, 13, 14]
    assert again.behaviours[:2] == known.behaviours
    with pytest.raises(InputError, match="the behaviour boats is known, of 2 targets, and these are others"):
        numbered([Group("boats", (3, 8))], known, never)
    # Of one class, of several, of training images: what R may not hold.
    assert (again.label(13), again.label(12), again.label(10), again.label(14)) == (0, -1, 1, 1)
    assert [again.itself(k).tolist() for k in (3, 10, 12, 14)] == [[], [4], [], [4, 1]]
    assert again.same_class(12).tolist() == [True, True, False] * 2
    assert again.members(14) == (10, 11, 4)


def test_a_word_that_is_neither_file_nor_test_image_is_said_to_be_neither():
    with pytest.raises(InputError, match=r"file dgo/1\.png: it is missing, and no test image has .* dog/1\.png"):
        targets_named("dgo/1.png", animals(), 0)
    with pytest.raises(InputError, match=r"file dgo/1\.png: it is missing$"):
        targets_named("dgo/1.png", animals(names=False), 0)
