"""Files and folders that are there whole or not at all, whatever ends the process; locks that exclude, or say they do not."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from datamodels import durable
from datamodels.durable import (
    Lock,
    is_there,
    new_file,
    new_folder,
    only_maker,
    read_json,
    real_place,
    sweep,
    sync_folder,
    tidy,
    write_file,
    write_json,
)
from datamodels.errors import InputError

FILES = 5


def write_version(folder, version):
    """A folder of several files that all hold one number."""
    with only_maker(folder, "waiting"), new_folder(folder, replace=True) as temporary:
        for k in range(FILES):
            write_json(temporary / f"{k}.json", version)


def versions(folder):
    return {read_json(folder / f"{k}.json") for k in range(FILES)}


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def refused(*_):
    return False


def replace_for_ever(folder, exchange):
    if not exchange:
        durable._exchange = refused
    version = 0
    while True:
        version += 1
        write_version(folder, version)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed twice"])
def test_a_folder_that_is_replaced_is_the_old_or_the_new_one_after_kills_at_any_moment(tmp_path, exchange):
    folder, rng = tmp_path / "report", random.Random(1)
    write_version(folder, 0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for _ in range(40):
        process = context.Process(target=replace_for_ever, args=(folder, exchange))
        process.start()
        time.sleep(rng.uniform(0.02, 0.08))
        process.kill()
        process.join()
        assert not exchange or folder.is_dir()
        tidy(folder)
        assert len(versions(folder)) == 1
        assert hidden(tmp_path) == []


@pytest.mark.parametrize("at", ["before the first rename", "between", "after"])
def test_without_an_exchange_a_kill_between_the_renames_is_mended_by_the_next_start(tmp_path, monkeypatch, at):
    folder = tmp_path / "weights"
    write_version(folder, 1)
    monkeypatch.setattr(durable, "_exchange", refused)
    real, count = Path.rename, {"before the first rename": 0, "between": 1, "after": 2}[at]

    class KillError(BaseException):
        pass

    def rename(self, target):
        nonlocal count
        if count == 0:
            count = -1
            raise KillError
        count -= 1
        return real(self, target) if count >= 0 else None

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the dead clean nothing
        with suppress(KillError):
            write_version(folder, 2)
    assert len(hidden(tmp_path)) > 0
    write_version(tmp_path / "weights.other", 7)
    tidy(folder)
    assert versions(folder) == ({2} if at == "after" else {1})
    assert hidden(tmp_path) == []
    assert versions(tmp_path / "weights.other") == {7}


def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    write_version(folder, 1)
    monkeypatch.setattr(durable, "_exchange", refused)
    real, calls = Path.rename, []

    def rename(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="Input/output error"):
            write_version(folder, 2)
    assert versions(folder) == {1}
    assert hidden(tmp_path) == []


def test_readers_find_a_whole_folder_at_any_time(tmp_path):
    folder = tmp_path / "report"
    write_version(folder, 0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=replace_for_ever, args=(folder, True))
    process.start()
    try:
        seen: set[int] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 20 and time.monotonic() < deadline:
            seen.add(read_json(folder / "0.json"))
        assert len(seen) == 20
    finally:
        process.kill()
        process.join()


def test_a_folder_in_use_is_left_alone_by_those_who_tidy(tmp_path):
    folder = tmp_path / "data"
    with only_maker(folder) as mine, new_folder(folder) as temporary:
        assert mine
        tidy(folder)
        with only_maker(folder) as also_mine:
            assert not also_mine
        (temporary / "a").write_text("a")
    assert (folder / "a").read_text() == "a"
    assert hidden(tmp_path) == []


def test_temporary_names_of_two_processes_with_one_number_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with new_folder(tmp_path / "a") as one, new_folder(tmp_path / "a", replace=True) as other:
        assert one != other
    with new_file(tmp_path / "f") as first, new_file(tmp_path / "f") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")


def test_files_half_written_by_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path):
    dead = tmp_path / ".seconds.json.0123abcd.tmp"
    dead.write_text("half")
    (tmp_path / ".hidden").write_text("not ours")
    with new_file(tmp_path / "seconds.json") as temporary:
        temporary.write_text("whole")
        sweep(tmp_path)
        assert not dead.exists()
    assert (tmp_path / "seconds.json").read_text() == "whole"
    assert hidden(tmp_path) == [".hidden"]
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_folders_does_for_all_else(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(fd):
        if Path(f"/proc/self/fd/{fd}").is_dir():
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_version(tmp_path / "a", 1)
    write_version(tmp_path / "a", 2)
    assert versions(tmp_path / "a") == {2}
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


def test_an_error_names_its_file_also_where_numpy_says_neither_name_nor_number(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError("1000 requested and 5 written")):
        with pytest.raises(OSError, match=r"No space left on device.*weights'") as caught, new_folder(tmp_path / "weights"):
            raise error
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="of something else"), new_folder(tmp_path / "weights"):
        raise OSError("of something else")
    with pytest.raises(OSError, match=r"No space left on device.*/seconds.json'"), new_file(tmp_path / "seconds.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"file": name})
    assert read_json(tmp_path / "a.json") == {"file": name}
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"file": name}


def test_places_are_found_through_links_and_what_is_in_the_way_is_said(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    write_version(tmp_path / "run" / "report", 1)
    assert versions(tmp_path / "scratch" / "report") == {1}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "regress").symlink_to(tmp_path / "elsewhere")
    for version in (3, 4):
        write_version(tmp_path / "run" / "regress", version)
        assert versions(tmp_path / "elsewhere") == {version}
    assert (tmp_path / "run" / "regress").is_symlink()
    assert hidden(tmp_path) == []
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    for path, words in [
        ("nowhere", "is a link to .*gone, which is not there"),
        ("file", "is a file, where a folder is needed"),
    ]:
        for under in (tmp_path / path, tmp_path / path / "data"):
            with pytest.raises(InputError, match=words), only_maker(under):
                pass
            with pytest.raises(InputError, match=words):
                is_there(under)
    with pytest.raises(InputError, match="link to circle, which is not there"):
        real_place(tmp_path / "circle")


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "data").mkdir()
    assert not is_there(tmp_path / "data")
    with new_folder(tmp_path / "data") as temporary:
        (temporary / "a").write_text("a")
    assert is_there(tmp_path / "data")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "a").exists()


@pytest.fixture
def unproved(monkeypatch):
    """Locks of which nothing is known yet in this process."""
    monkeypatch.setattr(Lock, "_proved", set())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_that_refuses_locks_is_said(tmp_path, monkeypatch, unproved, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    words = (
        rf"the file system of {tmp_path} refuses locks \({re.escape(os.strerror(number))}\).*use a run.dir where flock works"
    )
    with pytest.raises(InputError, match=words):
        Lock(tmp_path / "lock").take()
    write_file(tmp_path / "plain", b"needs no lock")
    sweep(tmp_path)


def test_a_file_system_that_grants_a_lock_to_everyone_is_said(tmp_path, monkeypatch, unproved):
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    with pytest.raises(InputError, match="grants a lock to everyone"):
        Lock(tmp_path / "lock").take()
    monkeypatch.undo()
    lock = Lock(tmp_path / "lock")
    assert lock.take()
    assert not Lock(tmp_path / "lock").take()
    lock.release()


def test_a_lock_that_someone_else_has_removed_is_released_all_the_same(tmp_path):
    lock, other = Lock(tmp_path / "claim"), Lock(tmp_path / "claim")
    assert lock.take()
    lock.path.unlink()
    lock.release(remove=True)
    assert lock.take()
    lock.path.unlink()
    assert other.take()
    lock.release(remove=True)
    assert other.path.exists()  # that is the other's now
    other.release(remove=True)
    assert list(tmp_path.iterdir()) == []


HOLD = "import fcntl, os, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); os.write(1, b'x'); import time; time.sleep(60)"
WAIT = """
import signal
import sys
from pathlib import Path
from datamodels.durable import Lock
from datamodels.errors import run_command
# What a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
run_command(lambda: print(Lock(Path(sys.argv[1])).take(wait=True)))
"""


def test_a_long_wait_for_a_stopped_holder_is_told_and_ends_by_ctrl_c(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.read(1)
        holder.send_signal(signal.SIGSTOP)
        line = [sys.executable, "-u", "-c", WAIT, str(tmp_path / "lock")]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert re.match(
                r"waiting for another process that holds \S+/lock; if that one is stopped", waiting.stderr.readline()
            )
            waiting.send_signal(signal.SIGINT)
            assert "interrupted; run the same command again" in waiting.stderr.read()
            assert waiting.wait(timeout=10) == 130
        holder.kill()
    start = time.monotonic()
    lock = Lock(tmp_path / "lock")
    assert lock.take(wait=True)
    assert time.monotonic() - start < 1
    lock.release()


def test_a_wait_ends_when_it_is_told_to(tmp_path):
    held, ended = Lock(tmp_path / "lock"), threading.Event()
    assert held.take()
    threading.Timer(0.2, ended.set).start()
    assert not Lock(tmp_path / "lock").take(wait=True, stop=ended.is_set)
    threading.Timer(0.2, held.release).start()
    other = Lock(tmp_path / "lock")
    assert other.take(wait=True)
    other.release()


def test_only_one_of_many_makes_a_folder_and_the_others_find_it(tmp_path):
    made = []

    def make():
        with only_maker(tmp_path / "data", "waiting") as mine:
            assert mine
            if not is_there(tmp_path / "data"):
                with new_folder(tmp_path / "data") as temporary:
                    np.save(temporary / "a.npy", np.ones(3))
                made.append(1)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    shutil.rmtree(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
