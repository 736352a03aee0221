"""The validation images of ImageNet (ILSVRC 2012), in the layouts that people have them in; the class index is that of the sorted synsets.

- Folders of classes: ``n01440764/ILSVRC2012_val_00000293.JPEG``, all 1000 of them.
- Flat with the official ground truth: ``ILSVRC2012_val_00000001.JPEG`` and on, ``ILSVRC2012_validation_ground_truth.txt`` whose
  numbers are ILSVRC2012_IDs, and ``meta.mat``, both of the development kit, which says what synset an ID is.
- A list: ``labels.csv`` with the columns ``file,label`` (an index or a synset), Kaggle's ``LOC_val_solution.csv``, or Caffe's ``val.txt``
  and MLPerf's ``val_map.txt``, lines of a file name and an index.

Wherever they are taken from, the images are in the order of their file names, so that layouts can be compared image by image.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from suites.data import images
from suites.data.labelled import DataError, Labelled, Pixels

CLASSES = 1000
VALIDATION = 50_000
"""Images of the whole set; with fewer, the row says how many."""

SUFFIXES = (".jpeg", ".jpg", ".png")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
LISTS = ("labels.csv", "LOC_val_solution.csv", "val.txt", "val_map.txt")
MOST_LIST_BYTES = 64 << 20
"""Of a list or of meta.mat; Kaggle's, the longest, has 2 MB."""

Rows = list[tuple[Path, int]]


@functools.cache
def synsets() -> tuple[str, ...]:
    """The 1000 WordNet ids in the order of the class index, which is sorted (the list that timm 1.0.31 has too)."""
    return tuple(Path(__file__).with_name("imagenet_synsets.txt").read_text(encoding="ascii").split())


def validation_images(data_dir: Path) -> Labelled:
    """The labelled images in a folder, whichever layout it has.

    Raises:
        DataError: no such folder, no layout that is known, missing classes, or labels that are not there or out of range.
    """
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: is no folder")
    if found := [data_dir / name for name in LISTS if (data_dir / name).is_file()]:
        rows = of_list(found[0])
    elif (truth := _beside(data_dir, GROUND_TRUTH)) is not None:
        rows = of_ground_truth(data_dir, truth)
    elif any((data_dir / synset).is_dir() for synset in synsets()):
        rows = of_folders(data_dir)
    else:
        raise DataError(
            f"{data_dir}: holds no ImageNet validation set: neither class folders like {synsets()[0]}, nor {GROUND_TRUTH}, nor any of "
            f"{', '.join(LISTS)} (docs/accuracy.md)"
        )
    if not rows:
        raise DataError(f"{data_dir}: no image is listed")
    rows.sort(key=lambda row: row[0].name)
    return _labelled(data_dir, rows)


def of_folders(data_dir: Path) -> Rows:
    """Images by class folder; one that is missing or empty would be missed by nobody, so it is refused."""
    rows: Rows = []
    empty = []
    for index, synset in enumerate(synsets()):
        folder = data_dir / synset
        own = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES] if folder.is_dir() else []
        rows += [(path, index) for path in own]
        if not own:
            empty.append(synset)
    if empty:
        raise DataError(
            f"{data_dir}: has no images of {len(empty)} of the {CLASSES} classes, the first is {empty[0]}; "
            "for a part of the classes give a labels.csv"
        )
    return rows


def of_ground_truth(data_dir: Path, truth: Path) -> Rows:
    """Images numbered from 1, and a line for each with the ID of its class."""
    by_id = _classes_by_id(data_dir)
    rows: Rows = []
    folder = next((each for each in (data_dir, data_dir / "val") if (each / "ILSVRC2012_val_00000001.JPEG").exists()), data_dir)
    for number, line in enumerate(_lines(truth), start=1):
        index = by_id.get(line.strip())
        if index is None:
            raise DataError(f"{truth}: line {number}: {line[:40]!r} is no ILSVRC2012_ID from 1 to {CLASSES}")
        rows.append((folder / f"ILSVRC2012_val_{number:08}.JPEG", index))
    listed = {path.name for path, _ in rows}
    if unlisted := sorted(path.name for path in folder.glob("ILSVRC2012_val_*.JPEG") if path.name not in listed):
        raise DataError(
            f"{truth}: has {len(rows)} lines and none for {len(unlisted)} of the images, the first is {unlisted[0]}: it is cut off"
        )
    return rows


