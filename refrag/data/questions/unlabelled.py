"""Makes questions of passages alone, without any label: what a teacher answers to them can be taught to a student.

Most of the requests begin a sentence of a passage and ask for the rest, which only the passage tells: a decoder that
was trained on questions of facts answers these, where it says of most general requests that they are not in the
passages. The others are general, or after something that a passage names. Whoever teaches a decoder from them learns to
say what its plain self would have said, no more.
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
BEGUN = ("{beginning} what?", 'Complete the sentence: "{beginning} …"', 'What follows "{beginning}"?')
ABOUT = ("What do the passages say about {name}?", "Who or what is {name}?", "State one fact about {name}.")
# Names, roughly: runs of capitalised words that do not begin a sentence.
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)*")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Words of a sentence whose rest is asked for, and how many of them the rest may be.
SENTENCE_WORDS, REST_WORDS = (7, 40), (2, 4)
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
    """Yield a general request, one about a name and several after the rest of a sentence, where there are such."""
    yield rng.choice(REQUESTS)
    names = sorted({passage.title, *NAME.findall(passage.text)} - {""})
    if names:
        yield rng.choice(ABOUT).format(name=rng.choice(names))
    sentences = [sentence.split() for sentence in END_OF_SENTENCE.split(passage.text)]
    fewest, most = SENTENCE_WORDS
    if fitting := [words for words in sentences if fewest <= len(words) <= most]:
        words = rng.choice(fitting)
        beginning = " ".join(words[: -rng.randint(*REST_WORDS)])
        yield from (form.format(beginning=beginning) for form in BEGUN)
