"""The one error that a user can cause, and how every command ends with it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """Something given from outside cannot be used. Its text is one clear sentence; commands print it and exit with 2."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function: InputError and a full disk end with a sentence and exit code 2, Ctrl-C with 130."""
    try:
        main()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if e.errno not in NO_ROOM:
            raise
        where = f" for {e.filename}" if e.filename else ""
        print(f"error: no room left on the disk{where}; make room and run the same command again to go on", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
