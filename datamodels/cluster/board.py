"""Where processes on the cluster say what they are at, for the process that gave them their tasks: it asks now and then."""

from __future__ import annotations

from typing import NamedTuple

MOST_LINES = 10_000
"""Lines of stderr that wait to be asked for; of more the first are dropped."""


class Process(NamedTuple):
    """A process: its node, its number there, and when it was born, for numbers are given again."""

    node: str
    pid: int
    born: str


class At(NamedTuple):
    """Where a task is; `begun` once it trains, and no longer makes what it trains with."""

    process: Process
    begun: bool


class News(NamedTuple):
    """What has come since the last time: where tasks are, by their number, and lines of stderr with their node."""

    at: dict[int, At]
    lines: list[tuple[str, str]]


class Board:
    """An actor, beside the process that asks."""

    def __init__(self) -> None:
        self.at: dict[int, At] = {}
        self.lines: list[tuple[str, str]] = []

    def is_at(self, number: int, at: At) -> None:
        """Task `number` is there."""
        self.at[number] = at

    def said(self, node: str, line: str) -> None:
        """A process on a node has written a line to stderr."""
        self.lines.append((node, line))
        del self.lines[:-MOST_LINES]

    def news(self) -> News:
        """What has come since this was asked last."""
        found = News(self.at, self.lines)
        self.at, self.lines = {}, []
        return found
