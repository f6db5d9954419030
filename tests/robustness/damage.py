"""Ways in which a file can be other than it should be: each a function that damages the file at a path."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.seals import SEAL, write_sealed

Damage = Callable[[Path], None]


def written(content: bytes) -> Damage:
    """Other content under the name."""

    def damage(path: Path) -> None:
        path.unlink()
        path.write_bytes(content)

    return damage


def changed(change: Callable[[bytes], bytes]) -> Damage:
    """Content made of what is there."""
    return lambda path: written(change(path.read_bytes()))(path)


def cut(share: float, less: int = 0) -> Damage:
    """The first part of the file."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: max(0, int(len(content) * share) - less)])

    return damage


def instead(make: Damage) -> Damage:
    """Something else in the file's place."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may be short only
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def _archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(array: Any) -> bytes:
    """An array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


OTHER_KINDS: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "a folder": instead(Path.mkdir),
    "a pipe": instead(lambda path: os.mkfifo(path)),
    "a socket": instead(_socket),
    "an endless device": instead(lambda path: path.symlink_to("/dev/zero")),
    "a loop of links": instead(lambda path: path.symlink_to(path.name)),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "a file of the kernel": instead(lambda path: path.symlink_to("/proc/self/mem")),
}
OTHER_CONTENT: dict[str, Damage] = {
    "empty": written(b""),
    "one byte": written(b"\x01"),
    "random bytes": written(np.random.default_rng(0).bytes(4096)),
    "an .npy file of objects": written(saved(np.array([None, "x"], object))),
    "a zip archive": written(_archive(a=b"b")),
    "a gzip file": written(gzip.compress(b"x" * 1000)),
    "a pickle that calls": written(b"cos\nsystem\n(S'touch called'\ntR."),
    "a page": written(b"<!doctype html>\n<title>404</title>\n"),
    "text in UTF-16": written("store: {seed: 3}\n".encode("utf-16")),
    "escapes": written(b"\x1b[2J\x1b]0;x\x07\xc2\x9b31m: {a: 1}\n"),
}
CUTS: dict[str, Damage] = {
    "a third": cut(1 / 3),
    "two thirds": cut(2 / 3),
    "cut by two bytes": cut(1, 2),
    "its first bytes": cut(0, -12),
}
FILES = {**OTHER_KINDS, **OTHER_CONTENT, **CUTS}


@functools.cache
def text_of_json() -> dict[str, Damage]:
    """JSON that is none, or that costs more than it looks."""
    texts = {
        "NaN": '{"a": NaN}',
        "infinite": '{"a": 1e999}',
        "deep lists": "[" * 200_000,
        "deep objects": '{"a":' * 100_000,
        "a number of many digits": '{"a": ' + "9" * 300_000 + "}",
        "a key twice": '{"format": "x", "format": "datamodels-store", "format_version": 1}',
        "a list": "[1, 2]",
        "null": "null",
        "a text": '"meta"',
        "a number": "3",
        "half a character": '{"format": "\\ud800", "format_version": 1}',
        "escapes": json.dumps({"format": "\x1b[31mred\u009b", "format_version": "\x1b]0;x\x07"}),
        "three lines of brackets": "[]\n[]\n{}",
    }
    many: Damage = lambda path: written(b"[" + b"0," * 2**22 + b"0]")(path)  # noqa: E731 (made when it is needed)
    return {**{name: written(text.encode()) for name, text in texts.items()}, "many values": many}


VALUES: dict[str, Any] = {
    "null": None,
    "negative": -1,
    "huge": 10**30,
    "a fraction": 0.5,
    "true": True,
    "a text": "x\x1b[2J",
    "a path": "../../x",
    "a list": [[]],
    "an object": {"x": {"y": []}},
    "a nested list": [[[[["x"]]]]],
}


