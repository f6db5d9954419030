"""The one error that a user can cause, and how every command ends with it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """Something given from outside cannot be used. Its text is one clear sentence; commands print it and exit with 2."""


def shown(text: str, most: int = 2000) -> str:
    """Text of any origin as one line to look at: what a terminal would obey is escaped, the middle of long text left out."""
    if len(text) > most:
        text = f"{text[: most - most // 3]} … {text[len(text) - most // 3 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function: InputError and a full disk end with a sentence and exit code 2, Ctrl-C with 130."""
    try:
        main()
    except InputError as e:
        print(f"error: {shown(str(e))}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if e.errno not in NO_ROOM:
            raise
        where = f" for {shown(str(e.filename))}" if e.filename else ""
        print(f"error: no room left on the disk{where}; make room and run the same command again to go on", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
