"""Kills over the whole road: parents and children die by SIGKILL at random moments, and what is resumed ends as if none had.

    python -m tests.verify.kills --kills 40          (about five minutes on two cores)

Runs `python -m datamodels --gpu cpu,cpu` in a folder, kills it or one of its processes after a random time, starts it again,
and compares the files of the end with those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datamodels.resources import CONFIGS
from tests.conftest import SMALL

COMPARED = (
    "verify/verify.json",
    "verify/verify.csv",
    "regress/bias.npy",
    "store/margins.npy",
    "store/masks.npy",
    "targets.txt",
)
DIGITS = {
    **SMALL,
    "store.num_models": 60,
    "regress.prior": "gradients",
    "verify.random_targets": 5,
    "verify.models": 3,
    "verify.most_models": 6,
    "verify.base_models": 6,
    "verify.subsets": 4,
    "verify.subset_models": 2,
}


def command(folder: Path, changed: dict[str, object], gpu: str = "cpu,cpu") -> subprocess.Popen[bytes]:
    """The whole road, begun or gone on with."""
    values = {**DIGITS, **changed, "run.dir": folder}
    flags = [str(part) for key, value in values.items() for part in (f"--{key}", value)]
    line = [sys.executable, "-m", "datamodels", "-C", str(CONFIGS / "digits.yaml"), *flags, "--gpu", gpu]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (folder.parent / f"{folder.name}.log").open("ab")
    with log:
        return subprocess.Popen(line, stdout=log, stderr=log, env=environment)


def processes_of(parent: int) -> list[int]:
    """A process and those that it has started."""
    found = [parent]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def disturbed(folder: Path, kills: int, changed: dict[str, object], seed: int = 0, most_s: float = 8.0) -> dict[str, int]:
    """Run to the end, with so many kills on the way; how many were of the parent, of children, and how often it was begun."""
    rng, count = random.Random(seed), {"parent": 0, "child": 0, "starts": 0}
    while True:
        process = command(folder, changed)
        count["starts"] += 1
        while process.poll() is None and count["parent"] + count["child"] < kills:
            time.sleep(rng.uniform(0.2, most_s))
            there = processes_of(process.pid) if process.poll() is None else []
            if not there:
                break
            # Children are there for a part of the time only: so they are the likelier victims then.
            victim = rng.choice(there[1:] if there[1:] and rng.random() < 0.75 else there[:1])
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            count["parent" if victim == process.pid else "child"] += 1
        if process.wait() == 0 and count["parent"] + count["child"] >= kills:
            return count
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"exit code {process.returncode}: see {folder.parent / (folder.name + '.log')}")
        if process.returncode == 0:
            # Done before all kills: the verdicts are taken away, the models are not.
            (folder / "verify" / "verify.json").unlink()


def differences(one: Path, other: Path) -> list[str]:
    """The files that differ between two runs."""
    found = [name for name in COMPARED if (one / name).read_bytes() != (other / name).read_bytes()]
    return [name for name in found if name != "verify/verify.json" or not _same_verdicts(one / name, other / name)]


def _same_verdicts(one: Path, other: Path) -> bool:
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    return bool(a == b)


def main() -> None:
    """Print what was killed, and whether the end is the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.verify.kills")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name, "whole"), Path(name, "broken")
        if command(whole, {}).wait():
            raise SystemExit(Path(name, "whole.log").read_text(encoding="utf-8"))
        try:
            count = disturbed(broken, args.kills, {}, args.seed)
        except RuntimeError as e:
            raise SystemExit(f"{e}\n{Path(name, 'broken.log').read_text(encoding='utf-8')[-3000:]}") from e
        different = differences(whole, broken)
        told = f"{count['parent']} kills of parents, {count['child']} of children, {count['starts']} starts"
        print(f"{told}: {different or 'the same'}")
        raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
