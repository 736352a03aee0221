"""The page that lays the four ``layers.py`` side by side, and that they can be laid so."""

from __future__ import annotations

import io
import re
import shutil
import tokenize
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impls import spec
from impls.implementation import ROOT, find
from reports import layers

MANIFESTS = find()
KINDS = [kind.__name__ for kind in get_args(spec.Layer)]
FUNCTIONS = [
    "conv2d", "batch_norm2d", "relu", "max_pool2d", "global_avg_pool2d", "adaptive_avg_pool2d", "flatten", "dropout", "linear",
    "pad_shortcut", "add", "concat",
]  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of all that the page is made from."""
    for name in MANIFESTS:
        shutil.copytree(ROOT / "impls" / name, tmp_path / "impls" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "impls" / "spec.py", tmp_path / "impls" / "spec.py")
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def text_of(html: str) -> str:
    """Without its tags."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def squeezed(text: str) -> str:
    """Without white space and the quotes of docstrings."""
    return re.sub(r'\s|``|"""', "", text)


def test_the_page_is_up_to_date() -> None:
    """docs/layers.html is what ``python -m reports.layers`` writes."""
    assert layers.PAGE.read_text(encoding="utf-8") == layers.page(), "run `python -m reports.layers`"


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_files_define_the_same_functions(name: str) -> None:
    """Every implementation has one public function for each layer kind, in the order of the spec, behind the two for weights."""
    source = (ROOT / "impls" / name / "layers.py").read_text(encoding="utf-8")
    assert layers.public_functions(source) == ["to_framework", "to_canonical", *FUNCTIONS]


def test_functions_are_called_as_their_kinds() -> None:
    """The name of a layer's function follows from its kind, whatever a new kind is called."""
    assert [layers.function_of(kind) for kind in KINDS] == FUNCTIONS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def relu(", "def rectify("),
        ("def relu(", "def _relu("),
        ("def relu(", "def more() -> None:\n    pass\n\n\ndef relu("),
    ],
    ids=["another name", "private", "one more"],
)
def test_other_functions_are_refused(checkout: Path, old: str, new: str) -> None:
    """A file with other public functions cannot stand beside the rest; it is named."""
    replace(checkout / "impls" / "jax" / "layers.py", old, new)
    with pytest.raises(layers.LayersError, match=r"impls/jax/layers\.py: defines .* must define to_framework, to_canonical, conv2d, "):
        layers.page(checkout)


def test_another_order_is_refused(checkout: Path) -> None:
    """So is one with the same functions in another order."""
    path = checkout / "impls" / "tensorflow" / "layers.py"
    source = path.read_text(encoding="utf-8")
    begin, middle, end = (source.index(f"def {name}(") for name in ("relu", "max_pool2d", "global_avg_pool2d"))
    path.write_text(source[:begin] + source[middle:end] + source[begin:middle] + source[end:], encoding="utf-8")
    with pytest.raises(layers.LayersError, match=r"impls/tensorflow/layers\.py"):
        layers.page(checkout)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_line_is_shown(name: str) -> None:
    """No line of code of any file is left out: what is shown of a file is the file, but for docstrings moved and blank lines."""
    source = (ROOT / "impls" / name / "layers.py").read_text(encoding="utf-8")
    page = layers.page()
    articles = re.findall(rf'<article class="{name}".*?</article>', page, re.DOTALL)
    assert len(articles) == len(KINDS) + 4
    shown = squeezed("".join(text_of(article) for article in articles))
    for line in source.splitlines():
        assert squeezed(line) in shown, line


def test_a_changed_line_changes_the_page(checkout: Path) -> None:
    """An edit of any implementation makes the page out of date."""
    before = layers.page(checkout)
    for name in MANIFESTS:
        path = checkout / "impls" / name / "layers.py"
        path.write_text(path.read_text(encoding="utf-8") + "\nLAST = 1\n", encoding="utf-8")
        after = layers.page(checkout)
        assert after != before
        before = after


def test_a_fifth_implementation_has_a_column(checkout: Path) -> None:
    """A new folder is a new column; nothing else is edited."""
    shutil.copytree(checkout / "impls" / "jax", checkout / "impls" / "zig")
    replace(checkout / "impls" / "zig" / "impl.toml", 'title = "JAX"', 'title = "Zig <&>"')
    page = layers.page(checkout)
    assert page.count('<article class="zig"') == len(KINDS) + 4
    assert "Zig &lt;&amp;&gt;" in page


class Balance(HTMLParser):
    """Checks that every element is closed in its turn, and notes what is fetched."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.identifiers: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert "src" not in found
        self.identifiers += [found["id"]] if "id" in found else []
        self.targets += [found["href"]] if "href" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained() -> None:
    """Well-formed, every link leads to a place on it, nothing is fetched."""
    parser = Balance()
    page = layers.page()
    parser.feed(page)
    assert parser.open == []
    assert len(set(parser.identifiers)) == len(parser.identifiers)
    assert all(target.startswith("#") and target[1:] in parser.identifiers for target in parser.targets)
    assert "url(" not in page
    assert "<script" not in page


def test_every_kind_shows_its_spec() -> None:
    """Each layer kind opens with what the spec says of it."""
    page = text_of(layers.page())
    for kind in get_args(spec.Layer):
        assert " ".join((kind.__doc__ or "").replace("``", "").split("\n\n")[0].split()) in page
        assert f"{kind.__name__}(name: str" in page


LINES = st.lists(
    st.sampled_from(
        ['x = "a < b"  # <&>', "def f(x):", "    return x", "class A:", '    """two', '    lines"""', "y = [1,", "     2.5e-3]", ""]
    )
)


@given(LINES)
def test_highlighting_changes_no_character(lines: list[str]) -> None:
    """Highlighted code, its tags taken off, is the code; what is not Python is refused in a sentence."""
    code = "\n".join(lines)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        tokens = []
    if tokens:
        assert text_of(layers.highlighted(code)) == code
    else:
        with pytest.raises(layers.LayersError, match="this is not Python: "):
            layers.highlighted(code)


def test_highlighting_marks_what_it_should() -> None:
    """A keyword, a name that is defined, a number, a string and a comment each have their class."""
    html = layers.highlighted('def f():\n    return 1, "a<"  # why')
    assert html == (
        '<span class="l" style="--i:0"><span class="k">def</span> <span class="d">f</span>():</span>\n'
        '<span class="l" style="--i:4">    <span class="k">return</span> <span class="n">1</span>, '
        '<span class="s">&#34;a&lt;&#34;</span>  <span class="c"># why</span></span>'
    )


def test_no_framework_is_needed() -> None:
    """The page is made from text: none of the frameworks is imported."""
    import sys

    layers.page()
    assert not {"torch", "jax", "tensorflow", "onnx", "onnxruntime"} & sys.modules.keys()
