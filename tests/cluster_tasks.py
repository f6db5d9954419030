"""What the processes of a cluster are given to do by the tests: functions of a module, for they are sent by name."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from datamodels.cluster import serving
from datamodels.errors import InputError

made: list[str] = []


def node():
    import ray

    return ray.get_runtime_context().get_node_id()


def device(name):
    """Of a device its name, and how often it was made in this process, are all that there is."""
    made.append(name)
    return {"device": name, "made": len(made), "pid": os.getpid(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


def with_shared(shared, _device):
    array = shared.get()
    return {"sum": int(array.sum()), "writable": array.flags.writeable, "owns": array.flags.owndata}


def what_is_here(here):
    return {**here, "node": node()}


def visible_now(here):
    """The GPUs that this task may use, and those for which what it works with was made."""
    return os.environ.get("CUDA_VISIBLE_DEVICES"), here["visible"], here["pid"]


def pid_of(_actor):
    return os.getpid()


def node_only(here):
    return node()


def where(here):
    return (node(), here["pid"]), None


def wait_there(seconds, here):
    time.sleep(seconds)
    return (node(), here["pid"]), None


def array_of(k, size, here):
    return k, np.full(size, k)


def die_until(folder, times, here):
    """Ends its process so many times."""
    deaths = len(list(folder.iterdir()))
    if deaths < times:
        (folder / f"{deaths}-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return deaths, None


def hang_on_first(folder, how, here):
    """Hangs where it comes first: asleep, or stopped, when it takes notice of nothing."""
    mark = folder / "hung"
    if not mark.exists():
        mark.write_text(node())
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    return (mark.read_text(), node()), None


def hang(here):
    time.sleep(600)


def refuse(here):
    raise InputError("there is no such thing")


def read(file, here=None, gpu=None):
    return Path(file).read_bytes()


def of_a_package(name, gpu=None):
    return importlib.import_module(name)


def fail(here):
    raise ZeroDivisionError("a fault of the program")


def say_something(here):
    print("a word from afar", file=sys.stderr)
    return node(), None


def own_module(name, here):
    """What a module that travelled is, and a file beside it."""
    import importlib

    return (importlib.import_module(name).WORD, Path("notes/text.txt").read_text(encoding="utf-8")), None


def go_on(seconds, here):
    """Takes its time, and says that it is at work."""
    serving.ALIVE_EVERY_S = 0.1
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        serving.alive()
        time.sleep(0.05)
    return (node(), here["pid"]), None


def ask(question, here):
    return question(), None
