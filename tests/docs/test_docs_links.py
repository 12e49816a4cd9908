"""No link is broken, no path is made up, and the README stays short."""

import re

import pytest
from documentation import PAGES, ROOT, read_page, without_code

LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
INLINE = re.compile(r"`([^`\n]+)`")
# What a path in the text begins with; such paths must exist, but for files that the reader is to write.
FOLDERS = (
    "refrag/",
    "export/",
    "client/",
    "perf/",
    "tests/",
    "checkpoints/",
    "examples/",
    "docs/",
    "model_repository/",
)
WRITTEN_BY_READERS = re.compile(r"mine\b|my_")
MAP_LINE = re.compile(r"^(\S+/)|(?<= )([\w.]+/|\w+\.py)(?= )", re.MULTILINE)


def anchors_of(page):
    """Return the ids that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(read_page(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(without_code(read_page(page))):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            other = path.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors_of(other), f"{page} links to {other}#{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_path_in_the_text_exists(page):
    paths = [word for word in INLINE.findall(without_code(read_page(page))) if word.startswith(FOLDERS)]
    for path in paths:
        assert WRITTEN_BY_READERS.search(path) or (ROOT / path.partition(" ")[0]).exists(), f"{page} names {path}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_make_target_in_the_text_exists(page):
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make ([a-z0-9-]+)", read_page(page)):
        assert target in targets, f"{page} names make {target}"


def test_every_page_is_in_the_index():
    index = read_page("docs/README.md")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


def test_the_readme_fits_into_two_hundred_lines():
    assert len(read_page("README.md").splitlines()) <= 200


def test_the_short_file_map_names_only_what_exists_and_every_package():
    file_map = re.search(r"## File map\n\n```\n(.*?)```", read_page("README.md"), re.DOTALL).group(1)
    names = {name for pair in MAP_LINE.findall(file_map) for name in pair if name}
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "refrag" / name).exists(), name
    assert {f"{path.parent.name}/" for path in (ROOT / "refrag").glob("*/__init__.py")} <= names
