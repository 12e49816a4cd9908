"""Last step of the ensemble: mixed prompt → streamed answer, by the decoder that the model's parameters name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refrag.config import RefragConfig
from refrag.decoders import DECODERS
from refrag.decoders.base import (
    ChunksToSense,
    DecoderBackend,
    DecoderRequest,
    MixedPrompt,
    Observe,
    Sink,
    check_prompt,
    check_sensed,
    end_requests,
    shows_attention,
)
from refrag.errors import CheckpointError, InvalidRequest, SetupError
from refrag.machine.allocator import keep_freed_memory
from refrag.policies import POLICIES
from refrag.serving.callers import Callers
from refrag.serving.decoder_metrics import DecoderMetrics
from refrag.serving.decoder_request import RequestDefaults, read_request
from refrag.serving.evidence import read_evidence
from refrag.serving.parameters import parse_parameters, refuse_unknown, split_parameters
from refrag.serving.responses import PASS_THROUGH, RETRIEVED, CollectingSink, Statistics, StreamingSink
from refrag.serving.shadow_metrics import ShadowMetrics
from refrag.serving.shadowing import Shadow, Shadowing
from refrag.serving.stopping import StopFile
from refrag.serving.tensors import Tensors, flag, int32, integer, text
from refrag.serving.triton import ResponseStream, check_parameters, close_metrics, tensors_of


@dataclass(frozen=True)
class DecoderSettings(RequestDefaults):
    """Settings that all decoders share: the defaults of requests, and

    decoder_backend: which decoder answers; the model's other parameters are its own.
    """

    decoder_backend: str = "torch"


class DecoderService:
    """The service behind the model `decoder`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, parameters: Mapping[str, str], inputs: Sequence[str]) -> None:
        self.inputs, self.callers = inputs, Callers()
        keep_freed_memory()
        self.metrics = DecoderMetrics()
        self.settings, self.backend = open_decoder(checkpoint, parameters, self.metrics.observe)
        self.metrics.publish(self.backend.stats)
        self.shadow_metrics = ShadowMetrics()
        self.shadowing = Shadowing(self.backend, self.shadow_metrics)
        self.stop_file = StopFile(self._cut_answers)

    def accept(self, request: Any) -> None:
        """Queue the request, or act on a stop, and return at once; the decoder sends the responses.

        Any error goes into the request's stream.
        """
        stream = ResponseStream(request)
        try:
            check_parameters(request, self.inputs)
            request_id, inputs = request.request_id(), tensors_of(request)
            if flag(inputs, "stop", default=False):
                if self.callers.may_stop(request_id, stream.caller):
                    self.backend.stop(request_id)
                stream.close()
            else:
                self._submit(request_id, inputs, stream)
                self.callers.add(request_id, stream)
        except Exception as error:
            stream.fail(error)

    def close(self) -> None:
        # The metrics read the decoder.
        self.metrics.close()
        self.shadowing.close()
        self.shadow_metrics.close()
        self.stop_file.close()
        self.backend.close()
        close_metrics()

    def _cut_answers(self) -> int:
        """End every request, and return how many there were."""
        stats = self.backend.stats()
        self.shadowing.close()
        end_requests(self.backend)
        return stats.num_active + stats.num_waiting

    def _refuse_unsensed(self, chunks: ChunksToSense) -> None:
        if not shows_attention(self.backend):
            raise InvalidRequest(
                f"policy {chunks.policy!r} needs the decoder's attention, which decoder "
                f"{self.settings.decoder_backend!r} does not show; name another policy"
            )

    def _submit(self, request_id: str, inputs: Tensors, stream: ResponseStream) -> None:
        request = read_request(request_id, inputs, self.settings)
        num_added_slots = 0
        if request.to_sense is not None:
            self._refuse_unsensed(request.to_sense)
            check_sensed(request.prompt, request.to_sense, self.backend.limits)
            num_added_slots = request.to_sense.most_added_slots
        has_context = bool(integer(inputs, "num_chunks"))
        check_prompt(request.prompt, request.sampling, self.backend.limits, has_context, num_added_slots)
        # Copied, as the prompt is: a tensor's memory belongs to its request, which is gone once execute() has returned.
        defaults = {**PASS_THROUGH, **RETRIEVED}
        passed_through = {name: np.array(inputs.get(name, default)) for name, default in defaults.items()}
        evidence = read_evidence(inputs, passed_through["expanded_chunks"])
        statistics = Statistics(passed_through, len(request.prompt.input_ids), evidence)
        sink_type = StreamingSink if flag(inputs, "streaming", default=True) else CollectingSink
        sink = sink_type(stream, statistics, self.metrics.count_unread)
        self.backend.submit(request, self._shadowed(inputs, request, sink))

    def _shadowed(self, inputs: Tensors, request: DecoderRequest, sink: Sink) -> Sink:
        """Return the sink, watched if the request was drawn to be answered a second time."""
        plain_ids = inputs.get("plain_prompt_ids", int32())
        if not plain_ids.size:
            return sink
        plain = MixedPrompt(torch.from_numpy(plain_ids.reshape(-1).astype(np.int64)), torch.zeros(0, 0))
        num_expanded, num_chunks = inputs["expanded_chunks"].size, integer(inputs, "num_chunks") or 1
        policy = text(inputs, "policy") or ""
        # A label of the metrics, whose values must stay few.
        POLICIES.check(policy)
        return self.shadowing.watch(sink, Shadow(request, plain, policy, num_chunks, num_expanded))


def open_decoder(
    checkpoint: Path, parameters: Mapping[str, str], observe: Observe
) -> tuple[DecoderSettings, DecoderBackend]:
    """Return the settings that all decoders share, and the decoder that they name, opened with the other parameters.

    Raises SetupError for an unknown decoder or parameter, and whatever the decoder raises when it cannot be opened.
    """
    common, own = split_parameters(parameters, DecoderSettings)
    settings = parse_parameters(common, DecoderSettings)
    backend_type = DECODERS.find(settings.decoder_backend)
    own_names = [field.name for field in fields(backend_type.settings_type)]
    if shared := sorted({field.name for field in fields(DecoderSettings)}.intersection(own_names)):
        raise SetupError(
            f"decoder {settings.decoder_backend!r} has settings {shared}, which all decoders share; rename"
        )
    refuse_unknown(parameters, [*own_names, *(field.name for field in fields(DecoderSettings))])
    refuse_default(checkpoint, settings.decoder_backend, backend_type)
    return settings, backend_type(checkpoint, parse_parameters(own, backend_type.settings_type), observe)


def refuse_default(checkpoint: Path, name: str, backend_type: type[DecoderBackend]) -> None:
    """Raise CheckpointError if the default policy needs the attention of a decoder that does not show it."""
    policy = RefragConfig.load(checkpoint).policy
    if POLICIES.find(policy).needs == "attention" and not shows_attention(backend_type):
        raise CheckpointError(
            f"the default policy {policy!r} in refrag.json needs the decoder's attention, which decoder {name!r} does "
            "not show; name another default, or another decoder"
        )
