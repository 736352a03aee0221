"""CIFAR's official binary version: from a folder, an archive or a download; whatever is not that is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from suites.data import cifar, download
from suites.data.cifar import OFFICIAL, Official, of_records
from suites.data.labelled import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
LABELS = [3, 0, 9, 1, 1]
RECORDS = b"".join(bytes([label]) + image.tobytes() for label, image in zip(LABELS, PIXELS, strict=True))
SMALL = dataclasses.replace(OFFICIAL["cifar10"], images=5)


def archive(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> str:
    """A tar.gz with these members; returns its MD5."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def small(path: Path, members: dict[str, bytes] | None = None, kind: bytes = tarfile.REGTYPE) -> Official:
    """A published archive of five images that lies at ``path``."""
    return dataclasses.replace(SMALL, md5=archive(path, {SMALL.member: RECORDS} if members is None else members, kind))


def silent(line: str) -> None:
    """Nobody listens."""


def test_records_are_label_and_planes() -> None:
    """The label first, then red, green and blue, row by row."""
    found = of_records(SMALL, RECORDS, "test_batch.bin")
    assert found.labels.tolist() == LABELS
    assert found.names[4] == "test_batch.bin image 4"
    for index in range(5):
        assert np.array_equal(found.read(index), PIXELS[index].transpose(1, 2, 0))


def test_cifar100_counts_the_fine_label() -> None:
    """Of its two label bytes the first is the coarse class."""
    official = dataclasses.replace(OFFICIAL["cifar100"], images=1)
    found = of_records(official, bytes([7, 99]) + PIXELS[0].tobytes(), "test.bin")
    assert found.labels.tolist() == [99]
    assert np.array_equal(found.read(0), PIXELS[0].transpose(1, 2, 0))


def test_the_folder_is_found_from_above_and_from_within(tmp_path: Path) -> None:
    """``--data-dir`` may name the folder that holds cifar-10-batches-bin, or that folder itself."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(RECORDS)
    above, within = (cifar.test_images(SMALL, each, tmp_path / "cache", silent) for each in (tmp_path, folder))
    assert above.sha256 == within.sha256 == hashlib.sha256(RECORDS).hexdigest()


def test_an_archive_in_the_folder_is_checked_first(tmp_path: Path) -> None:
    """The official one is read without unpacking; another is not opened."""
    official = small(tmp_path / SMALL.archive)
    assert cifar.test_images(official, tmp_path, tmp_path / "cache", silent).labels.tolist() == LABELS
    assert sorted(path.name for path in tmp_path.iterdir()) == [SMALL.archive]
    with pytest.raises(DataError, match="its MD5 is"):
        cifar.test_images(SMALL, tmp_path, tmp_path / "cache", silent)


@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        ({SMALL.member: RECORDS[:-1]}, tarfile.REGTYPE, "not the 15365 of 5 records"),
        ({SMALL.member: b""}, tarfile.SYMTYPE, "not the 15365 of 5 records"),
        ({f"../{SMALL.member}": RECORDS}, tarfile.REGTYPE, "holds no cifar-10-batches-bin/test_batch.bin"),
        ({}, tarfile.REGTYPE, "holds no cifar-10-batches-bin/test_batch.bin"),
    ],
    ids=["cut off", "a link", "outside", "empty"],
)
def test_an_archive_that_holds_something_else(tmp_path: Path, members: dict[str, bytes], kind: bytes, message: str) -> None:
    """One sentence, and nothing is written outside or inside."""
    official = small(tmp_path / SMALL.archive, members, kind)
    with pytest.raises(DataError, match=message):
        cifar.test_images(official, tmp_path, tmp_path / "cache", silent)
    assert [path.name for path in tmp_path.iterdir()] == [SMALL.archive]


def test_no_archive_at_all(tmp_path: Path) -> None:
    """Bytes that are no gzip, and a gzip that ends early, with the right MD5."""
    path = tmp_path / SMALL.archive
    small(path)
    for content in (b"nothing", path.read_bytes()[:200]):
        path.write_bytes(content)
        official = dataclasses.replace(SMALL, md5=hashlib.md5(content).hexdigest())
        with pytest.raises(DataError, match=r"cannot be unpacked|holds no"):
            cifar.of_archive(official, path)


def test_bad_folders(tmp_path: Path) -> None:
    """Missing, cut off, and labels out of range."""
    with pytest.raises(DataError, match=r"holds neither cifar-10-batches-bin/test_batch\.bin nor cifar-10-binary\.tar\.gz"):
        cifar.test_images(SMALL, tmp_path, tmp_path, silent)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(RECORDS[:-100])
    with pytest.raises(DataError, match="has 15265 bytes, not the 15365 of 5 records"):
        cifar.test_images(SMALL, tmp_path, tmp_path, silent)
    path.write_bytes(bytes([10]) + RECORDS[1:])
    with pytest.raises(DataError, match=r"image 0 has the label 10; there are 10 classes \(1 such\)"):
        cifar.test_images(SMALL, tmp_path, tmp_path, silent)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content``, from the middle where asked and ``ranges``, and hangs up after ``stop`` bytes of it."""

    content = b""
    ranges = True
    stop: int | None = None
    asked: list[str | None]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range"))
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.ranges else 0
        if first and first >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        self.wfile.write(self.content[first : self.stop])

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[tuple[type[Server], str]]:
    """A server of this test's own, and its address."""
    own = type("Own", (Server,), {"asked": []})
    held = http.server.ThreadingHTTPServer(("127.0.0.1", 0), own)
    thread = threading.Thread(target=held.serve_forever)
    thread.start()
    yield own, f"http://127.0.0.1:{held.server_port}/{SMALL.archive}"
    held.shutdown()
    held.server_close()
    thread.join()


