"""Every stage in every kind of bad surroundings: CASES, and `run_case`, which says how one ended.

A stage works on a copy of what the stages before it have left, in a process of its own that lives in the fault. What it leaves
is compared with what it leaves undisturbed, and what was there before with what was there.

    sentence          exit code 2, one sentence on stderr, nothing lost
    gone on           exit code 0, and the same result as undisturbed
    traceback, hang   what must not be
    wrong in silence  exit code 0 and another result, or something lost, or left behind
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import faulthandler
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets  # noqa: F401 (for the server from which the processes of the cases are forked)

import datamodels.regress.run
import datamodels.verify
import datamodels.worker  # noqa: F401
from datamodels import durable
from datamodels.data import beton
from datamodels.resources import CONFIGS
from datamodels.seals import FILES, META, SEAL
from datamodels.store import Store
from tests.robustness.case import GONE_ON, HANG, SENTENCE, SIGNAL, TRACEBACK, WRONG, Outcome

# What must hurt no stage at all.
HARMLESS = {
    "folder is a link",
    "folder made beforehand",
    "empty folders lost",
    "no sync of folders",
    "no exchange of names",
    "latin-1 output",
    "ASCII output",
    "nobody reads the output",
    "closed output",
    "unwritable home",
}
MOST_S, TELLS_S = 60.0, 5.0
SETTINGS = {
    "data.train_images": 60,
    "data.test_images": 20,
    "training.width": 4,
    "training.epochs": 1,
    "training.batch_size": 10,
    "training.peak_epoch": 0.5,
    "groups.models_at_once": 20,
    "store.num_models": 40,
    "store.alpha": 0.5,
    "regress.heldout": 0.34,
    "regress.choice": 0.5,
    "regress.prior": "gradients",
    "regress.device": "cpu",
    "prior.models": 2,
    "prior.dimensions": 4,
    "verify.models": 2,
    "verify.most_models": 2,
    "verify.base_models": 2,
    "verify.sizes": "5",
    "verify.subsets": 0,
    "verify.counterfactuals": "none",
    "verify.methods": "none",
    "verify.random_targets": 1,
}


@dataclass(frozen=True)
class Stage:
    """A command: its module, its arguments beside the settings, what it needs of a run, and what it makes there."""

    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    makes: str
    configured: bool = True


STAGES = {
    "data": Stage("datamodels.data", (), (), "data"),
    "worker": Stage("datamodels.worker", ("--gpu", "cpu"), ("data",), "store"),
    "regress": Stage("datamodels.regress", (), ("data", "store", "prior"), "regress"),
    "verify": Stage("datamodels.verify", ("--gpu", "cpu", "--targets", "3"), ("data", "store", "prior", "regress"), "verify"),
    "report": Stage("datamodels.report", (), ("data", "store", "regress", "verify"), "report"),
    "store check": Stage("datamodels.store", ("check", "store"), ("store",), "", configured=False),
    "store check --repair": Stage("datamodels.store", ("check", "--repair", "store"), ("store",), "", configured=False),
    "store export": Stage("datamodels.store", ("export", "store", "out"), ("store",), "out", configured=False),
    "store import": Stage("datamodels.store", ("import", "m.npy", "y.npy", "in"), ("m.npy", "y.npy"), "in", configured=False),
    "regress --export": Stage("datamodels.regress", ("--export", "w.pt"), ("regress",), "w.pt"),
}


class Observed(NamedTuple):
    """How a case ended: its outcome, the exit code (None after a hang), and what was said on stderr."""

    outcome: str
    code: int | None
    said: str


class Case(NamedTuple):
    """A stage in a fault; the names are those of the cases of hostile inputs."""

    stage: str
    fault: str

    @property
    def reader(self) -> str:
        """The stage."""
        return self.stage

    @property
    def name(self) -> str:
        """Stage and fault."""
        return f"{self.stage}: {self.fault}"

    @property
    def expected(self) -> tuple[str, ...]:
        """The outcomes that are well."""
        return (GONE_ON,) if self.fault in HARMLESS else (SENTENCE, GONE_ON)


def run_case(case: Case, folder: Path) -> Outcome | None:
    """How a stage ends in a fault, in a new folder of its own; None where the fault cannot be made here."""
    start = time.perf_counter()
    try:
        found = observe(case, folder)
    except NotHereError:
        return None
    signalled = found.code is not None and found.code < 0
    return Outcome(SIGNAL if signalled else found.outcome, time.perf_counter() - start, 0.0, found.said)


def observe(case: Case, folder: Path) -> Observed:
    """As `run_case`, with the exit code and what was said. Raises NotHereError where the fault cannot be made here."""
    stage, fault, reference = STAGES[case.stage], FAULTS[case.fault], prepared(folder.parent)
    folder.mkdir()
    with fault.around(folder):
        for name in stage.needs:
            copy(reference / name, folder / name)
        fault.before(folder, stage.makes or "store")
        there = contents(folder)
        code, said = in_a_process(case, folder)
        fault.after(folder)
        if code is None:
            return Observed(HANG, code, said)
        if code not in (0, 2) or "Traceback" in said or "Exception ignored" in said:
            return Observed(TRACEBACK, code, said)
        lost = [name for name, content in there.items() if contents(folder).get(name) != content]
        if lost or (left_behind(folder) and fault.can_remove):
            return Observed(WRONG, code, f"{said}lost: {lost}, left: {left_behind(folder)}")
        if code == 2:
            sentences = [line for line in said.splitlines() if line.startswith("error: ")]
            return Observed(SENTENCE if len(sentences) == 1 else WRONG, code, said)
        same = not stage.makes or result(folder / stage.makes) == result(reference / stage.makes)
        return Observed(GONE_ON if same else WRONG, code, said)


_PREPARED: dict[str, Path] = {}


def prepared(scratch: Path) -> Path:
    """A run with all its stages done, made once in a process: what the cases copy from, and are compared with."""
    if "run" not in _PREPARED:
        folder = scratch / "undisturbed"
        folder.mkdir()
        rng = np.random.default_rng(0)
        np.save(folder / "m.npy", rng.random((30, 12)) < 0.5)
        np.save(folder / "y.npy", rng.normal(size=(30, 4)).astype(np.float32))
        for name in STAGES:
            code, said = in_a_process(Case(name, "none"), folder)
            if code != 0:
                raise RuntimeError(f"{name} does not work undisturbed: {said}")
        _PREPARED["run"] = folder
    return _PREPARED["run"]


def in_a_process(case: Case, folder: Path) -> tuple[int | None, str]:
    """Exit code and stderr of the stage, forked from a server that has imported everything; no code where it hangs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    said = folder.parent / f"{folder.name}.stderr"
    process = context.Process(target=_live, args=(case, folder, said))
    process.start()
    process.join(MOST_S)
    hangs = process.is_alive()
    process.kill()
    process.join()
    text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
    return None if hangs else process.exitcode, text


