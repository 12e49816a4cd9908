"""Reads the documentation of Python's standard library as it is installed: docstrings, and the language reference."""

import ast
import functools
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

# Folders that do not document the library: its tests, and tools and packages that stand beside it.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages"}
# A shorter text is a name and a line about it.
MIN_CHARACTERS = 200
# A shorter paragraph is a phrase that two authors may both have written.
MIN_REPEAT_CHARACTERS = 60

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def library_texts() -> dict[str, str]:
    """Return a text per module and per topic of the language reference, each without what an earlier one says.

    The reference prints whole sections under several topics; if they stayed, much of the held-out text would be
    trained on.
    """
    modules = _module_texts()
    topics = {f"topic {name}": text for name, text in topic_texts().items()}
    texts, seen, told = {**modules, **topics}, set[str](), {}
    # In the order of their names, training would read one subject for hours; the order of a hash mixes them.
    for identity in sorted(texts, key=lambda name: zlib.crc32(name.encode())):
        text = _without_repeats(texts[identity], seen)
        if len(text) >= MIN_CHARACTERS:
            told[identity] = text
    return told


def topic_texts() -> dict[str, str]:
    """Return the topics of the language reference by their names, as `help` shows them."""
    return topics


def _without_repeats(text: str, seen: set[str]) -> str:
    """Return the text without the paragraphs that are in `seen`, and add its other long ones to `seen`."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    paragraphs = [paragraph for paragraph in re.split(r"\n{2,}", lines.strip()) if paragraph not in seen]
    seen.update(paragraph for paragraph in paragraphs if len(paragraph) >= MIN_REPEAT_CHARACTERS)
    return "\n\n".join(paragraphs)


def _module_texts() -> dict[str, str]:
    """Return each module's docstrings by its name, read from source: an import runs it, and some need a display."""
    root = Path(sysconfig.get_path("stdlib"))
    return {name: "\n\n".join(_docstrings(_parse_module(path), name)) for name, path in _module_paths(root)}


def _module_paths(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and not SKIPPED_FOLDERS.intersection(parts):
            yield ".".join(parts).removesuffix(".__init__"), path


def _parse_module(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        # The library's own strings have escape sequences that Python warns of.
        warnings.simplefilter("ignore")
        return ast.parse(path.read_bytes())


def _docstrings(node: ast.AST, name: str) -> Iterator[str]:
    """Yield the docstrings of a module, class or function and of all within it, each headed by its qualified name."""
    if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
        yield f"{name}\n\n{docstring}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child, name)
