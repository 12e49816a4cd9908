"""Continuous batching: requests go in, each step computes all that are due, deltas come out. No thread, no network.

A request ends in one of four ways: its answer is complete, it is cancelled, its deadline passes, or its own part of
a step fails. None of these affects another request.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.decoders.base import DecoderStats, MixedPrompt
from refrag.engine.answer import Pick
from refrag.engine.block_pool import BlockPool, clip_runs
from refrag.engine.decode_graphs import DecodeGraphs
from refrag.engine.generation import Generation
from refrag.engine.kv_cache import KVCache, bytes_per_slot
from refrag.engine.linear import FEWEST_ROWS, restore_layout, speed_up_linear
from refrag.engine.prefix import block_keys
from refrag.engine.probe import probe
from refrag.engine.request import EngineRequest, Output
from refrag.engine.runner import Runner
from refrag.engine.scheduler import Part, Scheduler
from refrag.engine.sensing import Senses, Sensing
from refrag.engine.settings import EngineSettings, count_blocks
from refrag.engine.support import layer_shapes, separable_last_layer
from refrag.engine.task import Task
from refrag.errors import DeadlineExceeded, InvalidRequest, Overloaded, RefragError
from refrag.model.decoder import Decoder

log = logging.getLogger(__name__)

NOT_FINITE = (
    "the decoder computed NaN or infinity for this prompt and cannot answer it; look for very large values in "
    "prompt_embedding_table, or load the checkpoint again if other prompts fail too"
)


class Engine:
    """Continuous batching over mixed prompts: `add` requests, and `step` while it `has_work`.

    max_prompt_slots: the decoder's window. clock: seconds, as deadlines and arrivals are given.
    senses: for requests whose chunks it chooses itself; None if there are to be none.
    Raises CheckpointError for a decoder that it cannot run, and SetupError if the KV cache is too small for one prompt.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_slots: int,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        senses: Senses | None = None,
    ) -> None:
        self.settings = settings = settings or EngineSettings()
        self.senses, self.window = senses, max_prompt_slots
        self.tokenizer, self.eos_ids, self.clock = tokenizer, decoder.eos_ids, clock
        if decoder.backbone.device.type == "cpu":
            _speed_up(decoder)
        shapes, weight = layer_shapes(decoder, max_prompt_slots), decoder.token_embeddings.weight
        # Recorded passes are padded with rows that use the last block, so no request may have it.
        num_padding = 1 if weight.is_cuda else 0
        num_blocks = count_blocks(settings, bytes_per_slot(shapes, weight.dtype), max_prompt_slots, num_padding)
        cache = KVCache(shapes, num_blocks * settings.block_size, weight.dtype, weight.device)
        graphs = _record_graphs(decoder, cache, settings) if weight.is_cuda else None
        # Heads of the last layer look from rows that it would not be computed for.
        reads_last = senses is not None and len(shapes) - 1 in senses.heads.by_layer
        self.runner = Runner(decoder, cache, graphs, None if reads_last else separable_last_layer(decoder, shapes))
        self.pool = BlockPool(num_blocks if graphs is None else num_blocks - num_padding, settings.block_size)
        self.scheduler: Scheduler[Task] = Scheduler(
            self.pool, settings.max_active, settings.max_step_slots, settings.max_whole_slots
        )
        self.tasks: dict[EngineRequest, Task] = {}
        self.num_added = 0
        self.stats = DecoderStats(num_blocks=self.pool.num_blocks)

    @property
    def has_work(self) -> bool:
        return bool(self.tasks)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place, without those of the background."""
        return sum(not task.is_background for task in self.scheduler.waiting)

    def check(self, request: EngineRequest, num_ahead: int = 0) -> None:
        """Raise InvalidRequest if the prompt is empty, or window or KV cache could not hold the request even alone.

        Raise Overloaded if too many requests wait, counting `num_ahead` that are still to be added before this one.
        """
        if len(request.prompt.input_ids) == 0:
            raise InvalidRequest("the prompt has no slots; send at least a question")
        if request.to_sense is not None and self.senses is not None:
            self.senses.check_window(request.prompt, self.runner.decoder.vocab_size, self.window)
        num_needed, num_slots = self._count_slots(request), self.pool.num_blocks * self.pool.block_size
        if num_needed > num_slots:
            raise InvalidRequest(
                f"prompt and max_tokens need {num_needed} slots, the KV cache holds {num_slots}; send fewer "
                "passages, lower expand_fraction, max_prompt_slots or max_tokens, or have kv_cache_mib raised"
            )
        num_waiting, limit = self.num_waiting + num_ahead, self.settings.max_waiting
        if num_waiting >= limit:
            raise Overloaded(
                f"{num_waiting} requests wait for the decoder, the limit is {limit}; try again later or add replicas"
            )

    def add(self, request: EngineRequest) -> None:
        """Queue the request, or raise InvalidRequest or Overloaded as `check` does."""
        self.check(request)
        self.num_added += 1
        sensing = self._begin_sensing(request)
        prompt = request.prompt if sensing is None else sensing.current.prompt
        task = Task(
            number=self.num_added,
            num_slots=len(prompt.input_ids),
            max_slots=self._count_slots(request),
            keys=request.keys if sensing is None else sensing.keys(self.pool.block_size),
            priority=request.priority,
            is_background=request.is_background,
            request=request,
            generation=Generation(self.tokenizer, self.eos_ids, request.sampling, request.choose),
            prompt=prompt,
            sensing=sensing,
        )
        self.scheduler.add(task)
        self.tasks[request] = task

    def cancel(self, request: EngineRequest) -> None:
        """Forget the request, so that it has no further output. One that has ended is ignored."""
        task = self.tasks.pop(request, None)
        if task is not None:
            self.scheduler.remove(task)

    def step(self) -> list[Output]:
        """Compute the parts that are due, and return the deltas they gave and the errors that ended requests."""
        self.stats = DecoderStats(num_blocks=self.pool.num_blocks)
        outputs = self._end_overdue()
        parts = self.scheduler.schedule()
        self._note_admitted()
        for computed, logits in self._compute(parts, outputs):
            outputs += self._advance(computed, logits)
        self._note_state(parts)
        return outputs

    def check_integrity(self) -> None:
        """Raise AssertionError unless every request and every block is accounted for."""
        known = {*self.scheduler.waiting, *self.scheduler.active}
        assert known == set(self.tasks.values()), f"{len(known)} scheduled != {len(self.tasks)} requests"
        self.scheduler.check_integrity()

    def _count_slots(self, request: EngineRequest) -> int:
        """Return the most slots that the request can need; raise InvalidRequest if it is one that cannot be sensed."""
        if request.to_sense is None:
            return request.max_slots
        if self.senses is None:
            raise InvalidRequest(f"policy {request.to_sense.policy!r} needs the attention of a decoder that shows it")
        return max(request.max_slots, self.senses.max_slots(request, self.window))

    def _begin_sensing(self, request: EngineRequest) -> Sensing | None:
        if request.to_sense is None or self.senses is None:
            return None
        return Sensing(request.prompt, request.to_sense, self.senses, self.runner.decoder.vocab_size, self.window)

    def _end_overdue(self) -> list[Output]:
        now = self.clock()
        overdue = [request for request in self.tasks if now > request.deadline]
        return [self._fail(request, _too_late(request)) for request in overdue]

    def _compute(self, parts: List[Part[Task]], outputs: list[Output]) -> Iterator[tuple[List[Part[Task]], Tensor]]:
        """Yield the parts with their logits (S, V), all from one pass.

        If the pass fails, each part gets a pass of its own, so that only requests at fault end: in `outputs`.
        """
        if not parts:
            return
        try:
            logits = self.runner.run([part.sequence.segment(part.start, part.stop) for part in parts])
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    yield from self._compute([part], outputs)
            else:
                log.exception("a decoding step failed")
                outputs.append(self._fail(parts[0].sequence.request, RefragError(f"the decoder failed: {error}")))
            return
        yield parts, logits

    def _advance(self, parts: List[Part[Task]], logits: Tensor) -> Iterator[Output]:
        """Record the parts as computed, and yield the next delta of each request with no slot left.  (S, V)"""
        highest, likeliest = logits.max(-1)
        for part, row, value, token_id in zip(parts, logits, highest.tolist(), likeliest.tolist(), strict=True):
            task = part.sequence
            if not math.isfinite(value):
                # Not completed, so that no other request finds these slots and reuses them; and cleared for whoever
                # gets their blocks next: what a mask hides is still multiplied, and 0 times NaN is NaN.
                self.runner.cache.clear(clip_runs(task.runs, part.start, part.stop))
                yield self._fail(task.request, RefragError(NOT_FINITE))
                continue
            self.scheduler.complete(part)
            if task.sensing is not None:
                task.sensing.current.take(part.stop)
            if not part.completes:
                continue
            try:
                if task.sensing is not None:
                    yield from self._sense_on(task, task.sensing, token_id)
                    continue
                greedy = task.generation.takes_likeliest
                yield self._extend(task, Pick(token_id) if greedy else task.generation.pick(row))
            except Exception as error:
                log.exception("a token could not be chosen")
                yield self._fail(task.request, RefragError(f"the decoder failed: {error}"))

    def _sense_on(self, task: Task, sensing: Sensing, token_id: int) -> Iterator[Output]:
        """Set what is to be computed next, before the answer begins; yield the choice of chunks once it is made."""
        if sensing.reads_on(token_id, self.eos_ids):
            task.num_slots += 1
        elif sensing.current is sensing.null:
            sensing.current = sensing.question
            self._restart(task, sensing.question.prompt, task.keys)
        else:
            choice = sensing.choose()
            task.sensing = None
            keys = block_keys(choice.prompt, self.pool.block_size, self.runner.decoder.vocab_size)
            self._restart(task, choice.prompt, keys)
            self._note_choice(task)
            yield Output(task.request, choice=choice)

    def _restart(self, task: Task, prompt: MixedPrompt, keys: List[bytes]) -> None:
        task.prompt, task.num_slots, task.keys = prompt, len(prompt.input_ids), keys
        self.scheduler.restart(task)

    def _extend(self, task: Task, pick: Pick) -> Output:
        delta = task.generation.extend(pick)
        if not task.is_background:
            self._note_token(task, len(delta.token_ids))
        if delta.finish_reason is None:
            task.num_slots += 1
        else:
            self.cancel(task.request)
        return Output(task.request, delta)

    def _fail(self, request: EngineRequest, error: RefragError) -> Output:
        self.cancel(request)
        return Output(request, error=error)

    def _note_admitted(self) -> None:
        now = self.clock()
        for task in self.scheduler.active:
            if task.admitted_at is None and not task.is_background:
                task.admitted_at = now
                self.stats.queue_seconds.append(now - task.request.arrival)

    def _note_choice(self, task: Task) -> None:
        if task.admitted_at is not None:
            self.stats.sensing_seconds.append(self.clock() - task.admitted_at)

    def _note_token(self, task: Task, count: int) -> None:
        now = self.clock()
        if task.token_at is None:
            self.stats.ttft_seconds.append(now - task.request.arrival)
        else:
            self.stats.inter_token_seconds.append(now - task.token_at)
        task.token_at = now
        self.stats.num_tokens += count

    def _note_state(self, parts: List[Part[Task]]) -> None:
        self.stats.num_active = sum(not task.is_background for task in self.scheduler.active)
        self.stats.num_waiting = self.num_waiting
        self.stats.num_held_blocks = self.pool.num_blocks - self.pool.num_available
        self.stats.num_computed_slots = sum(part.stop - part.start for part in parts)
        self.stats.num_preempted, self.scheduler.num_preempted = self.scheduler.num_preempted, 0
        self.stats.num_reused_slots, self.scheduler.num_reused_slots = self.scheduler.num_reused_slots, 0


@torch.inference_mode()
def _speed_up(decoder: Decoder) -> None:
    speed_up_linear(decoder.backbone)
    try:
        decoder.read(decoder.token_embeddings.weight[:1].expand(1, FEWEST_ROWS, -1))
    except Exception:
        restore_layout(decoder.backbone)


def _record_graphs(decoder: Decoder, cache: KVCache, settings: EngineSettings) -> DecodeGraphs | None:
    """Return CUDA graphs of the decoding pass, or None if recording fails or gives other logits.

    With None, decoding steps launch kernel by kernel and are slower.
    """
    try:
        graphs = DecodeGraphs(decoder, cache, settings.block_size, settings.max_active)
        probe(Runner(decoder, cache, graphs), settings.block_size)
        return graphs
    except Exception as error:
        log.warning("decoding steps are not recorded as CUDA graphs and will be slower: %s", error)
        return None


def _too_late(request: EngineRequest) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the deadline of request {request.request_id!r} passed; raise deadline_ms, or ask for fewer tokens"
    )
