"""Calls to one model of the ensemble by itself, as anybody can make them who reaches the server's ports."""

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from refrag_client.errors import error_from_message

PREPROCESSED = (
    "input_ids attention_mask stored_vectors vector_rows chunk_token_ids chunk_passages chunk_digests chunk_tags "
    "question_ids expansion_budget resolved_policy selection_seed"
).split()


def texts(*values):
    return np.array([value.encode() for value in values], np.object_)


def call(server, model, inputs):
    """Return the model's outputs by name, or raise the error that our client would."""
    tensors = []
    for name, array in inputs.items():
        datatype = "BYTES" if array.dtype == np.object_ else np_to_triton_dtype(array.dtype)
        tensors.append(triton.InferInput(name, list(array.shape), datatype))
        tensors[-1].set_data_from_numpy(np.ascontiguousarray(array))
    responses = []
    with triton.InferenceServerClient(server.grpc_address) as client:
        # A stream, which every model can be called by; the decoder by nothing else.
        client.start_stream(lambda result, error: responses.append((result, error)))
        client.async_stream_infer(model, tensors)
        client.stop_stream()
    result, error = responses[-1]
    if error is not None:
        raise error_from_message(error.message())
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def prepare(server, passages, question="Who?", fraction=0.0):
    """Return what preprocessing and the encoder make of a request, under the names that expansion_policy has for it."""
    request = {"text_input": texts(question), "passages": texts(*passages)}
    prepared = call(server, "preprocessing", {**request, "expand_fraction": np.array([fraction], np.float32)})
    rows = {name: prepared[name] for name in ("input_ids", "attention_mask")}
    inputs = {name: prepared[name] for name in PREPROCESSED if name not in rows}
    read = {"encoder_ids": rows["input_ids"], "encoder_mask": rows["attention_mask"]}
    return {**inputs, **read, **call(server, "chunk_encoder", rows)}
