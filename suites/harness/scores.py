"""What a network made of a test set, batch by batch in a file of the run's folder: an interrupted classification goes on from there.

Each line is a SHA-256 and a JSON document: first the head, all that the scores depend on, then a batch a line. The hash covers the
document and the hash of the line before, so a line that is cut off, altered or moved ends what is believed; it and the rest are cut away.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from results.store import StoreError

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Scores (N, classes), float32 or float64, the SHA-256 of each image's input, and why those could not be read that could not.

    The scores of an image that could not be read are 0 and mean nothing; its key in ``unreadable`` is its place in the batch.
    """

    scores: Array
    images_sha256: tuple[str, ...]
    unreadable: Mapping[int, str]


class Scores:
    """The file at ``path`` for what ``head`` says; what another head or a damaged line holds is thrown away at once.

    ``batches`` counts those that are held.
    """

    def __init__(self, path: Path, head: Mapping[str, object]) -> None:
        self.path = path
        self._head = json.dumps(head, sort_keys=True)
        self.batches = -1
        self._last = ""
        whole = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                for line in file:
                    document = _document(line, self._last)
                    if document is None or (self.batches < 0 and document != self._head.encode()):
                        break
                    whole, self._last, self.batches = whole + len(line), _hash(self._last, document), self.batches + 1
                file.truncate(whole)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        if self.batches < 0:
            self._append(self._head)

    def append(self, batch: Batch) -> None:
        """Add a batch.

        Raises:
            StoreError: it cannot be written; those before it are.
        """
        document = {
            "shape": list(batch.scores.shape),
            "dtype": batch.scores.dtype.newbyteorder("<").str,
            "scores": base64.b64encode(batch.scores.astype(batch.scores.dtype.newbyteorder("<")).tobytes()).decode("ascii"),
            "images_sha256": list(batch.images_sha256),
            "unreadable": {str(place): reason for place, reason in batch.unreadable.items()},
        }
        self._append(json.dumps(document))

    def __iter__(self) -> Iterator[Batch]:
        """The batches that are held, in order, one at a time."""
        return read(self.path)

    def _append(self, document: str) -> None:
        digest = _hash(self._last, document.encode())
        try:
            with self.path.open("ab") as file:
                file.write(f"{digest} {document}\n".encode())
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; free the disk and start the run again: it goes on from there") from error
        self._last, self.batches = digest, self.batches + 1


def read(path: Path) -> Iterator[Batch]:
    """The batches of such a file, in order, one at a time.

    Raises:
        StoreError: there is no such file, or it is not what was written.
    """
    last = ""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                document = _document(line, last)
                if document is None:
                    raise StoreError(f"{path}: line {number + 1} is not what was written; remove the file and classify again")
                last = _hash(last, document)
                if number:
                    yield _batch(document)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _document(line: bytes, last: str) -> bytes | None:
    """What a whole line holds, behind the line whose hash is ``last``; None where it is not what was written."""
    document = line[65:-1]
    return document if line == f"{_hash(last, document)} ".encode() + document + b"\n" else None


def _batch(document: bytes) -> Batch:
    fields: dict[str, Any] = json.loads(document)
    values = np.frombuffer(base64.b64decode(fields["scores"]), fields["dtype"]).reshape(fields["shape"])
    return Batch(values, tuple(fields["images_sha256"]), {int(place): reason for place, reason in fields["unreadable"].items()})


def _hash(last: str, document: bytes) -> str:
    return hashlib.sha256(last.encode() + document).hexdigest()
