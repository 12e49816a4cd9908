import asyncio

import fake_triton_service as service
import pytest

from refrag_client import (
    AsyncRefragClient,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    RefragClient,
    ServerUnavailable,
)


def run(url, use, **settings):
    async def main():
        async with AsyncRefragClient(url, **{"timeout_seconds": service.WAIT_SECONDS, **settings}) as client:
            return await use(client)

    return asyncio.run(main())


def test_async_answers_as_sync_does(url, client):
    async def use(client):
        await client.wait_until_ready(service.WAIT_SECONDS)
        return await client.generate("who?", ["a"])

    answer, sync_answer = run(url, use), client.generate("who?", ["a"])
    assert (answer.text, answer.token_ids, answer.statistics) == (
        sync_answer.text,
        sync_answer.token_ids,
        sync_answer.statistics,
    )
    assert 0 < answer.ttft_seconds <= answer.total_seconds


def test_async_streams_in_order(url):
    async def use(client):
        async with client.stream("who?") as stream:
            return [piece.text async for piece in stream], stream.answer.text

    assert run(url, use) == (list(service.WORDS), "Ada built it.")


def test_many_tasks_share_one_client(url, fake):
    fake.reply = service.answer_with_question

    async def use(client):
        return await asyncio.gather(*(client.generate(str(number)) for number in range(32)))

    assert [answer.text for answer in run(url, use)] == [str(number) for number in range(32)]


def test_leaving_the_block_stops_the_same_request(url, fake):
    fake.reply = service.answer_until_stopped

    async def use(client):
        async with client.stream("who?", request_id="mine") as stream:
            async for _ in stream:
                break

    run(url, use)
    assert fake.stopped_ids == [fake.requests[0].id] == ["mine"]


def test_an_async_stream_goes_on_until_it_is_closed(url, fake):
    async def use(client):
        stream = client.stream("who?")
        pieces = [await anext(aiter(stream))]
        async for piece in stream:
            pieces.append(piece)
            break
        return [*pieces, *[piece async for piece in stream]]

    assert [piece.text for piece in run(url, use)] == list(service.WORDS)
    assert fake.stopped_ids == []


def test_break_stops_the_request_of_an_async_stream_that_nobody_holds(url, fake):
    fake.reply = service.answer_until_stopped

    async def use(client):
        async for _ in client.stream("who?", request_id="mine"):
            break
        await asyncio.to_thread(fake.wait_for_stop, "mine")

    run(url, use)
    assert fake.stopped_ids == ["mine"]


def test_a_cancelled_task_stops_the_request(url, fake):
    fake.reply = service.answer_until_stopped

    async def use(client):
        first_piece = asyncio.Event()

        async def read():
            async for _ in client.stream("who?"):
                first_piece.set()

        task = asyncio.create_task(read())
        arrival = asyncio.create_task(first_piece.wait())
        # A read that fails ends without a piece.
        await asyncio.wait([task, arrival], return_when=asyncio.FIRST_COMPLETED)
        arrival.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(url, use)
    assert fake.stopped_ids == [fake.requests[0].id]


def test_cancel_from_another_task_ends_the_read(url, fake):
    fake.reply = service.answer_until_stopped

    async def use(client):
        stream = client.stream("who?")
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)  # lets the read begin
        await stream.cancel()
        with pytest.raises(Cancelled):
            await reading

    run(url, use)
    assert len(fake.stopped_ids) == 1


def test_an_async_timeout_stops_the_request(url, fake):
    fake.reply = service.answer_until_stopped
    with pytest.raises(DeadlineExceeded):
        run(url, lambda client: client.generate("who?"), timeout_seconds=0.2)
    assert len(fake.stopped_ids) == 1


def test_asyncio_wait_for_stops_the_request(url, fake):
    fake.reply = service.answer_until_stopped
    with pytest.raises(asyncio.TimeoutError):
        run(url, lambda client: asyncio.wait_for(client.generate("who?"), 0.2))
    assert len(fake.stopped_ids) == 1


def test_async_errors_are_typed(url, fake):
    fake.reply = lambda fake, request: iter([service.error_response("InvalidRequest", "no")])
    with pytest.raises(InvalidRequest, match=r"^no$"):
        run(url, lambda client: client.generate("who?"))


def test_async_without_a_server_is_unavailable():
    with pytest.raises(ServerUnavailable):
        run("127.0.0.1:1", lambda client: client.generate("who?"))
    with pytest.raises(ServerUnavailable, match="not ready"):
        run("127.0.0.1:1", lambda client: client.wait_until_ready(0.1))


def test_both_clients_have_the_same_methods():
    def public(client):
        return {name for name in dir(client) if not name.startswith("_")}

    assert public(AsyncRefragClient) == public(RefragClient)
