import threading
from concurrent.futures import ThreadPoolExecutor

import fake_triton_service as service
import grpc
import pytest
from fake_triton_service import Response

from refrag_client import (
    Cancelled,
    Citation,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    RefragClient,
    RefragError,
    ServerError,
    ServerUnavailable,
    Statistics,
)


def test_generate_returns_the_whole_answer(client):
    answer = client.generate("who?", ["a"])
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Ada built it.", (100, 101, 102), "stop")
    assert answer.log_probs == (-0.5, -0.5, -0.5)
    assert answer.statistics == Statistics(64, 4, 3, 1, (2,), 27, 3, 0, 1)
    assert 0 < answer.ttft_seconds <= answer.total_seconds
    assert (answer.citations, answer.passage_weights) == ((Citation(1, 4, 9),), (0.25, 0.75))


def test_streamed_is_unstreamed(client):
    with client.stream("who?") as stream:
        pieces = list(stream)
    assert [piece.index for piece in pieces] == [0, 1, 2]
    assert [piece.finish_reason for piece in pieces] == ["", "", "stop"]
    assert "".join(piece.text for piece in pieces) == stream.answer.text == client.generate("who?").text


def test_the_final_flag_may_come_with_data(client, fake):
    fake.reply = service.answer_with_final_flag_on_data
    assert client.generate("who?").finish_reason == "length"


def test_a_finished_stream_stops_nothing(client, fake):
    client.generate("who?")
    assert fake.stopped_ids == []


def test_the_deadline_follows_the_timeout_unless_given(client, fake):
    client.generate("who?")
    client.generate("who?", deadline_ms=5)
    deadlines = [service.read_inputs(request)["deadline_ms"][0] for request in fake.requests]
    assert deadlines == [1000 * service.WAIT_SECONDS, 5]


def test_break_stops_the_request_of_a_stream_that_nobody_holds(client, fake):
    fake.reply = service.answer_until_stopped
    for piece in client.stream("who?", request_id="mine"):
        assert piece.text == "Ada"
        break
    assert fake.stopped_ids == [fake.requests[0].id] == ["mine"]


def test_a_stream_goes_on_until_it_is_closed(client, fake):
    stream = client.stream("who?")
    pieces = [next(iter(stream))]
    for piece in stream:
        pieces.append(piece)
        break
    pieces += stream
    assert [piece.text for piece in pieces] == list(service.WORDS)
    assert fake.stopped_ids == []
    assert list(stream) == []


def test_a_closed_stream_is_not_read_on(client, fake):
    fake.reply = service.answer_until_stopped
    with client.stream("who?") as stream:
        next(iter(stream))
    assert fake.stopped_ids == [stream.request_id]
    with pytest.raises(Cancelled):
        next(stream)


def test_an_exception_in_the_block_passes_and_stops_the_request(client, fake):
    fake.reply = service.answer_until_stopped
    with pytest.raises(ZeroDivisionError), client.stream("who?") as stream:
        next(stream)
        raise ZeroDivisionError
    assert fake.stopped_ids == [stream.request_id]


def test_cancel_from_another_thread_ends_the_read(client, fake):
    fake.reply = service.answer_nothing_until_stopped
    stream = client.stream("who?")
    thread = threading.Thread(target=stream.cancel)
    with pytest.raises(Cancelled) as caught:
        thread.start()
        next(stream)
    thread.join()
    assert fake.stopped_ids == [stream.request_id] == [caught.value.request_id]


def test_a_timeout_stops_the_request(url, fake):
    fake.reply = service.answer_until_stopped
    with RefragClient(url, timeout_seconds=0.2) as client, pytest.raises(DeadlineExceeded, match="raise timeout"):
        client.generate("who?")
    assert len(fake.stopped_ids) == 1


def test_closing_the_client_stops_open_streams(url, fake):
    fake.reply = service.answer_until_stopped
    with RefragClient(url) as client:
        stream = client.stream("who?")
        next(stream)
    assert fake.stopped_ids == [stream.request_id]


def test_server_errors_are_typed_and_stop_nothing(client, fake):
    fake.reply = lambda fake, request: iter([service.error_response("InvalidRequest", "max_tokens is 0")])
    with pytest.raises(InvalidRequest, match=r"^max_tokens is 0$") as caught:
        client.generate("who?", max_tokens=0)
    assert caught.value.request_id == fake.requests[0].id
    assert fake.stopped_ids == []