def _live(case: Case, folder: Path, said: Path) -> None:
    """The process of a case."""
    stage, fault = STAGES[case.stage], FAULTS[case.fault]
    os.chdir(folder)
    error, null = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDWR)
    for number, fd in enumerate((null, null, error)):
        os.dup2(fd, number)
    os.closerange(3, 64) if fault.few_files else None
    flags = [part for key, value in SETTINGS.items() for part in (f"--{key}", str(value))]
    config = ["-C", str(CONFIGS / "digits.yaml"), "--run.dir", str(folder), *flags] if stage.configured else []
    sys.argv = [stage.module, *config, *stage.arguments]
    beton.available = lambda: False
    faulthandler.dump_traceback_later(MOST_S - TELLS_S, file=2)  # where it hangs
    fault.within(folder)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, open(fd, "w", encoding=fault.encoding, closefd=False) if is_open(fd) else None)  # noqa: SIM115
    try:
        runpy.run_module(stage.module, run_name="__main__")
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()


def is_open(fd: int) -> bool:
    """Whether a file has this number."""
    with suppress(OSError):
        os.fstat(fd)
        return True
    return False


def result(path: Path) -> Any:
    """What a stage has made, as far as it must be the same each time."""
    if path.is_file():
        return path.read_bytes() if path.suffix != ".pt" else path.stat().st_size
    if (path / "done.npy").exists():
        return Store(path).digest()
    if (path / "verify.json").exists():
        return json.loads((path / "verify.json").read_text(encoding="utf-8"))
    if (path / "index.html").exists():
        return sorted(file.name for file in path.iterdir())
    made: dict[str, Any] = {name: content for name, content in contents(path).items() if name not in ("metrics.json", META)}
    if (path / META).exists():  # its seals are also those of metrics.json, which tells how long it took
        made[META] = {key: value for key, value in json.loads((path / META).read_text()).items() if key not in (SEAL, FILES)}
    return made


