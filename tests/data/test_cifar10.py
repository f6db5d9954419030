"""CIFAR-10's two layouts, packed and unpacked, read alike; and everything that must be refused.

With CIFAR10_DIR set to a folder that holds cifar-10-batches-bin and cifar-10-batches-py the images are those, otherwise noise.
"""

import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import struct
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datamodels.data import prepare
from datamodels.data.cifar import CIFAR10, _pickled_batch
from datamodels.data.download import download
from datamodels.data.sources import average_pool, read_source
from datamodels.errors import InputError
from datamodels.runs import stage_folder
from datamodels.settings import DataSettings

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def python2_pickle(pixels, labels):
    """A batch in the opcodes that Python 2 with NumPy 1 wrote, protocol 2: strings are bytes, as Python 3 cannot write."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + numbers + b"u."


def write_noise(folder):
    """Both layouts of the same noise; the first pickle as Python 2 wrote the official ones, the others as Python 3 does."""
    rng = np.random.default_rng(0)
    binary, pickled = folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"
    for path in (binary, pickled):
        path.mkdir()
    for name in BATCHES:
        pixels, labels = rng.integers(0, 256, (10_000, 3072), np.uint8), rng.integers(0, 10, 10_000)
        np.hstack([labels[:, None].astype(np.uint8), pixels]).tofile(binary / f"{name}.bin")
        python3 = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=4)
        (pickled / name).write_bytes(python2_pickle(pixels, labels) if name == BATCHES[0] else python3)


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    if "CIFAR10_DIR" in os.environ:
        return Path(os.environ["CIFAR10_DIR"])
    folder = tmp_path_factory.mktemp("cifar")
    write_noise(folder)
    return folder


def wanted(source, n=50_000, t=10_000, **more):
    return DataSettings("cifar10", **{"source": str(source), "train_images": n, "test_images": t, "verify_md5": False, **more})


def same(a, b):
    return all(np.array_equal(x, y) for one, other in zip(a[:2], b[:2], strict=True) for x, y in zip(one, other, strict=True))


@pytest.fixture(scope="session")
def raw(cifar):
    return read_source(wanted(cifar / "cifar-10-batches-bin"))


def test_pixels_are_where_the_official_description_puts_them(cifar, raw):
    assert (raw.train.images.shape, raw.test.images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert raw.class_names == CIFAR10.classes
    content = (cifar / "cifar-10-batches-bin" / "data_batch_2.bin").read_bytes()
    row = content[7 * 3073 : 8 * 3073]
    assert raw.train.labels[10_007] == row[0]
    for y, x, channel in ((0, 0, 0), (5, 7, 2), (31, 30, 1)):
        assert raw.train.images[10_007, y, x, channel] == row[1 + channel * 1024 + y * 32 + x]


def test_pickled_batches_hold_the_same(cifar, raw):
    assert same(read_source(wanted(cifar / "cifar-10-batches-py")), raw)


def test_both_archives_hold_the_same_and_are_checked(cifar, raw, tmp_path):
    for name, folder in (("cifar-10-binary.tar.gz", "cifar-10-batches-bin"), ("cifar-10-python.tar.gz", "cifar-10-batches-py")):
        (tmp_path / folder).mkdir()
        archive = tmp_path / folder / name
        with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
            tar.add(cifar / folder, folder)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        for source in (archive, archive.parent):
            assert same(read_source(wanted(source, verify_md5=True, md5=md5)), raw)
        with pytest.raises(InputError, match="altered or cut short"):
            read_source(wanted(archive, verify_md5=True))
        whole = archive.read_bytes()
        archive.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"is cut short or no tar archive|is missing in"):
            read_source(wanted(archive))


def test_a_part_of_the_images_pooled(cifar, raw):
    some = read_source(wanted(cifar, 1500, 20, pool=2))
    assert some.train.images.shape == (1500, 16, 16, 3)
    by_hand = raw.train.images[9, 4:6, 10:12, 1].astype(float).mean()
    assert abs(some.train.images[9, 2, 5, 1] - by_hand) <= 0.5
    assert np.array_equal(some.test.labels, raw.test.labels[:20])
    with pytest.raises(InputError, match=r"data.pool must divide"):
        average_pool(raw.test.images[:2], 3)


def test_more_images_than_there_are_is_refused(cifar):
    with pytest.raises(InputError, match=r"50000 train images; data.train_images asks for 50001 \(0 takes all\)"):
        read_source(wanted(cifar, 50_001))


def test_an_unpacked_folder_has_no_md5_to_check(cifar):
    with pytest.raises(InputError, match=r"set data.verify_md5 false"):
        read_source(wanted(cifar, verify_md5=True))


@pytest.fixture
def copy(cifar, tmp_path):
    """A copy of the binary layout by links, each of which a test may replace."""
    for file in (cifar / "cifar-10-batches-bin").glob("*.bin"):
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def test_damaged_binary_batches_are_refused_and_nothing_is_written(copy, settings, tmp_path):
    chosen = settings(
        data__dataset="cifar10", data__source=str(copy), data__verify_md5="false", run__dir=str(tmp_path / "a" / "run")
    )
    content, path = (copy / "data_batch_3.bin").read_bytes(), copy / "data_batch_3.bin"
    for bad, named in (
        (content[:-1], "data_batch_3.bin in .* has 30729999 bytes instead of 30730000"),
        (b"\x0a" + content[1:], "data_batch_3.bin in .* has labels outside 0 to 9"),
        (None, "data_batch_3 is missing"),
    ):
        path.unlink()
        if bad is not None:
            path.write_bytes(bad)
        with pytest.raises(InputError, match=named):
            prepare(chosen)
        assert not stage_folder(chosen, "data").exists()
        path.touch()


class Bomb:
    """What a hostile pickle would do: call a function of its own choice."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_calls_anything_is_refused_before_it_does(cifar, tmp_path):
    good = (cifar / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    marker = tmp_path / "called"
    floats, bytes_ = np.zeros((10, 3072), np.float32), np.zeros((10_000, 3072), np.uint8)
    for bad, named in (
        (pickle.dumps(Bomb(marker)), "is refused: its pickle asks for pathlib"),
        (pickle.dumps({b"data": Bomb(marker)}), "is refused"),
        (good[:1000], "cut short or not a CIFAR-10 batch"),
        (b"", "cut short or not a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "cut short or not a CIFAR-10 batch"),
        (pickle.dumps({b"data": floats, b"labels": [0] * 10_000}), "is refused: its pickle has an array of 'f4'"),
        (pickle.dumps({b"data": bytes_[:9], b"labels": [0] * 10_000}), "does not hold 10000 images"),
        (pickle.dumps({b"data": bytes_, b"labels": ["0"] * 10_000}), "does not hold"),
    ):
        (tmp_path / "data_batch_1").write_bytes(bad)
        with pytest.raises(InputError, match=named):
            read_source(wanted(tmp_path))
    assert not marker.exists()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with ranges, and breaks off as often as told after half of what is left."""

    breaks = 0
    requests: list[str | None] = []  # noqa: RUF012  one server at a time

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes() if "missing" not in self.path else None
        asked = self.headers.get("Range")
        Server.requests.append(asked)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(content) > 0 and asked:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if Server.breaks:
            Server.breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder served on this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file.tar.gz").write_bytes(np.random.default_rng(0).bytes(1_000_003))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.breaks, Server.requests = 0, []
    yield folder / "file.tar.gz", f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_download_that_breaks_off_goes_on_where_it_was(served, tmp_path):
    file, address = served
    Server.breaks = 2
    path = download(address + "file.tar.gz", tmp_path / "new" / "file.tar.gz", md5_of(file))
    assert path.read_bytes() == file.read_bytes()
    assert Server.requests == [None, "bytes=500001-", "bytes=750002-"]
    assert [p.name for p in path.parent.iterdir()] == ["file.tar.gz"]


def test_a_part_of_an_earlier_process_is_continued(served, tmp_path):
    file, address = served
    (tmp_path / "file.tar.gz.part").write_bytes(file.read_bytes()[:1000])
    download(address + "file.tar.gz", tmp_path / "file.tar.gz", md5_of(file))
    assert Server.requests == ["bytes=1000-"]
    shutil.copy(file, tmp_path / "again.part")
    download(address + "file.tar.gz", tmp_path / "again", md5_of(file))
    assert md5_of(tmp_path / "again") == md5_of(file)


def test_an_altered_download_is_deleted_and_a_refused_one_is_said(served, tmp_path):
    _, address = served
    with pytest.raises(InputError, match=r"instead of 0+; what was downloaded is deleted"):
        download(address + "file.tar.gz", tmp_path / "x", "0" * 32)
    with pytest.raises(InputError, match="404"):
        download(address + "missing", tmp_path / "x", "0" * 32)
    assert len(Server.requests) == 2
    with pytest.raises(InputError, match="https"):
        download("file:///etc/passwd", tmp_path / "x", "0" * 32)
    assert [p.name for p in tmp_path.iterdir()] == ["served"]


def test_without_a_source_the_archive_is_fetched_or_the_lack_is_said(cifar, raw, served, tmp_path):
    file, address = served
    with tarfile.open(file, "w:gz", compresslevel=0) as tar:
        tar.add(cifar / "cifar-10-batches-bin", "cifar-10-batches-bin")
    source = tmp_path / "data" / "cifar10"
    with pytest.raises(InputError, match=r"data.download is false"):
        read_source(wanted(source, download=False))
    fetched = wanted(source, url=address + "file.tar.gz", md5=md5_of(file), verify_md5=True)
    assert same(read_source(fetched), raw)
    assert len(Server.requests) == 1
    assert same(read_source(fetched), raw)
    assert len(Server.requests) == 1


def test_where_an_archive_lies_beside_what_it_unpacks_to_the_archive_is_checked_and_read(cifar, tmp_path):
    """The folder that torchvision leaves."""
    (tmp_path / "cifar-10-batches-py").symlink_to(cifar / "cifar-10-batches-py")
    (tmp_path / "empty").write_bytes(b"")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "empty", "cifar-10-batches-py/data_batch_1")
    known = {"md5_python": hashlib.md5(archive.read_bytes()).hexdigest()}
    with pytest.raises(InputError, match=r"data_batch_1 in .* is cut short or not a CIFAR-10 batch"):
        read_source(wanted(tmp_path, verify_md5=True, **known))
    with pytest.raises(InputError, match="not one of the official archives"):
        read_source(wanted(tmp_path, verify_md5=True))


def test_a_batch_pickled_by_protocol_5_is_read(cifar):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (10_000, 3072), np.uint8), np.arange(10_000) % 10
    for given in (pixels, np.asfortranarray(pixels)):
        content = pickle.dumps({b"data": given, b"labels": labels}, protocol=5)
        images, found = _pickled_batch(content, 10_000, "here", CIFAR10)
        assert np.array_equal(images, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert np.array_equal(found, labels)


def test_an_archive_that_unpacks_to_far_more_is_refused_in_time(tmp_path):
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as bomb:
        info = tarfile.TarInfo("data_batch_1")
        info.size = 2**33
        bomb.write(info.tobuf())
        for _ in range(300):
            bomb.write(bytes(2**20))
    with pytest.raises(InputError, match="unpacks to more than"):
        read_source(wanted(tmp_path / "bomb.tar.gz"))