def test_an_error_after_the_first_piece_is_raised(client, fake):
    def reply(fake, request):
        yield service.piece_response("Ada", 0)
        yield service.error_response("DeadlineExceeded", "5 ms passed")

    fake.reply = reply
    stream = client.stream("who?")
    assert next(stream).text == "Ada"
    with pytest.raises(DeadlineExceeded, match="5 ms passed"):
        next(stream)
    with pytest.raises(RefragError, match="no whole answer"):
        _ = stream.answer


def test_a_stream_cut_off_is_an_error(client, fake):
    fake.reply = lambda fake, request: iter([service.piece_response("Ada", 0)])
    with pytest.raises(ServerError, match="without a final response"):
        client.generate("who?")


def test_a_stream_without_pieces_is_an_error(client, fake):
    fake.reply = lambda fake, request: iter([service.final_response()])
    with pytest.raises(ServerError, match="before any other"):
        client.generate("who?")


def test_missing_tensors_are_a_server_error(client, fake):
    def reply(fake, request):
        response = service.piece_response("Ada", 0)
        del response.infer_response.outputs[3:]
        yield response

    fake.reply = reply
    stream = client.stream("who?")
    with pytest.raises(ServerError, match="no tensor 'index'"):
        next(stream)
    assert fake.stopped_ids == [stream.request_id]


def test_no_server_is_unavailable():
    with RefragClient("127.0.0.1:1") as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1"):
            client.generate("who?")
        with pytest.raises(ServerUnavailable, match="not ready after 0"):
            client.wait_until_ready(timeout_seconds=0)


class FailedCall(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "recvmsg: Connection reset by peer"


def test_a_connection_that_breaks_says_how_much_had_come(client, fake):
    stream = client.stream("who?")
    next(stream)
    lost = stream._exchange.failure(FailedCall())
    assert isinstance(lost, ConnectionLost)
    assert (lost.num_tokens, lost.request_id, lost.is_retryable) == (1, stream.request_id, True)
    assert "was lost after 1 tokens of the answer: recvmsg" in str(lost)


def test_a_stopping_server_is_unavailable_and_may_be_asked_later(client, fake):
    fake.reply = lambda fake, request: iter(
        [Response(error_message="in ensemble 'refrag', Server is stopping, scheduler has stopped accepting requests")]
    )
    with pytest.raises(ServerUnavailable, match="stopping") as caught:
        client.generate("who?")
    assert caught.value.is_retryable


def test_ready_is_the_models_readiness(client, fake):
    client.wait_until_ready(timeout_seconds=service.WAIT_SECONDS)
    fake.is_model_ready = False
    assert not client.is_ready()


def test_headers_go_with_the_call(url, fake):
    with RefragClient(url, headers={"Authorization": "Bearer x"}) as client:
        client.generate("who?")
    assert fake.metadata["authorization"] == "Bearer x"


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://127.0.0.1:8001"},
        {"url": "triton"},
        {"timeout_seconds": 0},
        {"timeout_seconds": float("inf")},
        {"keepalive_seconds": -1},
        {"max_message_bytes": 0},
        {"headers": {"not a name": "x"}},
        {"headers": {"trace-bin": "x"}},
        {"headers": {"authorization": "Bearer \u20ac"}},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InvalidRequest):
        RefragClient(**settings)


def test_a_limit_of_messages_is_the_clients(url, fake):
    fake.reply = service.answer_with_question
    with RefragClient(url, max_message_bytes=1000) as client:
        assert client.generate("who?").text == "who?"
        with pytest.raises(RefragError, match="1000"):
            client.generate("x" * 2000)


def test_32_threads_share_one_client(client, fake):
    # All requests must be under way at once before any is answered.
    together = threading.Barrier(32, timeout=service.WAIT_SECONDS)

    def reply(fake, request):
        together.wait()
        yield from service.answer_with_question(fake, request)

    fake.reply = reply
    questions = [f"question {number}" for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(client.generate, questions))
    assert [answer.text for answer in answers] == questions


def test_messages_beyond_four_megabytes_come_back(client, fake):
    def reply(fake, request):
        yield service.piece_response("x" * 5_000_000, 0, "stop")
        yield service.final_response()

    fake.reply = reply
    assert len(client.generate("who?").text) == 5_000_000


def test_a_client_survives_interrupts(client, fake):
    fake.reply = service.answer_until_stopped
    for _ in range(10):
        with pytest.raises(KeyboardInterrupt), client.stream("who?") as stream:
            next(stream)
            threading.Thread(target=service.interrupt_the_main_thread).start()
            next(stream)
    fake.reply = service.answer_in_pieces
    assert client.generate("who?").finish_reason == "stop"
    assert fake.stopped_ids == [request.id for request in fake.requests[:10]]