def contents(folder: Path) -> dict[str, str]:
    """Digests of the files under a folder, without locks and bookkeeping."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if stat.S_ISREG(file.lstat().st_mode)}
    ours = re.compile(
        r"(.*/)?(\..*lock|writer\.lock|seconds\.json|filling)|claims/.*|\..*\.unfinished/.*|\..*\.tmp/.*|verify/.*"
    )
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if not ours.fullmatch(name)}


def left_behind(folder: Path) -> list[str]:
    """Unfinished files and folders of a process that is gone, and claims."""
    found = [*folder.rglob(".*.tmp"), *folder.rglob(".*.old"), *folder.rglob("claims/*")]
    return [str(path.relative_to(folder)) for path in found]


def copy(source: Path, target: Path) -> None:
    """A file or a folder, links in its way followed."""
    shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)


class NotHereError(Exception):
    """The fault cannot be made on this machine."""


class Fault:
    """Something wrong with the surroundings; `within` is done in the process of the stage, the others outside of it."""

    encoding = "utf-8"
    few_files = False
    can_remove = True

    @contextmanager
    def around(self, folder: Path) -> Iterator[None]:
        """What must be undone at the end."""
        yield

    def before(self, folder: Path, makes: str) -> None:
        """After what the stage needs is there."""

    def within(self, folder: Path) -> None:
        """In the process."""

    def after(self, folder: Path) -> None:
        """When the process has ended."""


class Mounted(Fault):
    """A small file system of its own."""

    can_remove = False

    @contextmanager
    def around(self, folder: Path) -> Iterator[None]:
        """Mount and unmount."""
        line = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        if subprocess.run(line, capture_output=True, check=False).returncode:
            raise NotHereError("no file system can be mounted here")
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class ReadOnly(Mounted):
    """It can only be read."""

    def before(self, folder: Path, makes: str) -> None:
        """From now on."""
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


class Full(Mounted):
    """There is room for a few files that are empty."""

    def before(self, folder: Path, makes: str) -> None:
        """Fill what is left."""
        with (folder / "filling").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))


class SmallFiles(Fault):
    """Files may have 1,000 bytes: a full disk for all but the smallest."""

    can_remove = False

    def within(self, folder: Path) -> None:
        """Limit this process."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


class InTheWay(Fault):
    """A file where the stage's folder should be."""

    def before(self, folder: Path, makes: str) -> None:
        """Put it there."""
        if not (folder / makes).exists() and "." not in makes:
            (folder / makes).write_text("precious")


class DanglingLink(Fault):
    """A link to a folder that is not there, where the stage's folder should be."""

    def before(self, folder: Path, makes: str) -> None:
        """Put it there."""
        if not (folder / makes).exists():
            (folder / makes).symlink_to(folder / "gone" / "too")


class Linked(Fault):
    """The stage's folder is a link to an empty folder elsewhere."""

    def before(self, folder: Path, makes: str) -> None:
        """Put it there."""
        if not (folder / makes).exists() and "." not in makes:
            (folder / f"elsewhere-{makes}").mkdir()
            (folder / makes).symlink_to(folder / f"elsewhere-{makes}")


class MadeBeforehand(Fault):
    """The stage's folder is there, and empty."""

    def before(self, folder: Path, makes: str) -> None:
        """Make it."""
        if "." not in makes:
            (folder / makes).mkdir(exist_ok=True)


class EmptyFoldersLost(Fault):
    """Copied by a tool that forgets empty folders."""

    def before(self, folder: Path, makes: str) -> None:
        """Forget them."""
        for name in ("claims", "inbox"):
            if (folder / "store" / name).exists():
                (folder / "store" / name).rmdir()


