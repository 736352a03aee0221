"""The page and the files beside it: self-contained, escaped, and without a figure that was withheld."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from reports import figures, frame, write
from results.record import Model
from tests.synthetic_records import SHA, Run, field_of_four

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Tree(HTMLParser):
    """Checks that elements close in order and gathers ids, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.said: list[str] = []

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.said.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "aria-label":
                self.said.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href") and tag != "use":
                self.links.append(value or "")
            assert not name.startswith("on"), f"{tag} has a handler {name}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def said(path: Path, run: Run) -> str:
    """All that a file tells its reader, less the names of run and certificates, whose digits are chance."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        tree = Tree()
        tree.feed(text)
        text = "\n".join(tree.said)
    for name in (run.run.run_id, *run.certificates.values(), *(each[:8] for each in run.certificates.values())):
        text = text.replace(name, "")
    return text


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("field")
    write.write(field_of_four(root / "records").folder, root / "out")
    return root / "out"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "records")


def test_all_files(written: Path) -> None:
    """The four files are there, whole, and nothing unfinished lies beside them."""
    assert sorted(path.name for path in written.iterdir()) == ["cells.csv", "cells.parquet", "index.html", "report.md"]


def test_csv_and_parquet_hold_the_frame(written: Path) -> None:
    """Both read back as the frame, Parquet with its dtypes."""
    parquet = pd.read_parquet(written / "cells.parquet")
    assert {name: str(dtype) for name, dtype in parquet.dtypes.items()} == dict(frame.DTYPES)
    csv = pd.read_csv(written / "cells.csv", dtype=dict(frame.DTYPES), keep_default_na=True)
    assert csv["latency_s"].dropna().tolist() == pytest.approx(parquet["latency_s"].dropna().tolist(), rel=1e-15)
    assert len(csv) == len(parquet)


def test_the_page_is_well_formed_and_asks_for_nothing(written: Path) -> None:
    """Elements close in order, no id stands twice, nothing is fetched, and every link leads to a part or a file beside."""
    text = (written / "index.html").read_text(encoding="utf-8")
    tree = Tree()
    tree.feed(text)
    assert tree.open == []
    assert len(tree.ids) == len(set(tree.ids))
    assert "script" not in tree.tags
    assert "img" not in tree.tags
    assert not re.search(r"@import|url\((?!#)", text)
    for link in tree.links:
        assert link.removeprefix("#") in tree.ids if link.startswith("#") else (written / link).is_file(), link


def test_figures_say_what_they_show(written: Path) -> None:
    """Every figure is valid XML, has its numbers in words for a screen reader, keeps text as text, and takes the page's ink."""
    svgs = re.findall(r"<svg.*?</svg>", (written / "index.html").read_text(encoding="utf-8"), re.DOTALL)
    assert len(svgs) == 6
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 40
        assert "<text" in svg
        assert figures.INK not in svg
        assert "currentColor" in svg


def test_latencies_have_their_percentiles_and_sets_their_chapter(written: Path) -> None:
    """As columns of the latency tables alone; every row of a table has as many cells as its head."""
    page = (written / "index.html").read_text(encoding="utf-8")
    latency, throughput = (page[page.index(f'<section id="{name}"') :].split("</section>")[0] for name in ("latency", "throughput"))
    assert latency.count("p99 ms at most") == 2
    assert "not reportable: 4 calls, 662 needed" in latency
    assert "p99" not in throughput
    for text in (latency, throughput):
        for rows in re.findall(r"<table.*?</table>", text, re.DOTALL):
            widths = [
                len(re.findall(r"<t[hd][ >]", line)) + sum(int(span) - 1 for span in re.findall(r'colspan="(\d+)"', line))
                for line in re.findall(r"<tr.*?</tr>", rows, re.DOTALL)
            ]
            assert len(set(widths)) == 1
    assert "<h3>Over 3 cells in fp32: geometric mean of the speeds" in page


