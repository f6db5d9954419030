"""The writer of a cluster's rows: what it takes, what it refuses, and that it may be called twice."""

import dataclasses
import functools

import numpy as np
import pytest

from datamodels.errors import InputError
from datamodels.store import ArraySpec, Meta, Rows, Store, create, create_once, enlist, hand_over
from datamodels.store.check import check
from datamodels.worker.writing import Lot, Writing, take

N, T = 20, 3


@pytest.fixture
def folder(tmp_path):
    create(tmp_path / "store", Meta(12, N, T, {"margins": ArraySpec("float32", (T,))}, {}))
    return tmp_path / "store"


def rows(folder, ids):
    rng = np.random.default_rng(list(ids))
    arrays = {"margins": rng.normal(size=(len(ids), T)).astype(np.float32)}
    return Rows.of(Store(folder).meta, list(ids), rng.random((len(ids), N)) < 0.5, arrays)


def lot(ids, **failures):
    return Lot(tuple(ids), None, {int(key[1:]): why for key, why in failures.items()})


def test_several_blocks_and_their_failures_are_written_at_once(folder):
    found = [rows(folder, range(4)), rows(folder, [4, 6, 7]), None]
    taken = take(folder, [lot(range(4)), lot([4, 6, 7], i5="diverged"), lot([], i8="diverged")], found)
    assert (taken.refused, taken.lost, taken.rows) == ({}, [], 9)
    store = Store(folder)
    assert store.done.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert store.failures == {5: "diverged", 8: "diverged"}
    assert np.array_equal(store.margins(range(4)), found[0].arrays["margins"])
    assert np.array_equal(store.packed([4, 6, 7]), found[1].masks)
    assert check(folder) == []


def test_what_is_written_a_second_time_stays_as_it_is(folder):
    lots, found = [lot(range(4), i4="diverged")], [rows(folder, range(4))]
    take(folder, lots, found)
    digest = Store(folder).digest()
    other = dataclasses.replace(found[0], arrays={"margins": found[0].arrays["margins"] + 1})
    for each in (found, [other]):
        again = take(folder, lots, each)
        assert (again.refused, again.rows) == ({}, 0)
    assert Store(folder).digest() == digest


def changed(**how):
    return lambda found: dataclasses.replace(found, **{name: change(getattr(found, name)) for name, change in how.items()})


def margins(change):
    return changed(arrays=lambda arrays: {"margins": change(arrays["margins"])})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (margins(lambda m: m[:, :2]), "has margins of float32 and shape"),
        (margins(lambda m: m.astype(np.float64)), "has margins of float64"),
        (margins(lambda m: m[:2]), "has margins of float32 and shape"),
        (margins(lambda m: m * np.nan), "has margins that are not finite"),
        (margins(lambda m: m * np.inf), "has margins that are not finite"),
        (changed(arrays=lambda arrays: {**arrays, "logits": arrays["margins"]}), "has ids, logits, margins, masks, not"),
        (changed(masks=lambda masks: masks[:, :1]), "has masks of uint8 and shape"),
        (changed(masks=lambda masks: masks | 255), "has masks with more than 20 images"),
        (changed(ids=lambda ids: ids + 1), "not of the 4 that were wanted"),
        (changed(ids=lambda ids: ids + 100), "does not hold rows of models from 0 to 11"),
        (changed(ids=lambda ids: ids[::-1]), "in ascending order"),
        (lambda _: None, "is NoneType, and no rows"),
        (lambda found: found.arrays, "is dict, and no rows"),
    ],
)
def test_rows_other_than_the_stores_are_refused_and_the_others_written(folder, spoil, told):
    found = [spoil(rows(folder, range(4))), rows(folder, range(4, 8))]
    taken = take(folder, [lot(range(4), i9="diverged"), lot(range(4, 8))], found)
    assert list(taken.refused) == [0]
    assert told in taken.refused[0]
    store = Store(folder)
    assert store.done.tolist() == [4, 5, 6, 7]
    assert not store.failures


def test_rows_of_which_some_are_lacking_are_refused(folder):
    taken = take(folder, [lot(range(5))], [rows(folder, range(4))])
    assert "has rows of 4 models, not of the 5 that were wanted" in taken.refused[0]


def test_what_did_not_come_is_told_apart_and_nothing_of_it_is_given_up(folder):
    taken = take(folder, [lot(range(4), i4="diverged"), lot([5])], [OSError("its node has gone"), rows(folder, [5])])
    assert (taken.refused, taken.lost) == ({}, [0])
    assert Store(folder).done.tolist() == [5]
    assert not Store(folder).failures


def test_the_inbox_of_other_workers_is_taken_in_too(folder):
    other = rows(folder, range(8, 10))
    hand_over(folder, other.ids, Store(folder).masks([8, 9]), other.arrays)
    assert take(folder, [], []).rows == 2
    assert Store(folder).done.tolist() == [8, 9]
    assert list((folder / "inbox").iterdir()) == []


def test_errors_come_back_with_a_sentence_or_with_their_place(tmp_path):
    writing = Writing(tmp_path)
    create_it = functools.partial(create, tmp_path / "store", Meta(1, N, T, {"margins": ArraySpec("float32", (T,))}, {}))
    assert writing.write(create_it).error is None
    sentence, _ = writing.write(create_it).error or ("", "")
    assert "exists already" in str(sentence)
    sentence, trace = writing.write(divmod, 1, 0).error or ("", "")
    assert sentence is None
    assert "ZeroDivisionError" in trace
    with pytest.raises(InputError, match="there is no store"):
        take(tmp_path / "none", [], [])


def test_a_store_is_made_once_and_models_are_listed_once_however_often_it_is_called(folder):
    """A call is made again where the writer has died in the moment before its answer."""
    meta = Store(folder).meta
    take(folder, [lot(range(4))], [rows(folder, range(4))])
    digest = Store(folder).digest()
    create_once(folder, meta)
    assert Store(folder).digest() == digest
    masks = np.random.default_rng(0).random((5, N)) < 0.5
    known = {"margins": np.zeros((5, T), np.float32)}
    for _ in range(2):
        assert enlist(folder, masks, known, 12).tolist() == [12, 13, 14, 15, 16]
        assert Store(folder).meta.num_models == 17
    assert np.array_equal(Store(folder).masks(range(12, 17)), masks)
    for first, other, values in ((12, ~masks, known), (12, masks, {"margins": known["margins"] + 1}), (14, masks, known)):
        with pytest.raises(InputError, match="another process has listed models"):
            enlist(folder, other, values, first)
    assert enlist(folder, masks, known, 17).tolist() == enlist(folder, masks, known, 17).tolist() == [17, 18, 19, 20, 21]
    assert check(folder) == []
