"""vLLM's own statistics of each step, as the statistics of a decoder."""

from typing import Any

from refrag.decoders.base import DecoderStats, Observe


class EngineStats:
    """Keeps the state of the engine, or of several that share the work, and reports what their steps did.

    vLLM calls `logger` once for each engine, and `record` of what it returns after each step.
    """

    def __init__(self, observe: Observe) -> None:
        self.observe = observe
        self.num_blocks = 0
        self.latest: dict[int, Any] = {}

    @property
    def state(self) -> DecoderStats:
        engines = list(self.latest.values())
        share_held = sum(engine.kv_cache_usage for engine in engines) / max(1, len(engines))
        return DecoderStats(
            num_active=sum(engine.num_running_reqs for engine in engines),
            num_waiting=sum(engine.num_waiting_reqs for engine in engines),
            num_held_blocks=round(share_held * self.num_blocks),
            num_blocks=self.num_blocks,
        )

    def logger(self, vllm_config: Any, engine_index: int = 0) -> "StepLogger":
        return StepLogger(self)


class StepLogger:
    """A stat logger for vLLM: the methods that it calls, without its base class."""

    def __init__(self, stats: EngineStats) -> None:
        self.stats = stats

    def log_engine_initialized(self) -> None:
        """Say nothing: Triton tells when a model is ready."""

    def log(self) -> None:
        """Say nothing: the metrics tell."""

    def record(self, scheduler_stats: Any, iteration_stats: Any, **others: Any) -> None:
        """Take the figures of one step of the engine."""
        engine_index = others.get("engine_idx", 0)
        step = DecoderStats()
        if scheduler_stats is not None:
            self.stats.latest[engine_index] = scheduler_stats
        if iteration_stats is not None:
            step.num_preempted = iteration_stats.num_preempted_reqs
            prompts = iteration_stats.prompt_token_stats
            step.num_computed_slots = prompts.computed + iteration_stats.num_generation_tokens
            step.num_reused_slots = prompts.cached_tokens
        self.stats.observe(step)
