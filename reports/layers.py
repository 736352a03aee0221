"""The page that lays the implementations' ``layers.py`` side by side, layer kind by layer kind.

``python -m reports.layers`` writes docs/layers.html from the sources as text: no framework is imported.
"""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from markupsafe import Markup

from impls import spec
from impls.implementation import ROOT, find
from reports.publish import environment

PAGE = ROOT / "docs" / "layers.html"

KINDS = tuple(kind.__name__ for kind in get_args(spec.Layer))
"""The layer kinds, in the order of the spec."""


class LayersError(ValueError):
    """Files that cannot be laid side by side; the message names file and function."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one file has for one row of the page: where it stands, its docstring and its code without that, as HTML."""

    column: str
    path: str
    first_line: int
    last_line: int
    says: Markup
    code: Markup


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the page. ``kind`` is the spec's part, None where the row is about no layer kind."""

    name: str
    title: str
    kind: Part | None
    parts: tuple[Part, ...]


def public_functions(source: str) -> list[str]:
    """Names of the module's own public functions in the order of the file."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def function_of(kind: str) -> str:
    """ "batch_norm2d" for "BatchNorm2d": what its function is called."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def page(root: Path = ROOT) -> str:
    """The page for the implementations of the checkout at ``root``.

    Raises:
        LayersError: the files do not define the same public functions in the same order, or not one for each layer kind.
    """
    manifests = find(root)
    sources = {name: (root / "impls" / name / "layers.py").read_text(encoding="utf-8") for name in manifests}
    expected = ["to_framework", "to_canonical", *map(function_of, KINDS)]
    for name, source in sources.items():
        if (found := public_functions(source)) != expected:
            raise LayersError(f"impls/{name}/layers.py: defines {', '.join(found)}; must define {', '.join(expected)}, in this order")
    split = {name: _split(name, f"impls/{name}/layers.py", source) for name, source in sources.items()}
    described = _kinds((root / "impls" / "spec.py").read_text(encoding="utf-8"))
    titles = {"": "Conventions", "to_framework": "Weights to the framework", "to_canonical": "Weights back", "FUNCTIONS": "The table"}
    kinds = {function_of(kind): kind for kind in KINDS}
    rows = [
        Row(key or "file", kinds.get(key) or titles[key], described.get(kinds.get(key, "")), tuple(parts[key] for parts in split.values()))
        for key in ("", *expected, "FUNCTIONS")
    ]
    columns = {name: manifest.title for name, manifest in manifests.items()}
    return environment().get_template("layers.html.j2").render(rows=rows, columns=columns)


def _split(column: str, path: str, source: str) -> dict[str, Part]:
    """The file in pieces by name: each public function with what stands before it; the head is "", the rest "FUNCTIONS"."""
    lines = source.splitlines()
    module = ast.parse(source)
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    first_helper = next(node for node in module.body if isinstance(node, ast.FunctionDef))
    pieces: dict[str, Part] = {}
    begin = 1
    head_end = _start(first_helper) - 1
    pieces[""] = _part(column, path, lines, begin, head_end, module)
    begin = head_end + 1
    for node in functions:
        pieces[node.name] = _part(column, path, lines, begin, node.end_lineno or begin, node)
        begin = (node.end_lineno or begin) + 1
    pieces["FUNCTIONS"] = _part(column, path, lines, begin, len(lines), None)
    return pieces


def _start(node: ast.FunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _part(
    column: str, path: str, lines: list[str], first: int, last: int, documented: ast.Module | ast.FunctionDef | ast.ClassDef | None
) -> Part:
    """Lines ``first`` to ``last``, without blank ones at either end and without the docstring of ``documented``."""
    says = ast.get_docstring(documented) if documented else None
    shown = dict(enumerate(lines[first - 1 : last], start=first))
    if documented and says is not None:
        docstring = documented.body[0]
        for number in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
            del shown[number]
    filled = [number for number, line in shown.items() if line.strip()]
    first, last = (min(filled), max(filled)) if filled else (first, last)
    code = "\n".join(line for number, line in shown.items() if first <= number <= last)
    return Part(column, path, first, last, _prose(says or ""), highlighted(code))


def _kinds(source: str) -> dict[str, Part]:
    """The class of every layer kind in the spec: its docstring, and its constructor for code."""
    lines = source.splitlines()
    parts: dict[str, Part] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in KINDS:
            fields = f"{node.name}({', '.join(ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign))})"
            whole = _part("spec", "impls/spec.py", lines, node.lineno, node.end_lineno or node.lineno, node)
            parts[node.name] = Part("spec", whole.path, node.lineno, whole.last_line, whole.says, highlighted(fields))
    return parts


def _prose(docstring: str) -> Markup:
    """A docstring as paragraphs; what stands in double backticks is code."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n") if paragraph.strip()]
    marked = (re.sub(r"``(.+?)``", r"<code>\1</code>", str(Markup.escape(paragraph))) for paragraph in paragraphs)
    return Markup("".join(f"<p>{paragraph}</p>" for paragraph in marked))


def highlighted(code: str) -> Markup:
    """Python code as HTML, a ``span`` a line, with keywords, strings, numbers, comments and defined names marked.

    Raises:
        LayersError: it is not Python.
    """
    starts = [0, *itertools.accumulate(len(row) for row in code.splitlines(keepends=True))]
    pieces: list[tuple[str | None, str]] = []
    position, previous = 0, ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
            if style := _style(token, previous):
                pieces += [(None, code[position:begin]), (style, code[begin:end])]
                position = end
            previous = token.string.strip() or previous
    except (tokenize.TokenError, SyntaxError) as error:
        raise LayersError(f"this is not Python: {error}") from None
    pieces.append((None, code[position:]))
    lines = [Markup("")]
    for style, text in pieces:
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append(Markup(""))
            lines[-1] += Markup('<span class="{}">{}</span>').format(style, part) if style and part else part
    indents = (len(line) - len(line.lstrip()) for line in code.split("\n"))
    return Markup("\n").join(Markup('<span class="l" style="--i:{}">{}</span>').format(*pair) for pair in zip(indents, lines, strict=True))


def _style(token: tokenize.TokenInfo, previous: str) -> str | None:
    """The class of a token that is marked, None of one that is not."""
    match token.type:
        case tokenize.COMMENT:
            return "c"
        case tokenize.STRING:
            return "s"
        case tokenize.NUMBER:
            return "n"
        case tokenize.NAME if previous in ("def", "class"):
            return "d"
        case tokenize.NAME if keyword.iskeyword(token.string):
            return "k"
        case _:
            return None


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
