"""Trains the demo tokenizer: byte-level BPE, so that any text survives the round trip; each digit is a token."""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refrag.data.documents import open_documents
from refrag.data.sources import TextSource
from refrag.data.tasks import TASKS, ask
from refrag.data.world.world import make_document, make_world

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
NUM_ENTITIES, QUESTIONS_PER_TASK, PROSE_CHARACTERS = 10, 3, 8000


def train_tokenizer(vocab_size: int, seed: int, num_documents: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `vocab_size` on made-up worlds, questions about them, and the standard library's prose.

    num_documents: number of worlds, and of the library's documents.
    """
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rng, num_documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _texts(rng: random.Random, num_documents: int) -> Iterator[str]:
    prose = open_documents(TextSource(kind="stdlib"), "train")
    for _ in range(num_documents):
        world = make_world(rng, NUM_ENTITIES, "train")
        yield make_document(rng, world)
        passages = range(NUM_ENTITIES)
        yield "\n".join(
            f" {question.text}\n {question.answer}"
            for task in TASKS * QUESTIONS_PER_TASK
            if (question := ask(rng, task, world, passages))
        )
        # The library's documents are many times as long as a world; in full they would take most of the vocabulary.
        yield prose.draw()[:PROSE_CHARACTERS]
