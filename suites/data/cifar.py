"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their official binary version, https://www.cs.toronto.edu/~kriz/cifar.html.

The test file is a row of records: label bytes (CIFAR-10 one; CIFAR-100 coarse, then fine, of which the fine one counts), then 3,072
bytes of 32 x 32 pixels, the plane of red first, then green and blue, row by row.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suites.data import download
from suites.data.labelled import DataError, Labelled, Pixels

SIDE = 32
PLANES = 3 * SIDE * SIDE
TEST_IMAGES = 10_000


@dataclass(frozen=True, slots=True)
class Official:
    """A published archive: its address and MD5, the test file in it, and what a record holds."""

    name: str
    address: str
    md5: str
    member: str
    label_bytes: int
    classes: int
    images: int = TEST_IMAGES

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return self.address.rpartition("/")[2]

    @property
    def bytes(self) -> int:
        """Of the test file."""
        return self.images * (self.label_bytes + PLANES)


OFFICIAL: Mapping[str, Official] = {
    "cifar10": Official(
        "cifar10",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin/test_batch.bin",
        label_bytes=1,
        classes=10,
    ),
    "cifar100": Official(
        "cifar100",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary/test.bin",
        label_bytes=2,
        classes=100,
    ),
}


def test_images(official: Official, data_dir: Path | None, cache: Path, say: Callable[[str], None]) -> Labelled:
    """The 10,000 test images; in ``data_dir`` as a folder or as the archive, else the archive downloaded into ``cache``.

    Raises:
        DataError: not there, not whole, not the official archive, or labels out of range.
    """
    if data_dir is None:
        where = download.fetch(official.address, official.md5, cache / official.archive, say)
        return of_records(official, of_archive(official, where), str(where))
    for where in (data_dir / official.member, data_dir / Path(official.member).name):
        if where.is_file():
            if (size := where.stat().st_size) != official.bytes:
                raise DataError(_wrong_length(official, str(where), size))
            return of_records(official, where.read_bytes(), str(where))
    where = data_dir / official.archive
    if where.is_file():
        download.check(where, official.md5)
        return of_records(official, of_archive(official, where), str(where))
    raise DataError(f"{data_dir}: holds neither {official.member} nor {official.archive}; without --data-dir it is downloaded")


def of_archive(official: Official, path: Path) -> bytes:
    """The test file's content, read from the archive; nothing is unpacked to the disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name.removeprefix("./") == official.member:
                    if not member.isreg() or member.size != official.bytes:
                        raise DataError(_wrong_length(official, f"{path}: {official.member}", member.size))
                    file = archive.extractfile(member)
                    content = file.read(official.bytes) if file else b""
                    if len(content) != official.bytes:
                        raise DataError(_wrong_length(official, f"{path}: {official.member}", len(content)))
                    return content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from None
    raise DataError(f"{path}: holds no {official.member}")


def of_records(official: Official, content: bytes, where: str) -> Labelled:
    """The images of a test file's content.

    Raises:
        DataError: of another length, or a label out of range.
    """
    if len(content) != official.bytes:
        raise DataError(_wrong_length(official, where, len(content)))
    records = np.frombuffer(content, np.uint8).reshape(official.images, official.label_bytes + PLANES)
    labels = records[:, official.label_bytes - 1].astype(np.int64)
    if (wrong := np.flatnonzero(labels >= official.classes)).size:
        first = int(wrong[0])
        raise DataError(f"{where}: image {first} has the label {labels[first]}; there are {official.classes} classes ({wrong.size} such)")
    pixels = records[:, official.label_bytes :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)

    def read(index: int) -> Pixels:
        return np.asarray(pixels[index])

    file = Path(official.member).name
    names = [f"{file} image {index}" for index in range(official.images)]
    return Labelled(f"{official.name}/test", official.classes, labels, names, read, SIDE, hashlib.sha256(content).hexdigest())


def _wrong_length(official: Official, where: str, found: int) -> str:
    return f"{where}: has {found} bytes, not the {official.bytes} of {official.images} records: it is cut off or another file"
