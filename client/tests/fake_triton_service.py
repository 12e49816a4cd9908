"""A Triton gRPC service without models: `reply` decides what the model `refrag` answers.

A reply is a function from (fake, request) to an iterator of responses; the model `decoder` only notes
who was stopped. So every test runs over a real socket, and none needs a server.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

WAIT_SECONDS = 10
WORDS = ("Ada", " built", " it.")

Response = service_pb2.ModelStreamInferResponse
Reply = Callable[["FakeTriton", service_pb2.ModelInferRequest], Iterator[Response]]


class StoreError(Exception):
    """An error of the fake store; `type` is the name of a RefragError."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.reply: Reply = answer_in_pieces
        self.is_model_ready = True
        self.models = {"refrag"}
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.stopped_ids: list[str] = []
        self.metadata: dict[str, str] = {}
        self.store: Callable[[str, dict[str, np.ndarray]], tuple[dict, dict[str, np.ndarray]]] | None = None
        self._stopped = threading.Condition()
        self._asked = threading.Condition()
        self._released = threading.Event()

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=self.is_model_ready and request.name in self.models)

    def ModelStreamInfer(self, request_iterator, context):
        request = next(request_iterator)
        self.metadata = dict(context.invocation_metadata())
        if request.model_name == "decoder":
            assert bool(read_inputs(request)["stop"][0])
            with self._stopped:
                self.stopped_ids.append(request.id)
                self._stopped.notify_all()
            yield final_response()
        else:
            with self._asked:
                self.requests.append(request)
                self._asked.notify_all()
            yield from self.reply(self, request)

    def ModelInfer(self, request, context):
        """Answer for the model `chunk_store` by calling `store`: (operation, inputs) → result and further outputs."""
        inputs = read_inputs(request)
        self.metadata = dict(context.invocation_metadata())
        try:
            result, outputs = self.store(inputs["operation"][0].decode(), inputs)
        except StoreError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, json.dumps({"type": error.type, "message": str(error)}))
        response = service_pb2.ModelInferResponse()
        defaults = {
            "next_cursor": np.zeros(0, np.uint8),
            "chunk_spans": np.zeros((0, 3), np.int32),
            "chunk_vectors": np.zeros((0, 0), np.float16),
        }
        _add_output(response, "result", [json.dumps(result)])
        for name, array in {**defaults, **outputs}.items():
            response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    def wait_for_requests(self, count: int) -> None:
        """Return once so many requests have come in all."""
        with self._asked:
            assert self._asked.wait_for(lambda: len(self.requests) >= count, WAIT_SECONDS), "nobody asked"

    def release(self) -> None:
        """Let `answer_when_released` go on."""
        self._released.set()

    def wait_for_release(self) -> None:
        assert self._released.wait(WAIT_SECONDS), "nobody released it"

    def wait_for_stop(self, request_id: str) -> None:
        with self._stopped:
            assert self._stopped.wait_for(lambda: request_id in self.stopped_ids, WAIT_SECONDS), "nobody sent stop"


def answer_in_pieces(fake, request):
    for index, word in enumerate(WORDS):
        yield piece_response(word, index, "stop" if index == len(WORDS) - 1 else "")
    yield final_response()


def answer_over_passages(fake, request):
    """Cite all passages but every second one, in two spans each."""
    count = len(read_inputs(request).get("passages", ()))
    spans = tuple((number, *place) for number in range(0, count, 2) for place in ((0, 3), (4, 9)))
    for index, word in enumerate(WORDS):
        reason = "stop" if index == len(WORDS) - 1 else ""
        yield piece_response(word, index, reason, spans, (1 / count,) * count if count else ())
    yield final_response()


def answer_with_final_flag_on_data(fake, request):
    yield piece_response("Ada", 0)
    yield final_response(piece_response(" built it.", 1, "length"))


def answer_until_stopped(fake, request):
    yield piece_response("Ada", 0)
    fake.wait_for_stop(request.id)
    yield error_response("Cancelled", "the request was stopped")


def answer_when_released(fake, request):
    yield piece_response("Ada", 0)
    fake.wait_for_release()
    yield piece_response(" built it.", 1, "stop", citations=(), weights=())
    yield final_response()


