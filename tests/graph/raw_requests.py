"""Requests made by hand, as other people's tools send them: over HTTP as JSON, over gRPC tensor by tensor."""

import json
import urllib.request

import numpy as np
import tritonclient.grpc as triton

# Far beyond what a busy machine needs: tests wait for events, and this only ends one that waits for ever.
PATIENCE_SECONDS = 600.0
# Of every server that a test starts.
SERVER_OPTIONS = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "ready_timeout_seconds": PATIENCE_SECONDS}


def post(server, endpoint, body, model="refrag"):
    request = urllib.request.Request(
        f"http://{server.http_address}/v2/models/{model}/{endpoint}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)


def events(response):
    return [json.loads(line[len(b"data: ") :]) for line in response if line.startswith(b"data: ")]


def raw_request(server, inputs, model="refrag", **options):
    """Return the responses to hand-made inputs {name: (array, datatype)}; of one that failed, the error's message."""
    results = []
    with triton.InferenceServerClient(server.grpc_address) as raw:
        tensors = []
        for name, (array, datatype) in inputs.items():
            tensors.append(triton.InferInput(name, list(array.shape), datatype))
            tensors[-1].set_data_from_numpy(array)
        raw.start_stream(lambda result, error: results.append(error.message() if error else result))
        raw.async_stream_infer(model, tensors, **options)
        raw.stop_stream()
    return results


def decode(server, prompt, max_tokens):
    """Return the tokens of a prompt that is sent straight to the decoder."""
    [response] = send_prompt(server, prompt, max_tokens)
    assert not isinstance(response, str), response
    return response.as_numpy("token_ids").tolist()


def send_prompt(server, prompt, max_tokens):
    """Return the responses to a prompt that is sent straight to the decoder, or its error's message."""
    inputs = {
        "input_ids": (prompt.input_ids.numpy().astype(np.int32), "INT32"),
        "prompt_embedding_table": (prompt.chunk_embeddings.numpy(), "FP32"),
        "request_output_len": (np.array([max_tokens]), "INT64"),
        "streaming": (np.array([False]), "BOOL"),
    }
    return raw_request(server, inputs, model="decoder")


def error_that_ends(stream):
    """Read a stream of a client up to its end, which is an error, and return that."""
    try:
        for _ in stream:
            pass
    except Exception as error:
        return error
    raise AssertionError("an endless answer came to its end")


def as_bytes(*values):
    return np.array(values, dtype=np.object_), "BYTES"
