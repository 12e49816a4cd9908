"""Maps the source: lists every file with what it says about itself, and draws which package imports which."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

from refrag.reporting import table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("refrag", "refrag_client")
# Folders whose files are listed.
FOLDERS = ("model_repository", "refrag", "export", "client/src/refrag_client", "examples", "perf")


def list_files() -> str:
    """Return a Markdown table of every Python file and its first sentence; packages in bold."""
    rows = [[_label(path), _first_sentence(path)] for folder in FOLDERS for path in _python_files(ROOT / folder)]
    return table(["file", "what it is for"], rows, num_text=2)


def draw_imports() -> str:
    """Return a Mermaid drawing of the imports between packages, without those that follow from others."""
    imports = without_implied(find_imports())
    lines = [f"    {importer} --> {imported}" for importer in sorted(imports) for imported in sorted(imports[importer])]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def find_imports() -> dict[str, set[str]]:
    """Return the packages that each of our packages imports directly."""
    graph = grimp.build_graph(*PACKAGES)
    imports: dict[str, set[str]] = {}
    for module in graph.modules:
        found = imports.setdefault(_package_of(module), set())
        found |= {_package_of(imported) for imported in graph.find_modules_directly_imported_by(module)}
    return {package: found - {package} for package, found in imports.items() if package != "refrag"}


def without_implied(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports that no chain of other imports implies."""
    reached = {package: _reachable(package, imports) for package in imports}

    def is_implied(imported: str, others: set[str]) -> bool:
        # Two packages that import each other imply nothing.
        return any(imported in reached[other] and other not in reached[imported] for other in others)

    return {
        package: {imported for imported in direct if not is_implied(imported, direct - {imported})}
        for package, direct in imports.items()
    }


def _package_of(module: str) -> str:
    """Return the name that the drawing shows for a module: its package's.

    A module `base` keeps its own name, since users of a protocol import it as well as those who implement it.
    """
    parts = module.split(".")
    if parts[0] != "refrag" or len(parts) == 1:
        return parts[0]
    return ".".join(parts[1:3]) if parts[2:] == ["base"] else parts[1]


def _reachable(package: str, imports: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(imports[package])
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += imports[other]
    return found


def _python_files(folder: Path) -> Iterator[Path]:
    """Yield Python files depth first: a package's own file before its modules, modules before packages."""
    entries = [path for path in sorted(folder.iterdir()) if not path.is_symlink() and path.name != "__pycache__"]
    files = [path for path in entries if path.suffix == ".py"]
    yield from sorted(files, key=lambda path: path.name != "__init__.py")
    for path in entries:
        if path.is_dir():
            yield from _python_files(path)


def _label(path: Path) -> str:
    place = path.relative_to(ROOT)
    return f"**`{place.parent}/`**" if place.name == "__init__.py" else f"`{place}`"


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("|", "\\|")