def answer_nothing_until_stopped(fake, request):
    fake.wait_for_stop(request.id)
    yield error_response("Cancelled", "the request was stopped")


def interrupt_the_caller(fake, request):
    yield piece_response("Ada", 0)
    interrupt_the_main_thread()
    yield from answer_nothing_until_stopped(fake, request)


def interrupt_the_main_thread() -> None:
    # A signal, as the keyboard sends it: only that wakes a thread that waits in C.
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def answer_with_question(fake, request):
    yield piece_response(read_inputs(request)["text_input"][0].decode(), 0, "stop")
    yield final_response()


def answer_with(**outputs: list | np.ndarray) -> Reply:
    def reply(fake, request):
        yield piece_response("Ada.", 0, "stop", **outputs)
        yield final_response()

    return reply


def encode_in_two_chunks(operation, inputs):
    """Cut each text into two chunks, the first three characters and the rest, and an empty one into none."""
    texts = inputs["passages"]
    spans = [[number, *place] for number, text in enumerate(texts) if text for place in ((0, 3), (3, len(text)))]
    outputs = {"chunk_spans": np.array(spans, np.int32).reshape(-1, 3)}
    if operation == "encode":
        outputs["chunk_vectors"] = np.tile(np.array([[3, 0], [0, 1]], np.float16), (len(spans) // 2, 1))
    return {"num_tokens": 5, "num_chunks": len(spans)}, outputs


def fail_with(message: str) -> Reply:
    def reply(fake, request):
        yield Response(error_message=message)

    return reply


def piece_response(
    text: str,
    index: int,
    finish_reason: str = "",
    citations: tuple = ((1, 4, 9),),
    weights: tuple = (0.25, 0.75),
    **others: list | np.ndarray,
) -> Response:
    """Return a piece; `others` are outputs that differ from the usual ones."""
    response = Response()
    outputs = {
        "text_output": [text],
        "token_ids": [100 + index],
        "token_log_probs": [-0.5],
        "index": [index],
        "finish_reason": [finish_reason],
        "context_tokens": [64],
        "num_chunks": [4],
        "num_stored_chunks": [3],
        "num_expanded_chunks": [1],
        "prompt_slots": [27],
        "num_output_tokens": [index + 1],
        "num_cut_turns": [0],
        "chunk_budget": [1],
        "expanded_chunks": [2],
        "citations": np.array(citations if finish_reason else (), np.int32).reshape(-1, 3),
        "passage_weights": np.array(weights if finish_reason else (), np.float32),
    }
    for name, values in {**outputs, **others}.items():
        _add_output(response.infer_response, name, values)
    return response


def final_response(response: Response | None = None) -> Response:
    response = response or Response()
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response


def error_response(name: str, message: str) -> Response:
    return Response(error_message="in ensemble 'refrag', " + json.dumps({"type": name, "message": message}))


def read_inputs(request: service_pb2.ModelInferRequest) -> dict[str, np.ndarray]:
    arrays = {}
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        arrays[tensor.name] = _read_content(tensor.datatype, content).reshape(tuple(tensor.shape))
    return arrays


def start(fake: FakeTriton, port: int = 0) -> tuple[grpc.Server, str]:
    """Start a server, at any free port unless one is given; return it and its URL."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=48))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, f"127.0.0.1:{port}"


def _read_content(datatype: str, content: bytes) -> np.ndarray:
    if datatype == "BYTES":
        return deserialize_bytes_tensor(content)
    return np.frombuffer(content, triton_to_np_dtype(datatype))


def _add_output(response: service_pb2.ModelInferResponse, name: str, values: list | np.ndarray) -> None:
    is_text = isinstance(values[0], str) if len(values) else False
    array = np.array([value.encode() for value in values], np.object_) if is_text else np.asarray(values)
    array = array.astype({"i": np.int32, "f": np.float32}.get(array.dtype.kind, np.object_))
    datatype = np_to_triton_dtype(array.dtype)
    response.outputs.add(name=name, datatype=datatype, shape=array.shape)
    response.raw_output_contents.append(serialize_byte_tensor(array).item() if is_text else array.tobytes())
