"""Settings of the engine, and what its memory for keys and values holds."""

from dataclasses import dataclass, fields

from refrag.errors import SetupError

MIB = 1024 * 1024


@dataclass(frozen=True)
class EngineSettings:
    """Settings of the engine. Raises SetupError for a number below 1.

    kv_cache_mib: MiB of memory for keys and values, taken at start.
    block_size: slots of a block, the smallest part of the KV cache that a request is given or that can be reused.
    max_active: requests that are computed together; others wait.
    max_waiting: requests that may wait; more are refused.
    max_step_slots: slots computed in one step, one for each running answer and the rest for new prompts; it limits how
        long new prompts hold running answers up.
    max_whole_slots: longest prompt that is computed in one step while no other request is active; longer ones are cut.
    """

    kv_cache_mib: int = 512
    block_size: int = 16
    max_active: int = 32
    max_waiting: int = 256
    max_step_slots: int = 256
    max_whole_slots: int = 1024

    def __post_init__(self) -> None:
        for field in fields(EngineSettings):
            if (value := getattr(self, field.name)) < 1:
                raise SetupError(f"{field.name} is {value}; it must be at least 1")


def count_blocks(settings: EngineSettings, slot_bytes: int, max_prompt_slots: int, num_padding: int = 0) -> int:
    """Return how many blocks kv_cache_mib pays for, with `num_padding` that no request may have.

    Raises SetupError if the others cannot hold one prompt that fills the decoder's window.
    """
    block_bytes = slot_bytes * settings.block_size
    num_blocks = settings.kv_cache_mib * MIB // block_bytes
    num_slots = max(0, num_blocks - num_padding) * settings.block_size
    if num_slots < max_prompt_slots:
        needed = -(-((-(-max_prompt_slots // settings.block_size) + num_padding) * block_bytes) // MIB)
        raise SetupError(
            f"kv_cache_mib is {settings.kv_cache_mib}, which holds {num_slots} slots of {slot_bytes} bytes; the window "
            f"of {max_prompt_slots} slots needs at least {needed}; raise it, or lower max_prompt_slots in refrag.json"
        )
    return num_blocks
