"""The base of all settings that people write in files: it refuses unknown names and values that do not fit."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen settings, all of whose numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
