"""A file from its official address, known by its MD5; an interrupted download goes on where it stopped."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from suites.data.labelled import DataError

PIECE = 1 << 20
MOST_BYTES = 1 << 30
"""No archive that is downloaded here has a fifth of it."""
TIMEOUT_S = 60.0
SAY_EVERY = 32 * PIECE

PARTIAL = 206  # RFC 9110, 15.3.7: what was asked for with Range
UNSATISFIABLE = 416  # RFC 9110, 15.5.17: there is nothing from there on


def fetch(address: str, md5: str, path: Path, say: Callable[[str], None]) -> Path:
    """The file at ``path``, downloaded where it is not there yet, and checked before it gets its name.

    What came of an interrupted download lies beside it, under ``NAME.part``.

    Raises:
        DataError: it cannot be had, or is not what the MD5 was taken of.
    """
    if path.is_file():
        check(path, md5)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        _append(address, part, say)
    except (OSError, http.client.HTTPException, ValueError) as error:  # urllib's errors are OSErrors; ValueError is a bad address
        raise DataError(
            f"{address} could not be downloaded: {getattr(error, 'reason', None) or error}; the same command goes on from there, "
            "or bring the data with --data-dir"
        ) from None
    try:
        check(part, md5)
    except DataError:
        part.unlink()
        raise
    part.replace(path)
    return path


def check(path: Path, md5: str) -> None:
    """Refuse a file that is not the official one.

    Raises:
        DataError: its MD5 is another.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(f"{path}: its MD5 is {found}, that of the official file {md5}: it is damaged or another; remove it")


def _append(address: str, part: Path, say: Callable[[str], None]) -> None:
    """Add to ``part`` what is missing; a server that cannot begin in the middle begins anew."""
    held = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={held}-"} if held else {})
    say(f"downloading {address}" + (f" from byte {held:,} on" if held else ""))
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == UNSATISFIABLE:  # it is whole already, or not this file's beginning: the MD5 tells
            return
        raise
    with reply, part.open("ab" if reply.status == PARTIAL else "wb") as file:
        length = reply.headers.get("Content-Length")
        total = file.tell() + int(length) if length else None
        said = file.tell()
        while piece := reply.read1(PIECE):
            if file.tell() + len(piece) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            file.write(piece)
            if file.tell() >= said + SAY_EVERY:
                said = file.tell()
                say(f"{said >> 20} MiB" + (f" of {total >> 20}" if total else ""))
        if total is not None and file.tell() < total:
            raise ValueError(f"the connection ended after {file.tell():,} of {total:,} bytes")