class Refused(Fault):
    """Every file or folder that is to be written under the run is refused with one error."""

    can_remove = False

    def __init__(self, number: int) -> None:
        self.number = number

    def within(self, folder: Path) -> None:
        """Stand before all that opens files."""
        here = str(folder)

        def refuse(path: Any, writes: bool) -> None:
            if writes and isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(here):  # noqa: PTH100
                raise OSError(self.number, os.strerror(self.number), os.fspath(path))

        def opening(real: Callable[..., Any]) -> Callable[..., Any]:
            def opened(file: Any, mode: Any = "r", *args: Any, **options: Any) -> Any:
                writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(mode & (os.O_CREAT | os.O_WRONLY))
                refuse(file, writes)
                return real(file, mode, *args, **options)

            return opened

        def making(real: Callable[..., Any]) -> Callable[..., Any]:
            def made(path: Any, *args: Any, **options: Any) -> Any:
                refuse(path, writes=True)
                return real(path, *args, **options)

            return made

        builtins.open = io.open = opening(open)
        os.open = opening(os.open)
        os.mkdir = making(os.mkdir)


class Locks(Fault):
    """Locks are refused with an error, or, without one, granted to everyone."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def within(self, folder: Path) -> None:
        """Stand in for flock."""

        def flock(file: Any, operation: int) -> None:
            if self.number:
                raise OSError(self.number, os.strerror(self.number))

        fcntl.flock = flock


class NoFolderSync(Fault):
    """Folders cannot be synced."""

    def within(self, folder: Path) -> None:
        """Stand in for fsync."""
        real = os.fsync

        def fsync(fd: Any) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            real(fd)

        os.fsync = fsync


class NoExchange(Fault):
    """Two names cannot be exchanged."""

    def within(self, folder: Path) -> None:
        """As on other systems than Linux."""
        durable._exchange = lambda a, b: False


class Encoding(Fault):
    """Output of another encoding."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding


class NobodyReads(Fault):
    """The reader of stdout has gone."""

    def within(self, folder: Path) -> None:
        """A pipe with one end."""
        read, write = os.pipe()
        os.dup2(write, 1)
        os.close(write)
        os.close(read)


class ClosedOutput(Fault):
    """There is no stdout."""

    def within(self, folder: Path) -> None:
        """Close it."""
        os.close(1)


class NoHome(Fault):
    """A home that cannot be written."""

    def within(self, folder: Path) -> None:
        """Move there."""
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "CUPY_CACHE_DIR"):
            os.environ.pop(name, None)
        os.environ["HOME"] = "/proc/nohome"


class Addresses(Fault):
    """Little memory is left of the process's limit."""

    can_remove = False

    def __init__(self, left: int) -> None:
        self.left = left

    def within(self, folder: Path) -> None:
        """Limit this process."""
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + self.left, resource.RLIM_INFINITY))


class FewFiles(Fault):
    """The process may have few files open."""

    few_files = True

    def within(self, folder: Path) -> None:
        """Limit this process."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


class NoSharedMemory(Fault):
    """/dev/shm can only be read; with FFCV, where that is installed."""

    def within(self, folder: Path) -> None:
        """A view of the file systems of its own."""
        beton.available = lambda: True
        libc = ctypes.CDLL(None, use_errno=True)
        new_namespace, private, read_only = 0x20000, 0x44000, 1
        if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private, None):
            os._exit(0)
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", read_only, b"size=4k")


FAULTS: dict[str, Fault] = {
    "none": Fault(),
    "read-only file system": ReadOnly(),
    "full disk": Full(),
    "file size limit": SmallFiles(),
    "file in the way": InTheWay(),
    "dangling link": DanglingLink(),
    "folder is a link": Linked(),
    "folder made beforehand": MadeBeforehand(),
    "empty folders lost": EmptyFoldersLost(),
    "no permission": Refused(errno.EACCES),
    "disk error": Refused(errno.EIO),
    "name too long": Refused(errno.ENAMETOOLONG),
    "stale file handle": Refused(errno.ESTALE),
    "locks refused": Locks(errno.ENOLCK),
    "locks not supported": Locks(errno.EOPNOTSUPP),
    "locks granted to everyone": Locks(),
    "no sync of folders": NoFolderSync(),
    "no exchange of names": NoExchange(),
    "latin-1 output": Encoding("latin-1"),
    "ASCII output": Encoding("ascii"),
    "nobody reads the output": NobodyReads(),
    "closed output": ClosedOutput(),
    "unwritable home": NoHome(),
    "address space limit, 64 MB left": Addresses(2**26),
    "address space limit, 400 MB left": Addresses(400 * 2**20),
    "few open files": FewFiles(),
}
CASES = [Case(stage, fault) for stage in STAGES for fault in FAULTS if fault != "none"]
