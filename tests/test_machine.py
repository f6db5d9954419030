"""Memory that can be had: the least of the machine's, of the control groups', of the process's own limits."""

import os
import pty
import subprocess
import sys
import time

import pytest

from datamodels.machine import free_host_memory, held_beside

GB = 2**30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "33 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n34 31 0:33 / /c/cpu rw - cgroup cgroup rw,cpu\n"


def tree(root, files):
    """A /proc and a /sys of one's own, on a machine with 16 GB free."""
    files = {"proc/meminfo": f"MemTotal: {32 * 2**20} kB\nMemAvailable:   {16 * 2**20} kB\n", **files}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(content))


def group(folder, limit, used, cache=0, version=2):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 5\n{names[2]} {cache}\nactive_file 7\n"
    return {f"{folder}/{names[0]}": limit, f"{folder}/{names[1]}": used, f"{folder}/memory.stat": stat}


HERE = "sys/fs/cgroup"
CASES = {
    "no limit": ({}, 16),
    "v2 in a container": ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, **group(HERE, 4 * GB, GB)}, 3),
    "v2, a job's parent has the limit": (
        {
            "proc/self/cgroup": "0::/slurm/job/step\n",
            "proc/self/mountinfo": V2,
            **group(f"{HERE}/slurm/job/step", "max\n", GB),
            **group(f"{HERE}/slurm/job", 5 * GB, GB),
            **group(f"{HERE}/slurm", 900 * GB, 100 * GB),
        },
        4,
    ),
    "v2, files that were read can go": (
        {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2, **group(f"{HERE}/a", 4 * GB, 4 * GB, 2 * GB)},
        2,
    ),
    "v2, over the limit": ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, **group(HERE, GB, 2 * GB)}, 0),
    "v1": (
        {
            "proc/self/cgroup": "5:cpu:/b\n4:memory:/job\n",
            "proc/self/mountinfo": V1,
            **group(f"{HERE}/memory/job", 2 * GB, GB, version=1),
            **group(f"{HERE}/memory", 2**63 - 4096, GB, version=1),
        },
        1,
    ),
    "v1, a container that sees itself as the top": (
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n",
            "proc/self/mountinfo": V1.replace("0:32 / ", "0:32 /docker/0123 "),
            **group(f"{HERE}/memory", 3 * GB, GB, version=1),
        },
        2,
    ),
    "v2, a group outside of what is mounted": (
        {"proc/self/cgroup": "0::/../other\n", "proc/self/mountinfo": V2, **group(HERE, 4 * GB, 3 * GB)},
        1,
    ),
}


@pytest.mark.parametrize(("files", "free"), CASES.values(), ids=list(CASES))
def test_the_least_limit_counts(tmp_path, files, free):
    tree(tmp_path, files)
    assert free_host_memory(tmp_path) == free * GB


def test_without_anything_to_read_half_of_the_memory_is_taken_for_free(tmp_path):
    assert 0 < free_host_memory(tmp_path) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def test_what_others_of_the_same_parent_hold(tmp_path):
    of_it, mine = os.getppid(), os.getpid()
    for pid, parent, held in ((mine, of_it, 1), (mine + 1, of_it, 2), (mine + 2, of_it, 4), (mine + 3, of_it + 1, 8)):
        text = f"Name:\tray::work x\nPPid:\t{parent}\nGroups:\t \nRssAnon:\t  {held * 2**20} kB\nRssShmem:\t 9 kB\n"
        tree(tmp_path, {f"proc/{pid}/status": text})
    (tmp_path / "proc" / str(mine + 4)).mkdir()  # it has just ended
    assert held_beside(tmp_path) == 6 * GB


@pytest.mark.parametrize("limit", ["-v", "-d"])
def test_the_limits_of_the_process_itself_count(limit):
    code = "from datamodels.machine import free_host_memory as f; import sys; a = f(); b = bytearray(a - 2**26); print(a, f())"
    line = f"ulimit {limit} 1500000; '{sys.executable}' -c '{code}'"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    before, after = map(int, found.stdout.split())
    assert 0 < after < 2**27 < before < 1_500_000 * 1024


BAR = """
import os, time
from datamodels.progress import progress
with progress("of a test", "models", 10) as advance:
    advance(3)
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
"""


def test_a_process_that_is_killed_leaves_the_terminals_cursor_as_it_was():
    ours, its = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", BAR], stderr=its, stdout=its, env={**os.environ, "TERM": "xterm"})
    os.close(its)
    shown = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    process.wait()
    os.close(ours)
    assert b"of a test" in shown
    assert b"\x1b[?25l" not in shown
