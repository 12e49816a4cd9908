"""The demo tokenizer: byte-level BPE, so that any text survives the round trip, with every digit a token of its own."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refrag.training.world import make_context

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"


def train_tokenizer(vocab_size: int, seed: int, num_contexts: int = 4000) -> PreTrainedTokenizerFast:
    """Learn the merges from `num_contexts` training contexts and their questions."""
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
    tokenizer.train_from_iterator((_sample_text(rng) for _ in range(num_contexts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _sample_text(rng: random.Random) -> str:
    context = make_context(rng, num_passages=4, num_questions=8, split="train")
    questions = [f" {question.text}\n {question.answer}" for question in context.questions]
    return "\n".join(f" {text}" for text in context.passages + questions)
