"""What the processes of a team are given to do by the tests: functions of a module, for they are sent by name."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from datamodels import serving
from datamodels.errors import InputError
from datamodels.progress import say
from datamodels.serving import ALONE_S, MOST_LINES, tell
from datamodels.signals import noted


def name(device):
    """Of a device its name is all that there is."""
    return device


def refusing(device):
    raise InputError(f"there is no {device} here")


def slowly(folder, device):
    """Takes a while the first time."""
    if not (folder / f"began-{device}").exists():
        (folder / f"began-{device}").touch()
        time.sleep(60)
    return device


def dying(device):
    os.kill(os.getpid(), signal.SIGKILL)


def where(device):
    """The device, the process, and its cores."""
    return device, os.getpid(), sorted(os.sched_getaffinity(0)), os.getsid(0)


def die_once(folder, device):
    """Dies the first time on one device."""
    mark = folder / "died"
    if device == "cpu" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return device


def die(device):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(device):
    """Dies, and leaves a process behind that has copies of all its files."""
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error, device):
    """The first device fails, the other one would take long."""
    if device == "0":
        raise error
    time.sleep(60)


def fail_unheard(device):
    """As `fail`, but the signal comes just before the other one begins to sleep, and does not wake it."""
    if device == "0":
        time.sleep(0.5)
        raise ValueError("a fault")
    kill, sent = os.kill, []

    def lost_once(pid, number):
        sent.append(number)
        if len(sent) > 1:
            kill(pid, number)

    os.kill = lost_once
    try:
        time.sleep(60)
    finally:
        os.kill = kill


def fail_while_signals_are_noted(file, device):
    """As `fail`, but the other one takes the signal into its own hands, as training does, and has work to finish."""
    if device == "0":
        time.sleep(0.5)
        raise ValueError("a fault")
    with noted() as stop:
        while not stop.wait(0.05):
            pass
        time.sleep(2.5 * ALONE_S)
    time.sleep(2.5 * ALONE_S)
    file.write_text("finished")
    raise KeyboardInterrupt


def finish(file, device):
    """The first device tells something, the other one goes on for a while after a signal, and finishes a file."""
    if device == "0":
        time.sleep(0.2)
        tell("a word")
        return
    with noted() as stop:
        stop.wait(60)
        time.sleep(2)
        file.write_text("finished")
        raise KeyboardInterrupt


def fork_and_answer(device):
    """Leaves a process behind, which says more than waits to be sent, and dies in the middle of its answer."""
    if os.fork() == 0:
        for _ in range(2 * MOST_LINES):
            print("of a child", file=sys.stderr)
        print("all is said", file=sys.stderr, flush=True)
        time.sleep(20)
        os._exit(0)
    worker = serving._worker
    assert worker is not None
    line = worker.connection.fileno()

    def send_half(_answer):
        os.write(line, struct.pack("!i", 1000) + bytes(10))
        os.kill(os.getpid(), signal.SIGKILL)

    worker.connection.send = send_half  # type: ignore[method-assign]
    time.sleep(1)
    return device


def last_a_while(device):
    """Longer than a process waits for the next word."""
    time.sleep(2.5 * ALONE_S)
    return device


def leave_python(device):
    sys.exit(3)


def give(what, device):
    return what


def large(n, device):
    return np.arange(n)


def unsendable(device):
    return lambda: None


class Unreadable:
    def __reduce__(self):
        return (int, ("no number",))


def write(lines, threads, device):
    """Many lines of several threads at once, a word at a time, and one without an end."""

    def some(k):
        for i in range(lines):
            for word in (f"thread {k} ", f"line {i}", "\n"):
                sys.stderr.write(word)

    running = [threading.Thread(target=some, args=[k]) for k in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    say("said")
    sys.stderr.write("no end")
    return sys.stderr.isatty()


def tell_squares(n, device):
    for i in range(n):
        tell(i * i)
    return n


def after_a_sleep(folder, seconds, device):
    """Notes when it begins, and that it was interrupted."""
    Path(folder, f"began-{device}-{os.getpid()}").touch()
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        Path(folder, f"stopped-{device}-{os.getpid()}").touch()
        raise
    return device


def stubborn(folder, device):
    """Takes no notice of anything."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(folder, f"began-{device}-{os.getpid()}").touch()
    time.sleep(60)


def end_by_a_signal(device):
    """As when a scheduler ends this one process."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def start_a_program(device):
    """How many sockets a program started here has of ours, which it is let have all files of."""
    code = "import os; print(sum('socket' in os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if int(f) > 2 and os.path.exists(f'/proc/self/fd/{f}')))"  # noqa: E501
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False).stdout
