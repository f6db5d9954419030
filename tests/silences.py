"""How long a command says nothing: `python -m tests.silences [--pipe] -- python -m datamodels -C configs/digits.yaml`.

The command runs on a terminal of its own (or with `--pipe` into a pipe), and each piece of its output is noted with its time.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BEAT_S = 0.05


@dataclass(frozen=True)
class Silence:
    """Nothing came for `seconds`, from `at` seconds after the start on; `before` is what was said last.

    `lateness` is by how much this process itself, which does nothing but wait, woke too late meanwhile, at the most.
    """

    seconds: float
    at: float
    before: str
    lateness: float


@dataclass(frozen=True)
class Heard:
    """What a command said, its exit code, and its silences, the longest first."""

    text: str
    code: int
    seconds: float
    silences: list[Silence]

    @property
    def lines(self) -> list[str]:
        """The lines as they stand at the end, on a terminal too."""
        return [row.rstrip() for row in rows_on_terminal(self.text)]

    def longest(self, before: str = "") -> float:
        """The longest silence, less what this machine was late meanwhile."""
        return max((each.seconds - each.lateness for each in self.silences if before in each.before), default=0.0)


def rows_on_terminal(text: str) -> list[str]:
    """What is seen of a text on a terminal that is wide enough: rows written over, or cleared, by what it obeys."""
    rows, at, column = [""], 0, 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            at, column = at + 1, 0
            rows += [""] * (at + 1 - len(rows))
        elif part == "\r":
            column = 0
        elif part == "\x1b[1A":
            at -= 1
        elif part == "\x1b[2K":
            rows[at] = ""
        elif part in ("\x1b[K", "\x1b[J"):
            rows[at] = rows[at][:column]
            if part == "\x1b[J":
                del rows[at + 1 :]
        elif part.startswith("\x1b"):
            raise ValueError(f"a terminal was told {part!r}, which nothing of ours does")
        else:
            rows[at] = rows[at][:column].ljust(column) + part + rows[at][column + len(part) :]
            column += len(part)
    return rows


def heard(command: Sequence[str], terminal: bool = True, env: Mapping[str, str] | None = None, cwd: str | None = None) -> Heard:
    """Run a command and listen to it, stdout and stderr together."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    started = {"TERM": "xterm", "COLUMNS": "120", **(os.environ if env is None else env)}
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=started, cwd=cwd, start_new_session=True
    )
    os.close(theirs)
    silences, said = list[Silence](), bytearray()
    last, lateness = start, 0.0
    try:
        while True:
            began = time.monotonic()
            ready, _, _ = select.select([ours], [], [], BEAT_S)
            now = time.monotonic()
            if not ready:
                lateness = max(lateness, now - began - BEAT_S)
                continue
            try:
                piece = os.read(ours, 2**16)
            except OSError:  # a terminal's other end is closed
                piece = b""
            silences.append(Silence(now - last, last - start, _last_words(said), lateness))
            last, lateness = now, 0.0
            if not piece:
                break
            said += piece
    finally:
        os.close(ours)
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.kill()
        code = process.wait()
    silences.sort(key=lambda each: -each.seconds)
    return Heard(said.decode("utf-8", "replace"), code, time.monotonic() - start, silences)


def _last_words(said: bytearray) -> str:
    text = CONTROL.sub("", bytes(said[-4000:]).decode("utf-8", "replace"))
    words = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return words[-1] if words else "(the start)"


def main() -> None:
    """Run a command, repeat what it said, and tell its longest silences."""
    parser = argparse.ArgumentParser(prog="python -m tests.silences")
    parser.add_argument("--pipe", action="store_true", help="into a pipe, not on a terminal")
    parser.add_argument("--lines", action="store_true", help="show what was said")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    found = heard(args.command, not args.pipe)
    if args.lines:
        print("\n".join(line for line in found.lines if line))
    print(f"exit code {found.code} after {found.seconds:.1f} s, {len(found.lines)} lines")
    for each in found.silences[:8]:
        print(f"{each.seconds:6.2f} s from {each.at:6.1f} s on (this machine late by {each.lateness:.2f} s): {each.before}")


if __name__ == "__main__":
    main()
