"""What stands for a process of a regression over several devices in the tests, where something is to go wrong or be seen."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from datamodels.regress import devices, on_ray
from datamodels.regress.path import Run
from datamodels.regress.unfinished import Carried, Unfinished

HERE = "DATAMODELS_TEST_FOLDER"


def once(name):
    """Whether this is the first process to ask so."""
    try:
        os.close(os.open(Path(os.environ[HERE], name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def noting(plan, device):
    """Says who keeps what, and takes its time, so that the other one, which is waited for, has some to do too."""
    keep = Unfinished.keep

    def noted(self, name, arrays):
        keep(self, name, arrays)
        with Path(os.environ[HERE], "kept.txt").open("a") as file:
            file.write(f"{os.getpid()} {name}\n")
        time.sleep(0.4)  # long enough on a machine with other work

    Unfinished.keep = noted  # type: ignore[method-assign]
    task = devices.prepare(plan, device)
    here, until = Path(os.environ[HERE]), time.monotonic() + 30
    (here / f"ready-{os.getpid()}").touch()
    while len(list(here.glob("ready-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    return task


def dying_after(stage, plan, device):
    """The first to have kept something of a stage is killed."""
    keep = Unfinished.keep

    def killed(self, name, arrays):
        keep(self, name, arrays)
        if name.startswith(stage) and once("died"):
            os.kill(os.getpid(), signal.SIGKILL)

    Unfinished.keep = killed  # type: ignore[method-assign]
    return noting(plan, device)


def dying_always(plan, device):
    """Nobody comes to an end."""

    def killed(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)

    Run.choose = Run.with_prior = killed  # type: ignore[method-assign]
    return devices.prepare(plan, device)


def strict(plan, device):
    """CuPy is the strict stand-in, with two GPUs; what is asked of which is left behind."""
    from tests.standins.strict_cupy import StrictCupy

    cupy = StrictCupy()
    cupy.devices = 2
    sys.modules["cupy"] = cupy  # type: ignore[assignment]
    task = devices.prepare(plan, device)

    def watched():
        share = task()
        used = [number for number in (0, 1) if cupy.peak[number]]
        Path(os.environ[HERE], f"used-{device}").write_text(f"{used} {cupy.held[int(device)]} {cupy.log}")
        return share

    return watched


def leaving(folder, plan, device):
    """The first process of a cluster that has chosen λ for something ends before it says so."""
    keep = Carried.keep

    def left(self, name, arrays):
        keep(self, name, arrays)
        if name.startswith("chosen"):
            with suppress(FileExistsError):
                Path(folder, "left").touch(exist_ok=False)
                os._exit(1)

    Carried.keep = left  # type: ignore[method-assign]
    return on_ray.prepare(plan, device)