def test_a_download_is_checked_and_kept(tmp_path: Path, server: tuple[type[Server], str]) -> None:
    """The second time nothing is asked for."""
    own, address = server
    official = dataclasses.replace(small(tmp_path / "made"), address=address)
    own.content = (tmp_path / "made").read_bytes()
    for _ in range(2):
        assert cifar.test_images(official, None, tmp_path / "cache", silent).labels.tolist() == LABELS
    assert own.asked == [None]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [SMALL.archive]


@pytest.mark.parametrize("ranges", [True, False], ids=["from the middle", "anew"])
def test_an_interrupted_download_goes_on(tmp_path: Path, server: tuple[type[Server], str], ranges: bool) -> None:
    """The sentence says so; the next try asks for the rest, and takes the whole from a server that cannot do that."""
    own, address = server
    own.content, own.stop = RNG.bytes(5000), 2000
    md5 = hashlib.md5(own.content).hexdigest()
    path = tmp_path / "file"
    with pytest.raises(DataError, match="ended after 2,000 of 5,000 bytes; the same command goes on from there"):
        download.fetch(address, md5, path, silent)
    assert not path.exists()
    own.stop, own.ranges = None, ranges
    assert download.fetch(address, md5, path, silent).read_bytes() == own.content
    assert own.asked == [None, "bytes=2000-"]


def test_a_whole_part_is_not_downloaded_again(tmp_path: Path, server: tuple[type[Server], str]) -> None:
    """The server says that there is nothing from there on, and the MD5 is right."""
    own, address = server
    own.content = RNG.bytes(100)
    (tmp_path / "file.part").write_bytes(own.content)
    assert download.fetch(address, hashlib.md5(own.content).hexdigest(), tmp_path / "file", silent).read_bytes() == own.content


def test_a_download_of_something_else_is_thrown_away(tmp_path: Path, server: tuple[type[Server], str]) -> None:
    """It never gets its name, and the next try begins anew."""
    own, address = server
    own.content = b"a page that says that you must log in"
    with pytest.raises(DataError, match="its MD5 is"):
        download.fetch(address, "0" * 32, tmp_path / "file", silent)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_too_much(tmp_path: Path, server: tuple[type[Server], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection and an endless file end in a sentence with the way out."""
    with pytest.raises(DataError, match=r"could not be downloaded: .*--data-dir"):
        download.fetch("http://127.0.0.1:9/file", "0" * 32, tmp_path / "file", silent)
    own, address = server
    own.content = bytes(100)
    monkeypatch.setattr(download, "MOST_BYTES", 50)
    with pytest.raises(DataError, match="more than 50 bytes"):
        download.fetch(address, "0" * 32, tmp_path / "file", silent)


def test_the_official_archives_are_named_with_their_md5() -> None:
    """As https://www.cs.toronto.edu/~kriz/cifar.html lists them."""
    assert {each.archive: each.md5 for each in OFFICIAL.values()} == {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    }
    assert OFFICIAL["cifar10"].bytes == 30_730_000
    assert OFFICIAL["cifar100"].bytes == 30_740_000
