"""Where the package runs; asked before anything is imported that other systems do not have. Imports nothing but `sys`."""

import sys

NOT_HERE = (
    "datamodels runs on Linux and macOS, not on Windows; the Windows Subsystem for Linux (WSL) is a Linux that it runs on"
)


def refuse_windows(command: bool) -> None:
    """End a command with one sentence and exit code 2 on Windows; raise ImportError there for who imports the package."""
    platform: str = sys.platform  # else mypy takes all but its own for impossible
    if platform not in ("win32", "cygwin"):
        return
    if not command:
        raise ImportError(NOT_HERE)
    print(f"error: {NOT_HERE}", file=sys.stderr)
    raise SystemExit(2)
