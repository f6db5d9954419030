"""A crash between any two file operations of the writer, and a loss of power that forgets what was not synced.

The writer's operations are recorded below Python's `os`, as `datamodels.durable` calls it. What they leave behind after a crash
is then rebuilt from the record: after a crash of the process all of it up to some operation, after a loss of power also any
choice of what no sync had made durable by then.
"""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import durable
from datamodels.durable import Lock
from datamodels.store import ArraySpec, Meta, Store, Writer, create, deliver, grow, hand_over
from datamodels.store.check import GIVEN_UP, WHOLE, check, repair

N, T, M = 21, 5, 12
META = Meta(M, N, T, {"margins": ArraySpec("float16", (T,))}, {"of": "this test"})


def row(i):
    rng = np.random.default_rng([7, i])
    return rng.random(N) < 0.5, rng.normal(size=T).astype(np.float16)


def rows(ids):
    masks, margins = zip(*map(row, ids), strict=True)
    return list(ids), np.stack(masks), {"margins": np.stack(margins)}


def hand(folder, ids, failures=None):
    found, masks, arrays = rows(ids)
    hand_over(folder, found, masks, arrays, failures)


def bring(folder, ids, failures=None):
    found, masks, arrays = rows(ids)
    deliver(folder, found, masks, arrays, failures)


def work(folder):
    """Everything a writer does: rows of its own, rows from the inbox, a model given up, growth."""
    hand(folder, [3, 4], {9: "diverged"})
    hand(folder, [4, 8])
    bring(folder, [0, 1, 6])
    grow(folder, M + 4)
    bring(folder, [2, M + 1], {11: "diverged as well"})


EXPECTED = [0, 1, 2, 3, 4, 6, 8, M + 1]


class CrashError(BaseException):
    """The process ends here."""


