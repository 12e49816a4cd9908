"""The ONNX Runtime backend's batching, without a server: batched = alone, and a bad request fails alone."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from refrag.embedded.runtime import OWN_BACKENDS, find_wheel

WHEEL = find_wheel()
pytestmark = pytest.mark.skipif(WHEEL is None, reason="nvidia-pytriton, which carries pb_utils, is not installed")

# The stand-in for a signature fails for a row of it.
UNSIGNED = 7


class FakeSession:
    """Doubles its rows and remembers how many came at a time; a negative number is an error."""

    def __init__(self):
        self.nums_rows = []

    def run(self, output_names, feed):
        if (feed["x"] < 0).any():
            raise RuntimeError("a negative number")
        self.nums_rows.append(len(feed["x"]))
        return [feed["x"] * 2]


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.syspath_prepend(WHEEL.root / "backends" / "python")
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", OWN_BACKENDS / "onnxruntime" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def session():
    return FakeSession()


def rows(*numbers: float, width: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.array([[number] * width for number in numbers], np.float32)}


def test_requests_share_one_run_and_get_their_own_rows_back(backend, session):
    feeds = [rows(1), rows(2, 3), rows(4)]
    results = backend.BatchedModel(session, ["y"], has_batches=True, max_rows_per_run=100).run_each(feeds)
    assert session.nums_rows == [4]
    for feed, result in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(result["y"], feed["x"] * 2)


def test_a_large_batch_runs_in_slices(backend, session):
    (result,) = backend.BatchedModel(session, ["y"], True, max_rows_per_run=2).run_each([rows(1, 2, 3, 4, 5)])
    assert session.nums_rows == [2, 2, 1]
    np.testing.assert_array_equal(result["y"], rows(2, 4, 6, 8, 10)["x"])


def test_a_long_request_is_cut_into_pieces_of_one_run_each(backend, session):
    model = backend.BatchedModel(session, ["y"], True, max_rows_per_run=2)
    assert [model.is_short(rows(*range(count))) for count in (1, 2, 3)] == [True, True, False]
    pieces = list(model.cut(rows(1, 2, 3, 4, 5)))
    assert [piece["x"][:, 0].tolist() for piece in pieces] == [[1, 2], [3, 4], [5]]
    assert all(map(model.is_short, pieces))


def test_requests_of_different_widths_run_apart(backend, session):
    feeds = [rows(1), rows(2, width=3), rows(3)]
    results = backend.BatchedModel(session, ["y"], True, 100).run_each(feeds)
    assert sorted(session.nums_rows) == [1, 2]
    assert [result["y"].shape for result in results] == [(1, 2), (1, 3), (1, 2)]


def test_a_bad_request_fails_alone(backend, session):
    first, bad, last = backend.BatchedModel(session, ["y"], True, 100).run_each([rows(1), rows(-1), rows(3)])
    assert str(bad) == "a negative number"
    np.testing.assert_array_equal(first["y"], rows(2)["x"])
    np.testing.assert_array_equal(last["y"], rows(6)["x"])


def test_without_batching_every_request_is_a_run(backend, session):
    results = backend.BatchedModel(session, ["y"], has_batches=False, max_rows_per_run=1).run_each(
        [rows(1, 2), rows(3, 4)]
    )
    assert session.nums_rows == [2, 2]
    assert [result["y"].shape for result in results] == [(2, 2), (2, 2)]


def test_an_output_without_a_row_per_input_row_is_an_error(backend):
    session = SimpleNamespace(run=lambda names, feed: [np.zeros(3, np.float32)])
    (result,) = backend.BatchedModel(session, ["y"], True, 100).run_each([rows(1)])
    assert "max_batch_size: 0" in str(result)


@pytest.fixture
def model(backend, session, monkeypatch):
    """Return a model that runs two rows at a time, and whose responses are what they are made of."""

    def unsigned(feed, result):
        if not isinstance(result, Exception) and (feed["x"] == UNSIGNED).any():
            raise RuntimeError("no signature")
        return result

    monkeypatch.setattr(backend, "to_response", lambda result: result)
    monkeypatch.setattr(backend.pb_utils, "TRITONSERVER_RESPONSE_COMPLETE_FINAL", 1, raising=False)
    monkeypatch.setattr(
        backend.pb_utils,
        "get_input_tensor_by_name",
        lambda request, name: SimpleNamespace(as_numpy=lambda: request.feed[name]),
    )
    model = backend.TritonPythonModel()
    model.name, model.input_names, model.max_row_length = "doubler", ["x"], None
    model.model = backend.BatchedModel(session, ["y"], True, max_rows_per_run=2)
    model.signer = SimpleNamespace(sign=unsigned)
    model.background_seconds = SimpleNamespace(increment=lambda seconds: None)
    model.turns = backend.Turns("test")
    return model


def request_of(feed):
    """Return a request that keeps what is sent for it."""
    sent = []
    sender = SimpleNamespace(send=lambda response, flags: sent.append(response))
    return SimpleNamespace(feed=feed, sent=sent, get_response_sender=lambda: sender)


def test_a_long_request_is_answered_after_its_last_piece(model):
    request = request_of(rows(1, 2, 3))
    assert model.execute([request]) == [None]
    model.finalize()
    [response] = request.sent
    np.testing.assert_array_equal(response["y"], rows(2, 4, 6)["x"])


@pytest.mark.parametrize(
    ("numbers", "message"), [((1, 2, -1), "a negative number"), ((1, 2, UNSIGNED), "no signature")]
)
def test_a_long_request_that_fails_is_answered_with_its_error(model, numbers, message):
    request = request_of(rows(*numbers))
    model.execute([request])
    model.finalize()
    assert [str(response) for response in request.sent] == [message]


def test_a_long_request_whose_pieces_cannot_be_joined_is_answered_with_the_error(model, session):
    session.run = lambda names, feed: [np.zeros((len(feed["x"]), len(feed["x"])))]
    request = request_of(rows(1, 2, 3))
    model.execute([request])
    model.finalize()
    assert "must match exactly" in str(request.sent)


def test_a_short_request_whose_response_fails_leaves_its_neighbours_alone(model):
    first, bad, last = model.execute([request_of(rows(1)), request_of(rows(UNSIGNED)), request_of(rows(3))])
    model.finalize()
    assert str(bad) == "no signature"
    assert [response["y"].tolist() for response in (first, last)] == [[[2, 2]], [[6, 6]]]


def graph_with(shape, kind="tensor(float)"):
    tensor = SimpleNamespace(name="x", shape=shape, type=kind)
    return SimpleNamespace(get_inputs=lambda: [tensor], get_outputs=lambda: [])


def config_with(dims, max_batch_size=8, data_type="TYPE_FP32", name="x"):
    tensor = {"name": name, "data_type": data_type, "dims": dims}
    return {"max_batch_size": max_batch_size, "input": [tensor], "output": []}


@pytest.mark.parametrize(
    ("config", "graph", "message"),
    [
        (config_with([3]), graph_with(["rows", 3], "tensor(int64)"), "write TYPE_INT64"),
        (config_with([3]), graph_with(["rows", 3], "tensor(bfloat16)"), "this one is not served"),
        (config_with([3]), graph_with([1, 3]), "dynamic first dimension"),
        (config_with([4]), graph_with(["rows", 3]), r"\[-1, 4\].*\[-1, 3\]"),
        (config_with([3], max_batch_size=0), graph_with(["rows", 3]), r"\[3\].*\[-1, 3\]"),
        (config_with([3], name="z"), graph_with(["rows", 3]), "names input 'z', which the ONNX model lacks"),
        (
            {"max_batch_size": 8, "input": [], "output": []},
            graph_with(["rows", 3]),
            r"lacks the ONNX model's inputs \['x'\]",
        ),
    ],
)
def test_a_config_that_disagrees_with_the_graph_is_refused(backend, config, graph, message):
    backend.pb_utils.TritonModelException = ValueError
    with pytest.raises(ValueError, match=message):
        backend.check_config(config, graph)


def test_a_config_may_leave_sizes_open(backend):
    backend.check_config(config_with(["-1"]), graph_with(["rows", 3]))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_parameter_that_is_no_number_above_zero_is_refused(backend, text):
    backend.pb_utils.TritonModelException = ValueError
    with pytest.raises(ValueError, match="whole number above 0"):
        backend.int_parameter({"parameters": {"max_rows_per_run": {"string_value": text}}}, "max_rows_per_run", 256)
