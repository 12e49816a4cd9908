"""The pair of the tests: a decoder and an encoder of random weights, as small as they go."""

from copy import deepcopy
from dataclasses import replace

from refrag.config import PromptTemplate
from refrag.model.checkpoint import Checkpoint
from refrag.training.pair import make_pair
from refrag.training.pair_settings import Backbone, Pair

CHAT_TEMPLATE = (
    "{% for message in messages %}<|bos|>{{ message['role'] }}\n{{ message['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)
CHAT = PromptTemplate("", "\n", "\nQuestion: ", "", is_chat=True, system="Answer in a word.")


def tiny_pair(width: int = 48, num_layers: int = 2, num_heads: int = 4, **settings) -> Pair:
    """Return a Llama-shaped decoder and a BERT-shaped encoder; other settings as in `Pair`."""
    shape = {"hidden_size": width, "num_attention_heads": num_heads, "initializer_range": 0.04}
    decoder = {"num_hidden_layers": num_layers, "intermediate_size": 2 * width, "tie_word_embeddings": True}
    encoder = {
        "num_hidden_layers": 1,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    defaults = {"vocab_size": 512, "tokenizer_documents": 12, "policy_width": 32, "trained_chunk_sizes": [8, 16]}
    return Pair(
        decoder=Backbone(architecture="llama", shape={**shape, **decoder}),
        encoder=Backbone(architecture="bert", shape={**shape, **encoder}),
        **{**defaults, **settings},
    )


def make_tiny_checkpoint(**settings) -> Checkpoint:
    checkpoint = make_pair(tiny_pair(**settings))
    for module in checkpoint.modules.values():
        module.eval()
    return checkpoint


def as_chat(checkpoint: Checkpoint, chat_template: str | None = CHAT_TEMPLATE) -> Checkpoint:
    """Return the same weights as an instruct model, whose prompts stand in a chat template."""
    tokenizer = deepcopy(checkpoint.decoder_tokenizer)
    tokenizer.chat_template = chat_template
    return replace(checkpoint, decoder_tokenizer=tokenizer, config=replace(checkpoint.config, template=CHAT))
