"""One file from the network: resumed where it broke off, and checked before anyone sees it."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from datamodels.durable import sync_folder
from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.reading import open_file

ATTEMPTS = 5
TIMEOUT_S = 60
BLOCK = 1 << 18
MEGABYTE = 1_000_000
PART = ".part"
"""Behind the name of a file that is not whole yet."""


def download(url: str, path: Path, md5: str) -> Path:
    """Fetch `url` to `path`, by way of `path`.part, and return `path`.

    A part that is there is continued where the server can. Raises InputError when the file cannot be had, with the part
    kept, or its MD5 is another, with the part deleted.
    """
    if not url.startswith(("https://", "http://")):
        raise InputError(f"data.url must begin with https:// or http://, not {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(url, part)
            break
        except (OSError, http.client.HTTPException) as e:
            # An answer that says no stays no; a line that breaks is worth another try from where it broke.
            if isinstance(e, urllib.error.HTTPError) or attempt == ATTEMPTS:
                where = f"put the archive into {path.parent} by hand, or name it with --data.source"
                raise InputError(f"cannot download {url} ({e}); run the same command again to go on, or {where}") from e
    found = file_md5(part)
    if found != md5:
        part.unlink()
        raise InputError(f"{url} has MD5 {found} instead of {md5}; what was downloaded is deleted")
    part.replace(path)
    sync_folder(path.parent)
    return path


def file_md5(path: Path) -> str:
    """The MD5 of a file, in hexadecimal."""
    md5 = hashlib.md5(usedforsecurity=False)
    with open_file(path) as f:
        while block := f.read(BLOCK):
            md5.update(block)
    return md5.hexdigest()


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what is missing of it; OSError when the connection ends before the file does."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as e:
        if have and e.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the MD5 tells whether it is the right file
        raise
    with response, part.open("ab" if response.status == http.client.PARTIAL_CONTENT else "wb") as f:
        total = f.tell() + int(response.headers.get("Content-Length") or 0)
        with progress("download", "MB", -(-total // MEGABYTE), f.tell() // MEGABYTE) as advance:
            shown = f.tell() // MEGABYTE
            while block := response.read(BLOCK):
                f.write(block)
                advance(f.tell() // MEGABYTE - shown)
                shown = f.tell() // MEGABYTE
        if f.tell() < total:
            raise OSError(f"the connection ended after {f.tell()} of {total} bytes")
