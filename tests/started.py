"""Commands in processes forked from one that has imported the libraries: that takes 2 to 8 s, longer than most commands take.

The package's own modules are imported by each command itself. Commands as a person starts them, from nothing, are run beside
these: the stages of tests/report/test_road.py, and wherever processes are killed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("fastargs", "ffcv", "jinja2", "matplotlib.figure", "numpy", "PIL.Image", "scipy.optimize"),
    *("scipy.sparse", "scipy.special", "scipy.stats", "sklearn.datasets", "sklearn.linear_model", "torch", "yaml"),
)
LIMIT_S = 300

Done = subprocess.CompletedProcess[str]


def run(module: str, *arguments: object, cwd: Path | None = None, path: Path | None = None) -> Done:
    """What `python -m module ARGUMENTS` does in the folder `cwd`; `path` has modules of one's own."""
    return run_together([(module, *arguments)], cwd, path)[0]


def run_together(lines: Sequence[Sequence[object]], cwd: Path | None = None, path: Path | None = None) -> list[Done]:
    """As `run`, of several commands at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder, f"{k}.out"), Path(folder, f"{k}.err")) for k in range(len(lines))]
        wanted = {
            "lines": [[str(part) for part in line] for line in lines],
            "said": [[str(out), str(err)] for out, err in said],
            "cwd": str(cwd or Path.cwd()),
            "path": [] if path is None else [str(path)],
            "environment": dict(os.environ),
        }
        codes = _asked(wanted)
        texts = [[file.read_text(encoding="utf-8") for file in files] for files in said]
    return [Done(list(map(str, line)), code, out, err) for line, code, (out, err) in zip(lines, codes, texts, strict=True)]


def _asked(wanted: dict[str, Any]) -> list[int]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(wanted) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], LIMIT_S)[0]:
        os.killpg(server.pid, signal.SIGKILL)
        _server.cache_clear()
        raise TimeoutError(f"{wanted['lines']} did not end within {LIMIT_S} s")
    codes: list[int] = json.loads(server.stdout.readline())
    return codes


@functools.cache
def _server() -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-m", __name__], cwd=Path(__file__).parents[1], **pipes)
    atexit.register(process.communicate)  # it ends where nobody can ask any more
    return process


def main() -> None:
    """Fork what is asked for, line by line, until nobody can ask any more."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # FFCV is not everywhere
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each process copies all of it when it counts
    for line in sys.stdin:
        wanted, started = json.loads(line), list[int]()
        for command, said in zip(wanted["lines"], wanted["said"], strict=True):
            started.append(os.fork())
            if started[-1] == 0:
                os._exit(_lived(command, said, wanted))  # an end that takes down all the libraries takes longer than the rest
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
        print(json.dumps(codes), flush=True)


def _lived(command: list[str], said: list[str], wanted: dict[str, Any]) -> int:
    """The exit code of a command, whose process this one is from now on."""
    for number, name in enumerate([os.devnull, *said]):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.environ["PYTHONPATH"] = os.pathsep.join([*wanted["path"], os.environ.get("PYTHONPATH", "")])
    os.chdir(wanted["cwd"])
    sys.path[:] = [wanted["cwd"], *wanted["path"], *sys.path[1:]]
    sys.argv = command
    code = 0
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


if __name__ == "__main__":
    main()
