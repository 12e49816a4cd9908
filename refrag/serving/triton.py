"""The one module that knows pb_utils: requests in, responses out, errors translated."""

import json
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import triton_python_backend_utils as pb_utils

from refrag.errors import RefragError, error_from_model
from refrag.machine.crashes import tell_of_crashes
from refrag.serving.parameters import Settings, parse_parameters
from refrag.serving.request_parameters import refuse_unknown
from refrag.serving.tensors import Tensors
from refrag.variables import refuse_misspelt

# Here, since every model imports this first.
tell_of_crashes()

MetricKind = Literal["COUNTER", "GAUGE", "HISTOGRAM"]
# A correlation id; 0 and "" name nobody.
Caller = int | str
NOBODY: Caller = 0
# Upper half of the correlation ids of relays. Triton's Python backend loses an error that comes to a relay after other
# responses, and the relay would wait for ever. So a step that sees such an id sends a response instead, with the finish
# reason FAILED and the error's JSON form as text.
RELAY_MARK = 0x5EF4A617
FAILED = "error"

CANCELLATION_CHECK_SECONDS = 0.1


def version_folder(args: Mapping[str, str]) -> Path:
    """Return the folder of the model version that is being loaded."""
    return Path(args["model_repository"]) / args["model_version"]


def parameters_from(args: Mapping[str, str]) -> dict[str, str]:
    """Return the `parameters` of the model's config.pbtxt by name."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in parameters.items()}


def settings_from(args: Mapping[str, str], cls: type[Settings]) -> Settings:
    """Return the frozen dataclass `cls` filled from the model's parameters; raise SetupError for one that it lacks."""
    return parse_parameters(parameters_from(args), cls)


def check_environment() -> None:
    """Raise SetupError for a misspelt variable of ours; tell the log of those that nothing reads."""
    if unread := refuse_misspelt():
        pb_utils.Logger.log_warn(f"nothing reads the environment variables {', '.join(unread)}")


def log_info(message: str) -> None:
    pb_utils.Logger.log_info(message)


def input_names(args: Mapping[str, str]) -> list[str]:
    """Return the inputs that the model's config.pbtxt declares."""
    return [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]


def check_parameters(request: Any, inputs: Iterable[str]) -> None:
    """Raise InvalidRequest if the request carries a parameter that nothing reads; `inputs` are the names to suggest."""
    refuse_unknown(json.loads(request.parameters() or "{}"), inputs)


def tensors_of(request: Any) -> dict[str, np.ndarray]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def response_of(tensors: Tensors) -> Any:
    return pb_utils.InferenceResponse([_tensor(name, value) for name, value in tensors.items()])


def _tensor(name: str, value: Any) -> Any:
    """Return the tensor of a NumPy array, or of a torch tensor whose type NumPy lacks."""
    return pb_utils.Tensor(name, value) if isinstance(value, np.ndarray) else pb_utils.Tensor.from_dlpack(name, value)


