"""Takes models from the Hugging Face hub, into the hub's own cache, which resumes downloads that were cut off."""

from pathlib import Path

from refrag.base_models.folder import check_folder, missing_files
from refrag.base_models.reference import BaseModel
from refrag.errors import CheckpointError, SetupError

# A model and its tokenizer, without the same weights in other forms.
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
IGNORED = ["*/*"]


def find_on_hub(reference: BaseModel) -> Path | None:
    """Return the model's folder in the hub's cache, or None if it is not there in full.

    Raises CheckpointError if the name is none that the hub could have.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _snapshot(reference, local_files_only=True)
    except HFValidationError as error:
        raise CheckpointError(
            f"{reference} is no name of a model on the hub: {error}; write `hub` as owner/model, or name a `folder`"
        ) from None
    except OSError:
        return None
    return None if missing_files(folder) else check_folder(folder)


def fetch_from_hub(reference: BaseModel) -> Path:
    """Download the model with a progress bar; raise SetupError if the hub does not give it."""
    try:
        folder = _snapshot(reference, local_files_only=False)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"{reference} could not be downloaded: {error}. It is needed once. Without a network, fetch it on another "
            "machine, copy the folder here and name it as `folder` instead of `hub`"
        ) from error
    return check_folder(folder)


def _snapshot(reference: BaseModel, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    assert reference.hub is not None
    return Path(
        snapshot_download(
            reference.hub,
            revision=reference.revision,
            allow_patterns=PATTERNS,
            ignore_patterns=IGNORED,
            local_files_only=local_files_only,
        )
    )