def of_form(form: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The places in content of a form (see `datamodels.reading.require`), each with its form; of a list the first item."""
    form = form[0] if isinstance(form, tuple) else form
    items = list(form.items()) if isinstance(form, dict) else [(0, form[0])] if isinstance(form, list) else []
    for key, part in items:
        yield (*place, key), part
        yield from of_form(part, (*place, key))


def put(place: tuple[Any, ...], value: Any = ..., seal: bool = True) -> Damage:
    """Another value at a place of a JSON file, or the place left out; sealed anew where it was sealed."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        part: Any = content
        for key in place[:-1]:
            part = part[key]
        if value is ...:
            del part[place[-1]]
        else:
            part[place[-1]] = value
        if seal and content.pop(SEAL, None):
            write_sealed(path, content)
        else:
            path.write_text(json.dumps(content))

    return damage


def header(text: str, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """The beginning of an .npy file with a header of one's own."""
    line = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + version + (len(line) if length is None else length).to_bytes(2, "little") + line


def _describe(descr: str = "'<f4'", order: str = "False", shape: str = "(3, 4)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


HEADERS: dict[str, bytes] = {
    "objects": header(_describe("'|O'")),
    "structured": header(_describe("[('a', '<f4'), ('b', '<f4')]")),
    "text": header(_describe("'<U3'")),
    "dates": header(_describe("'<M8[s]'")),
    "no type": header(_describe("'<q9'")),
    "negative": header(_describe(shape="(-3, 4)")),
    "huge": header(_describe(shape=f"({2**50}, 4)")),
    "overflowing": header(_describe(shape=f"({2**62}, 4)")),
    "empty and overflowing": header(_describe(shape=f"(0, {2**62})")),
    "many digits": header(_describe(shape=f"({'9' * 20_000}, 4)")),
    "fractions": header(_describe(shape="(3.0, 4)")),
    "a number for a shape": header(_describe(shape="12")),
    "many dimensions": header(_describe(shape="(" + "1," * 100 + ")")),
    "a call": header(_describe(shape="(__import__('os').system('touch called'), 4)")),
    "deep": header(_describe(shape="(" * 9_000)),
    "no shape": header("{'descr': '<f4', 'fortran_order': False, }"),
    "a key more": header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), 'x': 1, }"),
    "order of text": header(_describe(order="'C'")),
    "version 9": header(_describe(), b"\x09\x00"),
    "length beyond": header(_describe(), length=60_000),
    "no length": b"\x93NUMPY\x01\x00",
    "no text": header("\x00" * 80),
    "cut": header(_describe()) + bytes(20),
}


def npz(path: Path, **changed: Any) -> None:
    """An .npz file written anew with other arrays; None leaves one out."""
    with np.load(path) as content:
        arrays = {**content, **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def _patched(find: bytes, offset: int, value: bytes, last: bool = False) -> Damage:
    """Some bytes of a zip archive's structures overwritten, `offset` bytes behind a signature."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        at = (content.rfind(find) if last else content.find(find)) + offset
        content[at : at + len(value)] = value
        path.write_bytes(content)

    return damage


def _compressed(path: Path) -> None:
    with np.load(path) as content:
        arrays = dict(content)
    np.savez_compressed(path, **arrays)


def _twins(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        name = archive.namelist()[0]
        content = archive.read(name)
        archive.NameToInfo.pop(name)
        archive.writestr(name, content)


def _pickled(path: Path) -> None:
    with np.load(path) as content:
        first = next(iter(content))
    npz(path, **{first: np.array([None], object)})


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
ARCHIVES: dict[str, Damage] = {
    "compressed": _compressed,
    "encrypted": _patched(CENTRAL, 8, b"\x01\x00"),
    "an unknown compression": _patched(CENTRAL, 10, b"\x63\x00"),
    "a version of the future": _patched(CENTRAL, 6, b"\xff\x00"),
    "a member beyond the file": _patched(CENTRAL, 20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"),
    "another checksum": _patched(CENTRAL, 16, b"\x00\x11\x22\x33"),
    "a place beyond the file": _patched(CENTRAL, 42, b"\xff\xff\xff\x7f"),
    "another name within": _patched(LOCAL, 30, b"X"),
    "no local header": _patched(LOCAL, 0, b"XXXX"),
    "a list beyond the file": _patched(END, 16, b"\xff\xff\xff\x7f", last=True),
    "a long list": _patched(END, 12, b"\xff\xff\xff\x7f", last=True),
    "many members": _patched(END, 8, b"\xff\x7f\xff\x7f", last=True),
    "a comment": changed(lambda content: content[:-2] + b"\x04\x00more"),
    "something behind it": changed(lambda content: content + b"x" * 30),
    "names that come twice": _twins,
    "objects": _pickled,
    "a member more": lambda path: npz(path, more=np.zeros(3)),
}


def flipped(seed: int, first: int = 0, last: int | None = None) -> Damage:
    """One to eight bytes changed, drawn by a seed, between two places."""

    def damage(path: Path) -> None:
        rng, content = np.random.default_rng(seed), bytearray(path.read_bytes())
        for at in rng.integers(first, min(last or len(content), len(content)), rng.choice([1, 1, 2, 8])):
            content[at] = int(rng.integers(256)) if rng.random() < 0.5 else content[at] ^ 1 << int(rng.integers(8))
        path.write_bytes(content)

    return damage


def replaced(path: Path, folder: Path) -> None:
    """A folder's place taken by another one."""
    shutil.rmtree(path)
    shutil.copytree(folder, path)


def pickles() -> dict[str, bytes]:
    """Batches of images whose pickles ask for more than images."""

    class Call:
        def __reduce__(self) -> Any:
            return os.system, ("touch called",)

    array = pickle.dumps(np.zeros(4, np.uint8), protocol=4)
    return {
        "a call": pickle.dumps({b"data": Call(), b"labels": []}),
        "another memo": b"\x80\x02r\xff\xff\xff\x0f.",
        "a memo of gigabytes": b"\x80\x02]r\x00\x00\x00\x40}.",
        "bytes beyond": b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",
        "text beyond": b"\x80\x04\x8d\x00\x00\x00\x00\x10\x00\x00\x00.",
        "a number of bytes": b"\x80\x02\x8b\x00\x00\x00\x40.",
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "an array of objects": pickle.dumps({b"data": np.array([None]), b"labels": [1]}),
        "an array cut short": array[:-8] + b".",
        "a shape beyond": array.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
        "an extension": b"\x80\x02\x82\x01.",
        "an object elsewhere": b"\x80\x02P1\n.",
        "a global of a dot": b"\x80\x04\x8c\x05numpy\x8c\x0dcore._dtype.x\x93.",
        "a state for a class": b"\x80\x02cnumpy\nndarray\n}b.",
        "labels of thirty levels": pickle.dumps({b"data": np.zeros(3, np.uint8), b"labels": json.loads("[" * 60 + "]" * 60)}),
    }
