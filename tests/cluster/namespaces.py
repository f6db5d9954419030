"""A cluster of machines that are none: a network namespace each, with an address of its own, joined by a bridge.

Nothing of it is seen from outside, and nothing of it sees the outside. It takes root.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

NETWORK = "10.213.77"
PORT = 6379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def run(*command, **how):
    return subprocess.run(command, check=True, capture_output=True, text=True, **{"timeout": 120, **how})


def possible():
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"dm{os.getpid()}t"
    try:
        run("ip", "netns", "add", name)
        run("ip", "netns", "del", name)
    except (subprocess.SubprocessError, OSError):
        return False
    return True


class Machines:
    """Namespaces dmPID-0, …, of which the first holds the bridge and the head of the cluster."""

    def __init__(self, folder):
        self.folder, self.names = folder, list[str]()
        self.prefix = f"dm{os.getpid()}"

    def address(self, k):
        return f"{NETWORK}.{k + 1}"

    @property
    def head(self):
        return f"{self.address(0)}:{PORT}"

    def add(self):
        """One more machine, on the network."""
        k = len(self.names)
        name = f"{self.prefix}-{k}"
        run("ip", "netns", "add", name)
        self.names.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        first = self.names[0]
        if k == 0:
            run("ip", "-n", first, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", first, "addr", "add", f"{self.address(0)}/24", "dev", "bridge")
            run("ip", "-n", first, "link", "set", "bridge", "up")
            return k
        run("ip", "-n", first, "link", "add", f"to{k}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "-n", first, "link", "set", f"to{k}", "master", "bridge", "up")
        run("ip", "-n", name, "addr", "add", f"{self.address(k)}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        return k

    def start(self, *more):
        """A machine that starts Ray: the first one as head, the others as nodes."""
        k = self.add()
        at = ["--head", f"--port={PORT}", "--include-dashboard=false"] if k == 0 else [f"--address={self.head}"]
        at += (
            [f"--node-ip-address={self.address(k)}", f"--temp-dir={self.folder}/{k}"]
            if k == 0
            else [f"--node-ip-address={self.address(k)}"]
        )
        self.on(k, *RAY, "start", *at, "--object-store-memory=104857600", "--disable-usage-stats", *more)
        return k

    def on(self, k, *command, **how):
        """Run a command on a machine."""
        return run("ip", "netns", "exec", self.names[k], *command, **how)

    def begin(self, k, *command, **how):
        """Begin a command on a machine."""
        return subprocess.Popen(["ip", "netns", "exec", self.names[k], *command], **how)

    def processes(self, k):
        return [int(pid) for pid in run("ip", "netns", "pids", self.names[k]).stdout.split()]

    def kill(self, k):
        """Let a machine lose its power."""
        for pid in self.processes(k):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self):
        for k in reversed(range(len(self.names))):
            for _ in range(50):
                self.kill(k)
                if not self.processes(k):
                    break
                time.sleep(0.1)
            run("ip", "netns", "del", self.names[k])


@contextmanager
def machines():
    """Machines, none to begin with; ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="dm", ignore_cleanup_errors=True) as folder:
        found = Machines(Path(folder))
        try:
            yield found
        finally:
            found.end()