def of_list(path: Path) -> Rows:
    """Rows of a file name and a label; paths are relative to the list."""
    lines = _lines(path)
    if path.suffix == ".txt":
        pairs: Iterable[Sequence[str]] = (line.rsplit(maxsplit=1) for line in lines)
        first = 1
    else:
        try:
            header, *rest = list(csv.reader(lines)) or [[]]
        except csv.Error as error:
            raise DataError(f"{path}: is no CSV file: {error}") from None
        wanted = ("ImageId", "PredictionString") if "ImageId" in header else ("file", "label")
        if any(name not in header for name in wanted):
            raise DataError(f"{path}: its first line must name the columns file and label, it is {','.join(header)[:80]!r}")
        places = [header.index(name) for name in wanted]
        pairs = ([row[place] for place in places if place < len(row)] for row in rest)
        first = 2
    kaggle = path.name == "LOC_val_solution.csv"
    rows: Rows = []
    for number, pair in enumerate(pairs, start=first):
        if len(pair) != 2 or not pair[0]:
            raise DataError(f"{path}: line {number}: holds no file name and label")
        name, label = (f"{pair[0]}.JPEG", pair[1].split(" ")[0]) if kaggle else (pair[0], pair[1])
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}: line {number}: {name[:80]!r} lies outside of the folder")
        rows.append((path.parent / name, _class(path, number, label)))
    if len({row[0] for row in rows}) != len(rows):
        raise DataError(f"{path}: names an image twice")
    return rows


def _class(path: Path, number: int, label: str) -> int:
    label = label.strip()
    if label in _index():
        return _index()[label]
    if label.isascii() and label.isdigit() and len(label) < 9 and int(label) < CLASSES:
        return int(label)
    raise DataError(f"{path}: line {number}: the label {label[:40]!r} is neither a synset nor an index from 0 to {CLASSES - 1}")


@functools.cache
def _index() -> dict[str, int]:
    return {synset: index for index, synset in enumerate(synsets())}


def _beside(data_dir: Path, name: str) -> Path | None:
    """A file of the development kit, in the folder or where the kit's archive puts it."""
    places = (data_dir, data_dir / "data", data_dir / "ILSVRC2012_devkit_t12" / "data", data_dir.parent / "ILSVRC2012_devkit_t12" / "data")
    return next((place / name for place in places if (place / name).is_file()), None)


def _classes_by_id(data_dir: Path) -> dict[str, int]:
    """The class index by ILSVRC2012_ID, from the development kit; its first 1000 synsets are the classes."""
    path = _beside(data_dir, META)
    if path is None:
        raise DataError(f"{data_dir}: {GROUND_TRUTH} needs {META} of the same development kit, which says what its numbers mean")
    from scipy.io import loadmat

    if path.stat().st_size > MOST_LIST_BYTES:
        raise DataError(f"{path}: has {path.stat().st_size} bytes, and is not that of the development kit")
    try:
        table = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        found = {str(int(each)): str(wnid) for each, wnid in zip(table["ILSVRC2012_ID"], table["WNID"], strict=True)}
        return {str(number): _index()[found[str(number)]] for number in range(1, CLASSES + 1)}
    except Exception as error:  # SciPy's reader promises no closed list for a file that is none
        raise DataError(f"{path}: is not the development kit's table of synsets: {type(error).__name__}: {str(error)[:100]}") from None


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > MOST_LIST_BYTES:
        raise DataError(f"{path}: has {path.stat().st_size} bytes, too many for a list of images")
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None


def _labelled(data_dir: Path, rows: Rows) -> Labelled:
    paths = [path for path, _ in rows]

    def read(index: int) -> Pixels:
        return images.decode(paths[index])

    labels = np.array([label for _, label in rows], np.int64)
    names = [str(path.relative_to(data_dir)) for path in paths]
    identity = hashlib.sha256(json.dumps([[path.name for path in paths], labels.tolist()]).encode()).hexdigest()
    part = "" if len(rows) == VALIDATION else f"-{len(rows)}"
    return Labelled(f"imagenet/val{part}", CLASSES, labels, names, read, None, identity)