def infer(model: str, inputs: Tensors, outputs: Sequence[str]) -> list[np.ndarray]:
    """Return the named outputs of another model of this server; raise its own error if it fails."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    )
    response = request.exec()
    if response.has_error():
        raise error_from_model(model, response.error().message())
    return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs]


def send_stop(decoder: str, request_id: str, caller: Caller = NOBODY, besides: Tensors | None = None) -> None:
    """Tell the decoder to end the request of that id.

    caller: whose request is meant; the same id in another's hands is left alone.
    besides: inputs that the decoder wants of every request, by which one sees that each has a dimension for the batch.
    """
    stop = np.array([True] if besides is None else [[True]])
    for _ in _ask(decoder, request_id, caller, {"stop": stop, **(besides or {})}):
        pass


def tell(model: str, request_id: str, caller: Caller, inputs: Tensors) -> None:
    """Send a message to a streaming model of this server that answers nothing; raise the error that it raises."""
    for response in _ask(model, request_id, caller, inputs):
        if response.has_error():
            raise error_from_model(model, response.error().message())


def _ask(model: str, request_id: str, caller: Caller, inputs: Tensors) -> Any:
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[],
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
        request_id=request_id,
        correlation_id=caller,
    )
    return request.exec(decoupled=True)


class Relay:
    """A request to a streaming model of this server, made of a request to another with the same inputs and outputs.

    caller: a number of its own, by which a stop for this request is told from one for another with the same id.
    """

    def __init__(self, request: Any, model: str, request_id: str) -> None:
        self.model, self.request_id = model, request_id
        self.caller = RELAY_MARK << 32 | secrets.randbits(32)
        # Copied: a tensor's memory belongs to its request, which is gone once execute() has returned.
        inputs = [pb_utils.Tensor(name, np.array(value)) for name, value in tensors_of(request).items()]
        self._request = pb_utils.InferenceRequest(
            model_name=model,
            requested_output_names=list({*request.requested_output_names(), "finish_reason", "text_output"}),
            inputs=inputs,
            request_id=request_id,
            correlation_id=self.caller,
            parameters=json.loads(request.parameters() or "{}"),
        )

    def run(self, stream: "ResponseStream") -> None:
        """Send the request, and every response and error on, as it comes; returns when the stream is closed."""
        for response in self._request.exec(decoupled=True):
            if message := _failure_of(response):
                stream.fail(error_from_model(self.model, message))
            else:
                stream.pass_on(response)
        stream.close()


def _failure_of(response: Any) -> str | None:
    """Return the JSON form of the error that a step has sent as a response, or None."""
    if response.has_error() or not response.output_tensors():
        return None
    reason, text = (pb_utils.get_output_tensor_by_name(response, name) for name in ("finish_reason", "text_output"))
    return text.as_numpy()[0].decode() if reason.as_numpy()[0].decode() == FAILED else None


def error_response(error: Exception) -> Any:
    """Return the error in the form that clients parse; log an unforeseen one with its traceback."""
    if not isinstance(error, RefragError):
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        error = RefragError(f"{type(error).__name__}: {error}; the server's log has the details")
    code = getattr(pb_utils.TritonError, error.triton_code)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.to_wire(), code))


def reply_to_each(requests: Sequence[Any], handle: Callable[[Tensors], Tensors], inputs: Iterable[str]) -> list[Any]:
    """Return one response per request; a bad request never disturbs its neighbours.

    inputs: what callers can send; a request that carries anything else beside its tensors is refused.
    """
    return [_reply(request, handle, inputs) for request in requests]


class ResponseStream:
    """The responses of one decoupled request; the final flag is sent exactly once, and nothing after it.

    One thread sends; another may ask whether the caller is gone.
    """

    def __init__(self, request: Any) -> None:
        self.sender = request.get_response_sender()
        self.caller: Caller = request.correlation_id()
        self.closed = False
        # With the final flag Triton frees what `is_cancelled` asks.
        self.ending = threading.Lock()
        self.cancellation_checked = time.monotonic()

    def send(self, tensors: Tensors) -> None:
        self.sender.send(response_of(tensors))

    def finish(self, tensors: Tensors) -> None:
        self._send_final(response_of(tensors))

    def fail(self, error: Exception) -> None:
        self._send_final(error_response(error))

    def pass_on(self, response: Any) -> None:
        """Send another model's response on; its error ends the stream, and its empty last one is left to `close`."""
        if response.has_error():
            error = response.error()
            copy = pb_utils.TritonError(error.message(), error.code())
            self._send_final(pb_utils.InferenceResponse(error=copy))
        elif response.output_tensors():
            self.sender.send(pb_utils.InferenceResponse(response.output_tensors()))

    def close(self) -> None:
        """End the stream without a further response."""
        with self.ending:
            if not self.closed:
                self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                self.closed = True

    @property
    def is_relayed(self) -> bool:
        return isinstance(self.caller, int) and self.caller >> 32 == RELAY_MARK

    def is_cancelled(self) -> bool:
        """Return whether Triton knows that the caller is gone; asked rarely, since each check is a round trip."""
        now = time.monotonic()
        if now - self.cancellation_checked < CANCELLATION_CHECK_SECONDS:
            return False
        self.cancellation_checked = now
        with self.ending:
            return not self.closed and self.sender.is_cancelled()

    def _send_final(self, response: Any) -> None:
        # A sender must not be used after its final flag; if sending that flag failed, it may try again.
        with self.ending:
            if not self.closed:
                self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                self.closed = True


class Metric:
    """One metric of this model among Triton's own. Each call is a round trip to the server.

    The process's service ends them all with `close_metrics`.
    """

    def __init__(
        self,
        kind: MetricKind,
        name: str,
        description: str,
        buckets: Sequence[float] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        family_kind = getattr(pb_utils.MetricFamily, kind)
        self.family = pb_utils.MetricFamily(name=name, description=description, kind=family_kind)
        options = {"buckets": list(buckets)} if kind == "HISTOGRAM" else {}
        self.metric = self.family.Metric(labels=dict(labels or {}), **options)
        _opened_metrics.append(self)

    def add(self, amount: float) -> None:
        self.metric.increment(amount)

    def set(self, value: float) -> None:
        self.metric.set(value)

    def observe(self, value: float) -> None:
        self.metric.observe(value)


_opened_metrics: list[Metric] = []


def close_metrics() -> None:
    """End all metrics of this process, as the last thing that its service does.

    Triton's stub crashes at the end of the process if any is left until then.
    """
    while _opened_metrics:
        metric = _opened_metrics.pop()
        del metric.metric, metric.family


def _reply(request: Any, handle: Callable[[Tensors], Tensors], inputs: Iterable[str]) -> Any:
    try:
        check_parameters(request, inputs)
        return response_of(handle(tensors_of(request)))
    except Exception as error:
        return error_response(error)
