"""Settings that say where text comes from."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from refrag.settings import Settings


class TextSource(Settings):
    """Source of documents.

    kind: "world" makes up worlds without end; "stdlib" is the documentation of Python's standard library; "text" reads
        each file as one document; "jsonl" reads each line of a file as one; "dataset" streams a data set with the
        package datasets, each record as one.
    path: for "text" a file, or a folder in which to find .txt, .md and .rst files; for "jsonl" a file, or a folder in
        which to find .jsonl and .jsonl.gz files; for "dataset" what datasets.load_dataset takes, such as a name on the
        Hugging Face hub.
    text_field: field of a record that holds its text, for "jsonl" and "dataset". A line of "jsonl" may also be a bare
        string.
    split: split of the data set to read, for "dataset".
    shuffle: documents that are read ahead and taken in random order, always the same; 1 keeps the source's order.
    weight: share of the documents that come from this source, relative to the other sources of the run.
    """

    kind: Literal["world", "stdlib", "text", "jsonl", "dataset"]
    path: str | None = None
    text_field: str = "text"
    split: str = "train"
    shuffle: PositiveInt = 1
    weight: PositiveFloat = 1.0