class Recorder:
    """Stands for `os` within `datamodels.durable`: keeps a record of what changes files, and may fail at one operation."""

    CHANGES = ("open", "pwrite", "ftruncate", "fsync", "fdatasync", "close", "replace", "unlink")

    def __init__(self, fail_at=None, error=CrashError, half=False):
        self.record, self.paths = [], {}
        self.fail_at, self.error, self.half = fail_at, error, half
        self.dead, self.one_at_a_time = False, threading.RLock()

    def __getattr__(self, name):
        real = getattr(os, name)
        return (lambda *args: self._in_turn(name, real, args)) if name in self.CHANGES else real

    def _in_turn(self, name, real, args):
        with self.one_at_a_time:
            if self.dead and name == "close":
                return real(*args)  # so that the test does not run out of files
            if self.dead:
                raise CrashError("a thread of a process that has ended")
            return self._change(name, real, args)

    def _change(self, name, real, args):
        named = [self.paths[args[0]] if isinstance(args[0], int) else Path(args[0]), *args[1:]]
        if name == "pwrite":
            named[1] = bytes(args[1])
        if self.fail_at == len(self.record):
            # Not a header: that lies within one sector, and is written whole or not at all.
            header = named[0].suffix == ".npy" and args[2:] == (0,)
            if name == "pwrite" and self.half and len(args[1]) > 1 and not header:
                real(args[0], args[1][: len(args[1]) // 2], args[2])
            self.dead = self.error is CrashError
            if self.dead and name == "close":
                real(*args)
            raise self.error(errno.ENOSPC, "No space left on device")
        self.record.append((name, *named))
        result = real(*args)
        if name == "open":
            self.paths[result] = named[0]
        return result


def consistent(folder, expected=None):
    """Every row marked done is that of its model; with `expected`, exactly those are done."""
    store = Store(folder)
    for i in store.done.tolist():
        mask, margins = row(i)
        assert np.array_equal(store.masks([i])[0], mask), i
        assert np.array_equal(store.margins([i])[0], margins), i
    assert store.damaged(store.done) == []
    assert set(store.failures) <= {9, 11}
    assert set(store.failures) <= set(store.reasons)
    assert {fault.what for fault in check(folder)} <= {WHOLE, GIVEN_UP}
    if expected is not None:
        assert store.done.tolist() == expected
        assert sorted(store.failures) == [9, 11]
        assert store.meta.num_models == M + 4


def resume(folder):
    """What a worker that starts again does: the same once more, for it cannot know how far it was."""
    work(folder)
    consistent(folder, EXPECTED)
    assert not list((folder / "inbox").glob("[0-9]*"))


@pytest.fixture
def empty(tmp_path):
    create(tmp_path / "empty", META)
    return tmp_path / "empty"


def recorded(empty, tmp_path, monkeypatch):
    """The record of the whole work, with paths relative to the store."""
    folder = tmp_path / "recorded"
    shutil.copytree(empty, folder)
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", recorder)
        work(folder)
    consistent(folder, EXPECTED)

    def relative(part):
        return part.relative_to(folder) if isinstance(part, Path) else part

    return [tuple(relative(part) for part in operation) for operation in recorder.record]


@pytest.mark.parametrize(
    ("half", "every"),
    [
        pytest.param(False, 1, id="before it"),
        pytest.param(True, 3, id="in the middle of each third write"),
        pytest.param(True, 1, id="in the middle of a write", marks=pytest.mark.slow),
    ],
)
def test_a_crash_at_any_operation_leaves_a_store_that_opens_and_resumes(empty, tmp_path, monkeypatch, half, every):
    operations = len(recorded(empty, tmp_path, monkeypatch))
    assert operations > 100
    for crash in range(0, operations, every):
        folder = tmp_path / f"crash-{crash}"
        shutil.copytree(empty, folder)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", Recorder(crash, half=half))
            with pytest.raises(CrashError):
                work(folder)
        consistent(folder)
        resume(folder)
        shutil.rmtree(folder)
    print(f"{operations} crashes survived")


def test_a_full_disk_at_any_write_marks_nothing_that_is_not_there_and_can_go_on(empty, tmp_path, monkeypatch):
    record = recorded(empty, tmp_path, monkeypatch)
    for full in [k for k, operation in enumerate(record) if operation[0] in ("pwrite", "ftruncate", "fsync", "fdatasync")]:
        folder = tmp_path / f"full-{full}"
        shutil.copytree(empty, folder)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", Recorder(full, OSError, half=True))
            with pytest.raises(OSError, match="No space left on device") as caught:
                work(folder)
        assert caught.value.errno == errno.ENOSPC
        lock = Lock(folder / "writer.lock")
        assert lock.take()
        lock.release()
        consistent(folder)
        resume(folder)
        shutil.rmtree(folder)


class Disk:
    """What a disk holds: files by number, names in folders, each as it is now and as a loss of power would leave it."""

    def __init__(self, base):
        self.files = {k: bytearray(path.read_bytes()) for k, path in enumerate(self._paths(base))}
        self.names = {path.relative_to(base): k for k, path in enumerate(self._paths(base))}
        self.lost_data: list[tuple[Any, ...]] = []  # (file, operation) not yet synced
        self.lost_names: list[tuple[Any, ...]] = []  # (name, file or None) not yet synced

    @staticmethod
    def _paths(base):
        return sorted(path for path in base.rglob("*") if path.is_file())

    def apply(self, operation):
        name, path, *rest = operation
        if name == "open" and path not in self.names and rest[0] & os.O_CREAT:
            self.files[len(self.files)] = bytearray()
            self._name(path, len(self.files) - 1)
        elif name in ("pwrite", "ftruncate"):
            self.lost_data.append((self.names[path], (name, *rest)))
        elif name in ("fsync", "fdatasync") and path in self.names:
            self._settle_data(self.names[path])
        elif name == "fsync":
            self.lost_names = [entry for entry in self.lost_names if entry[0].parent != path]
        elif name == "replace":
            # One change for a journal: the old name goes when the new one comes.
            self._name(rest[0], self.names[path])
            self._name(path, None)
        elif name == "unlink":
            self._name(path, None)

    def _name(self, path, file):
        self.lost_names.append((path, self.names.get(path)))
        self.names = {**self.names, path: file} if file is not None else {p: f for p, f in self.names.items() if p != path}

    def _settle_data(self, file):
        for _, operation in [entry for entry in self.lost_data if entry[0] == file]:
            change(self.files[file], operation)
        self.lost_data = [entry for entry in self.lost_data if entry[0] != file]

    def after_power_loss(self, rng, folder):
        """Lay out what could be left: any choice of the data not synced, and of names a whole first part, as a journal does."""
        files = {k: bytearray(content) for k, content in self.files.items()}
        for file, operation in self.lost_data:
            if rng.random() < 0.5:
                change(files[file], operation)
        names = dict(self.names)
        forgotten = self.lost_names[rng.integers(0, len(self.lost_names) + 1) :]
        for path, before in reversed(forgotten):
            names.pop(path, None)
            if before is not None:
                names[path] = before
        for path in ("inbox", "claims"):
            (folder / path).mkdir(parents=True)
        for path, file in names.items():
            (folder / path).write_bytes(files[file])


def change(content, operation):
    name, *rest = operation
    if name == "ftruncate":
        size = rest[0]
        del content[size:]
        content.extend(bytes(size - len(content)))
    else:
        data, offset = rest
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


def test_a_loss_of_power_at_any_operation_leaves_a_store_that_opens_and_resumes(empty, tmp_path, monkeypatch):
    record, rng = recorded(empty, tmp_path, monkeypatch), np.random.default_rng(0)
    for _ in range(2):
        disk = Disk(empty)
        for k, operation in enumerate(record):
            disk.apply(operation)
            folder = tmp_path / f"power-{k}"
            disk.after_power_loss(rng, folder)
            consistent(folder)
            resume(folder)
            shutil.rmtree(folder)


def test_without_a_sync_before_the_mark_the_loss_of_power_would_be_seen(empty, tmp_path, monkeypatch):
    """The test of the test: a writer that marks rows before they are durable is caught."""
    record, rng = recorded(empty, tmp_path, monkeypatch), np.random.default_rng(0)
    careless = [
        operation for operation in record if operation[0] not in ("fsync", "fdatasync") or operation[1].name == "done.npy"
    ]
    caught, disk = 0, Disk(empty)
    for k, operation in enumerate(careless):
        disk.apply(operation)
        folder = tmp_path / f"power-{k}"
        disk.after_power_loss(rng, folder)
        try:
            consistent(folder)
        except Exception:
            caught += 1
        shutil.rmtree(folder)
    assert caught > 10


def test_a_row_that_is_whole_but_unmarked_after_a_crash_is_marked_by_repair(empty):
    bring(empty, [5])
    with Writer(empty) as writer:
        writer.mark(np.array([5]), 0)
    assert [(fault.row, fault.what) for fault in check(empty)] == [(5, WHOLE)]
    repair(empty)
    consistent(empty)
    assert Store(empty).done.tolist() == [5]