def test_reasons_are_escaped(written: Path) -> None:
    """A reason that holds a script is shown, not run, on the page and in Markdown."""
    page = (written / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in (written / "report.md").read_text(encoding="utf-8")


def test_figures_escape_names(run: Run) -> None:
    """A mathematical sign in a name is drawn as it stands, and no name can leave the picture."""
    cells = frame.load(field_of_four(run.folder.parent.parent / "four").folder)
    cells.loc[cells["mode"] == "jit", "mode"] = 'a$b$<x>"&'
    drawn = figures.forest(cells[cells["batch_size"] == 1], "PyTorch eager")
    assert drawn is not None
    texts = ["".join(element.itertext()) for element in ET.fromstring(drawn.svg).iter() if element.tag.endswith("text")]
    assert any('a$b$<x>"&' in text for text in texts)
    assert "<x>" not in drawn.svg


@pytest.mark.parametrize("why", ["uncertified", "failed certificate", "smoke", "failed process"])
def test_a_withheld_figure_stands_nowhere(run: Run, why: str) -> None:
    """Neither page, Markdown, CSV nor Parquet holds a digit of a time, a memory or an accuracy that was withheld."""
    run.certify("pytorch/eager")
    run.timed("pytorch/eager", 0.02)
    if why != "uncertified":
        run.certify("jax/jit", "conv1: stride" if why == "failed certificate" else None)
    for index in range(4):
        run.process("jax/jit", index, 0.0031415926, measurement=why != "smoke")
    if why == "failed process":
        run.append("inference", run.cell("jax/jit"), 4, status="failed", reason="the worker died")
    run.append("memory", run.cell("jax/jit"), 0, measurements={"peak_memory_bytes": 777.0 * 2**20})
    run.append("startup", run.cell("jax/jit"), 0, measurements={"import_s": 5.4321, "load_s": 5.4321, "first_call_s": 5.4321})
    run.append("accuracy", run.cell("jax/jit").certificate_cell, measurements={"top1": 0.888, "images": 500.0})
    out = run.folder.parent.parent / "out"
    paths = write.write(run.folder, out)
    text = "\n".join(said(path, run) for path in paths if path.suffix != ".parquet")
    for digits in ("3.14", "0.00314", "777", "814743552", "5.43", "88.8", "0.888"):
        assert digits not in text, digits
    cells = pd.read_parquet(out / "cells.parquet")
    assert cells.loc[cells["implementation"] == "jax", frame.FIGURES].isna().all(axis=None)
    assert cells.loc[cells["implementation"] == "pytorch", "latency_s"].notna().all()


def test_the_same_figures_do_stand_where_they_may(run: Run) -> None:
    """The check above can fail: a certified row does show these digits."""
    run.certify("pytorch/eager")
    for index in range(4):
        run.process("pytorch/eager", index, 0.0031415926)
    run.append("memory", run.cell("pytorch/eager"), 0, measurements={"peak_memory_bytes": 777.0 * 2**20})
    paths = write.write(run.folder, run.folder.parent.parent / "out")
    for path in (each for each in paths if each.suffix != ".parquet"):
        text = said(path, run)
        assert "3.14" in text or "0.00314" in text, path.name
        assert "777" in text or "814743552" in text, path.name


def test_a_smoke_page_warns_first(run: Run) -> None:
    """NOT-A-MEASUREMENT stands before anything else that the page says."""
    run.certify("pytorch/eager")
    run.process("pytorch/eager", 0, 0.01, measurement=False)
    page = write.write(run.folder, run.folder.parent.parent / "out")[0].read_text(encoding="utf-8")
    assert page.index("NOT-A-MEASUREMENT") < page.index('class="strip"')


def test_an_empty_run_is_a_page_too(run: Run) -> None:
    """A report can be written before the first record."""
    page = write.write(run.folder, run.folder.parent.parent / "out")[0].read_text(encoding="utf-8")
    assert "nothing to compare" in page


def test_writing_twice_gives_the_same(run: Run) -> None:
    """The files depend on the records alone, so a published page can be made again."""
    run.certify("pytorch/eager")
    run.timed("pytorch/eager", 0.02)
    run.certify("jax/jit")
    run.timed("jax/jit", 0.01)
    out = run.folder.parent.parent / "out"
    first = [path.read_bytes() for path in write.write(run.folder, out)]
    assert [path.read_bytes() for path in write.write(run.folder, out)] == first


def test_nothing_of_this_machine_leaks(written: Path, tmp_path: Path) -> None:
    """No path of the machine that wrote the report stands in what is published."""
    for name in ("index.html", "report.md", "cells.csv"):
        assert str(written.parent) not in (written / name).read_text(encoding="utf-8")


def of_two_sizes(run: Run, weights: dict[str, str], *, timed: bool = True, classified: bool = True) -> None:
    """ResNet-18 and -50 in PyTorch eager: certified, and timed or classified, with the weights that are named."""
    for (model, sha256), (parameters, macs, top1) in zip(
        weights.items(), ((11_689_512, 1_814_073_344, 0.698), (25_557_032, 4_089_184_256, 0.761)), strict=True
    ):
        about = {"model": Model(sha256, SHA, parameters, macs, None)}
        cell = run.cell("pytorch/eager", model=model).certificate_cell
        run.certificates[cell] = run.append("equivalence", cell, **about).record_id
        if timed:
            run.timed("pytorch/eager", macs / 4e11, processes=3, told=about, model=model)
        if classified:
            run.append("accuracy", cell, measurements={"top1": top1, "images": 50_000.0}, data={"dataset": "imagenet"}, **about)


def accuracy_chapter(folder: Path, out: Path) -> str:
    page = write.write(folder, out)[0].read_text(encoding="utf-8")
    return page[page.index('<section id="accuracy"') :].split("</section>")[0]


TWO = {"resnet18": "01" * 32, "resnet50": "02" * 32}


def test_accuracy_is_drawn_against_size_and_speed(run: Run) -> None:
    """Two pictures that say their numbers, and the numbers of a paper's table."""
    of_two_sizes(run, TWO)
    chapter = accuracy_chapter(run.folder, run.folder.parent.parent / "out")
    against_size, against_speed = re.findall(r'<svg role="img" aria-label="(.*?)"', chapter)
    assert "ResNet-50 76.1 % with 25.6 million parameters and 4.09 billion multiply-accumulates" in against_size
    assert re.search(r"ResNet-18 69\.8 % at 2\d\d.* by PyTorch eager", against_speed)
    assert '<td class="number">25.557</td><td class="number">4.0892</td><td class="number">76.10 [75.72,76.47]</td>' in chapter


@pytest.mark.parametrize(("weights", "pictures"), [(TWO, 2), ({"resnet18": "03" * 32, "resnet50": "04" * 32}, 1)])
def test_accuracy_of_another_run_is_of_the_same_weights(tmp_path: Path, weights: dict[str, str], pictures: int) -> None:
    """A speed stands beside the accuracy of its own weights, in whichever run that was taken, and of no other's."""
    of_two_sizes(Run(tmp_path / "records"), TWO, timed=False)
    of_two_sizes(Run(tmp_path / "records"), weights, classified=False)
    assert accuracy_chapter(tmp_path / "records", tmp_path / "out").count("<svg") == pictures


def test_one_model_is_not_drawn_against_size(written: Path) -> None:
    """There is nothing to compare it with; its accuracy is a table."""
    page = (written / "index.html").read_text(encoding="utf-8")
    assert "accuracy against size" not in page
    assert "94.40 [" in page
