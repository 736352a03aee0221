"""ImageNet's validation folder in each layout gives the same images and labels; what is missing is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from suites.data import imagenet
from suites.data.imagenet import GROUND_TRUTH, synsets, validation_images
from suites.data.labelled import DataError, ImageError

NAMES = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 6)]
CLASSES = [65, 970, 230, 809, 516]
"""The labels of the first five validation images, as Caffe's val.txt has them."""


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Five images in one folder."""
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(jpeg(number * 50))
    return tmp_path


def write_meta(folder: Path) -> list[str]:
    """A development kit's meta.mat whose IDs are the synsets backwards, and internal nodes behind them; returns them."""
    wnids = [*reversed(synsets()), "n00001740", "n00001930"]
    rows = np.array([(number + 1, wnid) for number, wnid in enumerate(wnids)], [("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(folder / "meta.mat", {"synsets": rows})
    return wnids


def test_the_synsets_are_the_official_thousand() -> None:
    """Sorted, distinct, and known ones at their known index."""
    assert len(set(synsets())) == 1000
    assert list(synsets()) == sorted(synsets())
    assert [synsets()[index] for index in (0, 1, 876, 999)] == ["n01440764", "n01443537", "n04493381", "n15075141"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\n" + "".join(f"{name},{label}\n" for name, label in zip(NAMES, CLASSES, strict=True))),
        ("labels.csv", "label,file\n" + "".join(f"{synsets()[label]},{name}\n" for name, label in zip(NAMES, CLASSES, strict=True))),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            + "".join(f"{name[:-5]},{synsets()[label]} 1 2 3 4 \n" for name, label in reversed(list(zip(NAMES, CLASSES, strict=True)))),
        ),
        ("val.txt", "".join(f"{name} {label}\n" for name, label in zip(NAMES, CLASSES, strict=True))),
        ("val_map.txt", "".join(f"{name} {label}\n" for name, label in zip(NAMES, CLASSES, strict=True))),
    ],
)
def test_lists(flat: Path, name: str, text: str) -> None:
    """Ours by index and by synset, Kaggle's, Caffe's and MLPerf's."""
    (flat / name).write_text(text)
    found = validation_images(flat)
    assert found.labels.tolist() == CLASSES
    assert list(found.names) == NAMES
    assert found.read(2)[0, 0, 0] == pytest.approx(100, abs=3)
    assert found.name == "imagenet/val-5"


def test_the_official_ground_truth(flat: Path) -> None:
    """Its numbers are IDs of meta.mat, not indices; the kit may lie beside, as its archive unpacks."""
    kit = flat / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    wnids = write_meta(kit)
    (kit / GROUND_TRUTH).write_text("".join(f"{wnids.index(synsets()[label]) + 1}\n" for label in CLASSES))
    found = validation_images(flat)
    assert (found.labels.tolist(), list(found.names)) == (CLASSES, NAMES)


def class_folders(root: Path) -> None:
    for synset in synsets():
        (root / synset).mkdir()
        (root / synset / f"a{synset}.JPEG").touch()


def test_class_folders(tmp_path: Path) -> None:
    """All thousand, in the order of the file names; the identity is that of a list of the same."""
    root = tmp_path / "val"
    root.mkdir()
    class_folders(root)
    for name, label in zip(NAMES, CLASSES, strict=True):
        (root / synsets()[label] / name).write_bytes(jpeg(label % 256))
    found = validation_images(root)
    assert len(found.labels) == 1005
    assert found.labels[: len(NAMES)].tolist() == CLASSES
    assert found.read(3)[0, 0, 0] == pytest.approx(809 % 256, abs=3)
    with pytest.raises(ImageError, match="is no image"):
        found.read(800)


def test_missing_and_empty_classes_are_named(tmp_path: Path) -> None:
    """Sorted folders would otherwise shift every label behind the gap."""
    class_folders(tmp_path)
    (tmp_path / synsets()[7] / f"a{synsets()[7]}.JPEG").unlink()
    (tmp_path / synsets()[9] / f"a{synsets()[9]}.JPEG").rename(tmp_path / "elsewhere.JPEG")
    (tmp_path / synsets()[9]).rmdir()
    with pytest.raises(DataError, match=f"no images of 2 of the 1000 classes, the first is {synsets()[7]}; .*labels.csv"):
        validation_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "", "must name the columns file and label"),
        ("labels.csv", "image,class\na,1\n", "must name the columns file and label, it is 'image,class'"),
        ("labels.csv", "file,label\n", "no image is listed"),
        ("labels.csv", "file,label\na.JPEG,1000\n", "line 2: the label '1000' is neither a synset nor an index from 0 to 999"),
        ("labels.csv", "file,label\na.JPEG,0000000001000\n", "line 2: the label"),
        ("labels.csv", "file,label\na.JPEG,-1\n", "line 2: the label '-1'"),
        ("labels.csv", "file,label\na.JPEG\n", "line 2: holds no file name and label"),
        ("labels.csv", "file,label\n../../etc/passwd,1\n", "lies outside of the folder"),
        ("labels.csv", "file,label\n/etc/passwd,1\n", "lies outside of the folder"),
        ("labels.csv", "file,label\na.JPEG,1\na.JPEG,2\n", "names an image twice"),
        ("val.txt", "a.JPEG\n", "line 1: holds no file name and label"),
        ("val.txt", "a.JPEG n99999999\n", "line 1: the label 'n99999999'"),
        (GROUND_TRUTH, "1\n", "needs meta.mat"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    """One sentence that names file and line."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        validation_images(tmp_path)


def test_bad_ground_truths(flat: Path) -> None:
    """An ID that is no class, fewer lines than images, and a meta.mat that is none."""
    write_meta(flat)
    truth = flat / GROUND_TRUTH
    truth.write_text("1\n2\n1001\n4\n5\n")
    with pytest.raises(DataError, match="line 3: '1001' is no ILSVRC2012_ID from 1 to 1000"):
        validation_images(flat)
    truth.write_text("1\n2\n3\n")
    with pytest.raises(DataError, match=r"has 3 lines and none for 2 of the images, the first is ILSVRC2012_val_00000004\.JPEG"):
        validation_images(flat)
    (flat / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file, but not really" * 20)
    with pytest.raises(DataError, match="is not the development kit's table of synsets"):
        validation_images(flat)


def test_bytes_that_are_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not UTF-8, too long, and no layout at all."""
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8"):
        validation_images(tmp_path)
    monkeypatch.setattr(imagenet, "MOST_LIST_BYTES", 2)
    with pytest.raises(DataError, match="too many for a list"):
        validation_images(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="holds no ImageNet validation set: neither class folders like n01440764"):
        validation_images(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        validation_images(tmp_path / "absent")


def test_a_listed_image_that_is_missing_is_kept_and_named(flat: Path) -> None:
    """Its reading fails with the reason, so it can be counted; the others are read."""
    (flat / "val.txt").write_text("".join(f"{name} {label}\n" for name, label in zip(NAMES, CLASSES, strict=True)))
    (flat / NAMES[1]).unlink()
    found = validation_images(flat)
    assert found.labels.tolist() == CLASSES
    with pytest.raises(ImageError, match="there is no such file"):
        found.read(1)
