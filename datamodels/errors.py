"""The one error that a user can cause, and how every command ends with it, and with what its surroundings do to it."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
GO_ON = "run the same command again to go on"
STOPPING = "stopping after what is at work; once more ends it at once"
LIBRARIES_BYTES = 2**28
"""Of addresses; with 240 MB OpenBLAS was still seen to look for memory without an end."""
WHAT_IS_WRONG = {
    errno.ENOENT: "{path} is not there",
    errno.EACCES: "there is no permission for {path}",
    errno.EPERM: "there is no permission for {path}",
    errno.EROFS: "{path} lies on a file system that can only be read",
    errno.EEXIST: "{path} is there already",
    errno.ENOTEMPTY: "{path} is a folder that is not empty",
    errno.ENOTDIR: "{path} has a file in its path, where a folder is needed",
    errno.EISDIR: "{path} is a folder, where a file is needed",
    errno.ENAMETOOLONG: "{path} is a name too long for the file system",
    errno.ELOOP: "{path} is a link that leads back to itself",
    errno.EMFILE: "too many files are open at once at {path}; a higher `ulimit -n` helps",
    errno.ENODEV: "{path} lies on a file system, or is a device, that cannot do what a file can",
    errno.EIO: "the disk reports an error at {path}",
}
"""What an error of the operating system means, by its number."""
NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "can't start new thread",
    "failed to map segment",
    # Of CUDA's libraries: cuDNN finds no engine where none fits into what is left, and cuBLAS cannot make its handle.
    "unable to find an engine",
    "alloc_failed",
    "allocation_failed",
    "out_of_memory",
    "memoryallocation",
    "cublas_status_not_initialized",
)
"""What libraries say that have no memory, and no exception of its own for it."""


class InputError(Exception):
    """Something given from outside cannot be used. Its text is one clear sentence; commands print it and exit with 2."""


def shown(text: str, most: int = 2000) -> str:
    """Text of any origin as one line to look at: what a terminal would obey is escaped, the middle of long text left out."""
    if len(text) > most:
        text = f"{text[: most - most // 3]} … {text[len(text) - most // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function, and let nothing from outside end it but in a sentence.

    Exit code 2 after an InputError, an error of the operating system, or where memory does not suffice; 130 after Ctrl-C, which
    is told where what is at work is finished first; a second one ends the process at once. Output that cannot be written, for
    the encoding has no such character or nobody reads it any more, ends nothing.
    """
    from datamodels.progress import command_at_work  # which builds on this module

    atexit.register(gc.freeze)  # so that Python does not look for two seconds at all that there is once more, to forget it
    with _lasting_output(), _told_interrupt():
        try:
            with command_at_work():
                main()
        except KeyboardInterrupt:
            print(f"interrupted; {GO_ON}", file=sys.stderr)
            sys.exit(130)
        except Exception as e:
            sentence = in_a_sentence(e)
            if sentence is None:
                raise
            print(f"error: {shown(sentence)}", file=sys.stderr)
            sys.exit(2)


def tell_in_a_sentence_before_a_command() -> None:
    """Let what ends a command while its libraries are still being loaded, such as too little memory, be a sentence as well.

    `run_command` is not at work yet then.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], e: BaseException, trace: TracebackType | None) -> None:
        from datamodels.progress import leave_terminal  # which builds on this module

        leave_terminal()
        if issubclass(kind, KeyboardInterrupt):
            print(f"interrupted; {GO_ON}", file=sys.stderr)
            raise SystemExit(130)
        try:
            sentence = in_a_sentence(e)
            if sentence is None:
                before(kind, e, trace)
                return
            print(f"error: {shown(sentence)}", file=sys.stderr)
        except MemoryError:  # there is not even enough to say so
            os.write(2, b"error: memory does not suffice\n")
            os._exit(2)
        raise SystemExit(2)

    sys.excepthook = hook


def refuse_too_little_for_libraries() -> None:
    """Raise MemoryError where a limit of the process leaves less memory than its libraries take.

    On processors with AVX-512 an OpenBLAS that is being loaded then asks for it again and again, without an end.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LIBRARIES_BYTES:
        raise MemoryError(f"ulimit -v leaves {limit / 1e6:.0f} MB, and the libraries take {LIBRARIES_BYTES / 1e6:.0f}")


def in_a_sentence(e: BaseException) -> str | None:
    """What an error says that has its cause outside this program; None for any other."""
    if isinstance(e, InputError):
        return _message(e) or "no reason was given"
    if of_memory(e):
        return f"memory does not suffice ({one_line(e)}); with more of it, or a smaller task, {GO_ON}"
    if isinstance(e, OSError) and isinstance(e.errno, int):  # in a person's code it may be anything
        return _of_the_system(e)
    return None


def of_memory(e: BaseException) -> bool:
    """Whether an error says that memory does not suffice: Python's, NumPy's, CuPy's, PyTorch's, the operating system's."""
    if isinstance(e, MemoryError) or (isinstance(e, OSError) and isinstance(e.errno, int) and e.errno == errno.ENOMEM):
        return True
    return isinstance(e, (RuntimeError, ImportError)) and any(word in _message(e).lower() for word in NO_MEMORY)


def one_line(e: BaseException, most: int = 300) -> str:
    """An exception's type and message in one line that can be printed, cut where it is long."""
    text = shown(" ".join(_message(e).split()), most)
    name = shown(type(e).__name__, 80)
    return f"{name}: {text}" if text else name


def _message(e: BaseException) -> str:
    """What an exception says; nothing where saying it fails, as it may for classes of other people."""
    try:
        return str(e)
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever their code raises, the end of the process too
        return ""


def _of_the_system(e: OSError) -> str:
    path = next((os.fsdecode(name) for name in (e.filename2, e.filename) if isinstance(name, (str, bytes))), "")
    if e.errno in NO_ROOM:
        return f"no room left on the disk{f' for {path}' if path else ''}; make room and {GO_ON}"
    meaning = WHAT_IS_WRONG.get(e.errno or 0)
    if meaning is None or not path:
        return one_line(e)
    return f"{meaning.format(path=path)}; when that is mended, {GO_ON}"


class _Lasting:
    """A stream that takes what cannot be written without a word: its reader has gone, its disk is full, or it is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or seem to."""
        with self._silenced():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or seem to."""
        with self._silenced():
            self._stream.flush()

    def close(self) -> None:
        """Flush only: a person's function that closes stdout shall not silence this program, nor free the file's number."""
        self.flush()

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:
            if isinstance(e, UnicodeError):
                raise
            # What is in the stream's buffer would fail again at the process's end.
            with suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _lasting_output() -> Iterator[None]:
    """Let stdout and stderr take everything: characters that their encoding lacks, a reader that has gone, being closed."""
    _occupy_standard_files()
    before, lasting = (sys.stdout, sys.stderr), list[_Lasting]()
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None:  # closed when the process began
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        with suppress(AttributeError, OSError, ValueError):  # not every stream has it
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        lasting.append(_Lasting(stream))
        setattr(sys, name, lasting[-1])
    try:
        yield
    finally:
        for each in lasting:
            each.flush()
        sys.stdout, sys.stderr = before


def _occupy_standard_files() -> None:
    """Let no file of ours get the number 0, 1 or 2, to which libraries print."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return


@contextmanager
def _told_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C say that what is at work is finished first, and the second one end the process at once."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) != signal.default_int_handler
    ):
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with suppress(RuntimeError):  # it came in the middle of another line
            print(STOPPING, file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
