"""Makes questions of passages alone, without any label: what a teacher answers to them can be taught to a student.

The requests are general ones, and ones after what a sentence says of something that it names. Whoever teaches a
decoder from them learns to say what its plain self would have said, no more.
"""

import random
import re
from collections.abc import Iterator, Sequence

from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.errors import InvalidRequest
from refrag.retrieval.bm25 import Retriever

REQUESTS = (
    "Summarise the passages in one sentence.",
    "List the facts that the passages tell.",
    "What are the passages about?",
)
ABOUT = ("What do the passages say about {name}?", "Who or what is {name}?", "State one fact about {name}.")
# Names, roughly: runs of capitalised words that do not begin a sentence.
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)*")
SOURCE = "unlabelled"


def ask_unlabelled(passages: Sequence[SourcePassage], num_rows: int, num_passages: int, seed: int) -> list[QuestionRow]:
    """Return `num_rows` questions, each over a passage drawn at random and those that BM25 finds beside it.

    They have no answers yet; `gold` is the drawn passage. Raises InvalidRequest for fewer than one row.
    """
    if num_rows < 1:
        raise InvalidRequest(f"num_rows is {num_rows}; it must be at least 1")
    rng, retriever = random.Random(seed), Retriever([passage.content for passage in passages])
    rows = []
    for number in range(num_rows):
        place = rng.randrange(len(passages))
        found = [each for each in retriever.rank(passages[place].content, num_passages + 1) if each != place]
        chosen = [place, *found[: num_passages - 1]]
        question = rng.choice(list(_requests(passages[place], rng)))
        rows.append(
            QuestionRow(
                id=f"{SOURCE}-{number}",
                source=SOURCE,
                question=question,
                answers=(),
                answerable=True,
                passages=tuple(passages[each] for each in chosen),
                gold=(0,),
            )
        )
    return rows


def _requests(passage: SourcePassage, rng: random.Random) -> Iterator[str]:
    """Yield as many general requests as ones about names, where the passage has names."""
    yield rng.choice(REQUESTS)
    names = sorted({passage.title, *NAME.findall(passage.text)} - {""})
    if names:
        yield rng.choice(ABOUT).format(name=rng.choice(names))
