"""The library reads a file of passages as the client does, which it never imports."""

import pytest

import refrag_client
import refrag_client.passages as client
from refrag.data import passages as library
from refrag.data.passages import read_passages
from refrag.errors import InvalidRequest
from refrag_client.passages import read_passages as read_as_the_client

FILES = {
    "lines.txt": '"a b"\n{"id": 1, "text": "c"}\n\n{"passage": "d"}\n{"content": "e\u2028f"}\n',
    "lines.jsonl": '\ufeff"a"\r\n"b"\r\n',
    "prose.txt": '"Hello," he said,\nand left.\n \n\nThe end.\n',
    "windows.txt": "One.\r\n\r\nTwo,\r\nand more.\r\n",
    "empty.txt": "\n",
    "array.json": '[\n "a",\n {"contents": "b"},\n {"page_content": "c", "metadata": {}},\n {"body": "d"}\n]',
    "wrapped.json": '{"documents": [{"content": "a"}, "b"]}',
    "found.jsonl": '{"snippet": "a", "url": "b"}\n',
    "bracket.txt": "[1] Ada built it.\n\n{sic}",
}
BAD_FILES = {
    "json.jsonl": b'"a"\nb',
    "key.jsonl": b'{"title": "a"}',
    "list.jsonl": b"[1]",
    "bytes.txt": b"caf\xe9",
    "nowhere.txt": None,
    "several.jsonl": b'{"text": "a", "body": "b"}',
    "null.jsonl": b'{"text": null}',
    "half.json": b'["a",',
    "lists.json": b'{"docs": ["a"], "documents": ["b"]}',
    "table.csv": b"id,text\n1,a",
}


def test_both_know_the_same_keys_and_forms():
    for name in ("TEXT_KEYS", "LIST_KEYS", "OTHER_FORMS"):
        assert getattr(library, name) == getattr(client, name)


@pytest.mark.parametrize("name", FILES)
def test_both_read_the_same_passages(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name].encode())
    assert read_passages(path) == read_as_the_client(str(path))


@pytest.mark.parametrize("name", BAD_FILES)
def test_both_refuse_the_same_files_and_name_them(tmp_path, name):
    path = tmp_path / name
    if BAD_FILES[name] is not None:
        path.write_bytes(BAD_FILES[name])
    with pytest.raises(InvalidRequest, match=name):
        read_passages(path)
    with pytest.raises(refrag_client.InvalidRequest, match=name):
        read_as_the_client(str(path))
