"""Loads a checkpoint's tokenizers, without torch, whose import takes longer than all else that preprocessing needs.

The size of the decoder's vocabulary, which is not the tokenizer's, is read here too.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from refrag.context.deployed import DECODER, ENCODER, TOKENIZER_FILE
from refrag.errors import CheckpointError
from refrag.model.bases import model_folder

CONFIG_FILE = "tokenizer_config.json"


def load_decoder_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(model_folder(directory, DECODER))


def load_decoder_vocab_size(directory: Path) -> int:
    """Return the rows of the decoder's embedding matrix, from its config alone; raise CheckpointError without one."""
    # Imports torch, which others who read this module do without.
    from transformers import AutoConfig

    folder = model_folder(directory, DECODER)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no config that can be read: {error}") from error


def load_encoder_tokenizer(directory: Path) -> PreTrainedTokenizerFast | None:
    """Return the encoder's own tokenizer, or None if it reads the decoder's tokens."""
    folder = model_folder(directory, ENCODER)
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def has_tokenizer(folder: Path) -> bool:
    return (folder / CONFIG_FILE).exists()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from its tokenizer.json alone, which needs no class of its model.

    Raises CheckpointError, with the folder's name, if the file is missing or cannot be loaded.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; a REFRAG checkpoint holds {DECODER}/ and {ENCODER}/")
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_FILE}; load its tokenizer with transformers' AutoTokenizer and save it there"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # depending on the fault, of any class, even Exception
        raise CheckpointError(f"{folder} has a tokenizer that cannot be loaded: {error}") from error
