"""The corpus of the demo: the reference of the language that every Python brings, cut into passages.

    python -m examples.documentation > documentation.txt

writes it as text with blank lines between passages, and none in them.
"""

from refrag.data.stdlib import topic_texts
from refrag_client.corpus import cut_text


def read_documentation() -> list[str]:
    """Return the passages of all topics, each headed by its topic."""
    return [f"{topic}\n{text}" for topic, whole in sorted(topic_texts().items()) for text in cut_text(whole)]


if __name__ == "__main__":
    print("\n\n".join("\n".join(filter(str.strip, passage.splitlines())) for passage in read_documentation()))
