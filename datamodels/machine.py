"""On what machine and with which versions a figure came to be: every figure carries them."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datamodels.errors import InputError

THREAD_BYTES = 2**24
"""Of addresses, for a thread's stack and what else its libraries want."""
PACKAGES = ("torch", "numpy", "scipy", "ffcv", "cupy-cuda13x", "cupy-cuda12x")


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, operating system, Python, and the packages that decide speed."""
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def cores() -> int:
    """How many processor cores this process may use."""
    return len(affinity())


def affinity() -> list[int]:
    """The processor cores that this process may use, by number."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process could take now without swapping, nor being killed or refused.

    The least of what the machine has, what each control group around the process (a container's, a job's; cgroup v1 and v2)
    leaves of its limit, and what the process's own limits (RLIMIT_AS, RLIMIT_DATA) leave. `root` is where /proc and /sys lie.
    """
    found = [_free_of_machine(root), *_free_of_groups(root), *_free_of_process(root)]
    return max(0, min(found))


def held_beside(root: Path = Path("/")) -> int:
    """Bytes of memory of their own that other processes have which the same one has started. `root` is where /proc lies."""
    held = 0
    for folder in (root / "proc").glob("[0-9]*"):
        words = [line.split() for line in _lines(folder / "status")]
        found = {of[0]: of[1] for of in words if len(of) > 1}
        if found.get("PPid:") == str(os.getppid()) and folder.name != str(os.getpid()):
            held += int(found.get("RssAnon:", 0)) * 1024
    return held


def refuse_tight_limits() -> None:
    """Raise InputError where the process's own limits leave no memory for the threads that train: libraries crash then."""
    least = THREAD_BYTES * (4 + cores())
    left = min(_free_of_process(Path("/")), default=least)
    if left < least:
        raise InputError(
            f"a limit of this process (ulimit -v or -d) leaves {megabytes(left)}, and {megabytes(least)} are needed"
        )


def _free_of_machine(root: Path) -> int:
    lines = _lines(root / "proc/meminfo")
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# Of each version of control groups: limit, use, and what of the use could be given back: files read and not used since.
_CGROUP_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _free_of_groups(root: Path) -> Iterator[int]:
    """What is left of the limit of each control group that the process is in, up to where they are mounted."""
    for kind, mounted, within in _mounted_groups(root):
        limit, usage, reclaimable = _CGROUP_FILES[kind]
        for folder in [mounted / part for part in (within, *within.parents)]:
            wanted, used = (_number(folder / name) for name in (limit, usage))
            if wanted is not None and used is not None:
                kept = (line.split() for line in _lines(folder / "memory.stat"))
                yield wanted - used + sum(int(pair[1]) for pair in kept if pair[0] == reclaimable)


def _mounted_groups(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Of each hierarchy that counts memory: its version, where it is mounted, and the process's group below that."""
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" ", 2), "", "", "")[:3]
        if kind not in _CGROUP_FILES or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        top, mounted = before.split()[3:5]
        for number, controllers, path in groups:
            if (number == "0") if kind == "cgroup2" else ("memory" in controllers.split(",")):
                # Seen from within a container a group may lie outside of what is mounted: then that is all there is to see.
                within = Path(path).relative_to(top) if Path(path).is_relative_to(top) else Path()
                yield kind, root / mounted.lstrip("/"), within


def _free_of_process(root: Path) -> Iterator[int]:
    """What the process's own limits leave it of addresses and of data."""
    sizes = {line.split(":")[0]: line.split()[1] for line in _lines(root / "proc/self/status") if line.startswith("Vm")}
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - int(sizes.get(name, 0)) * 1024


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def room(size: float) -> str:
    """A number of bytes in words: 5.1 kB, 47 MB, 12.3 GB."""
    for unit, name in ((1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")):
        if size < 999.5 * unit or name == "TB":
            return f"{size / unit:.1f} {name}" if size < 99.95 * unit else f"{size / unit:.0f} {name}"
    raise AssertionError("nothing is larger")


def megabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e6:,.0f} MB"


def processor() -> str:
    """The processor by name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
