"""One answer on its way from Triton to the caller, whole or in parts."""

from collections.abc import AsyncGenerator, AsyncIterator

from refrag_client.answer import Answer, Piece
from refrag_client.async_client import AsyncRefragClient
from refrag_client.openai.answers import Form, Json
from refrag_client.openai.metrics import Metrics
from refrag_client.openai.translate import Ask
from refrag_client.request import GenerateOptions


class Generation:
    """Asks once, with `begin` or `whole`; leaving either, or the events, stops the decoder."""

    def __init__(self, ask: Ask, form: Form, client: AsyncRefragClient, metrics: Metrics) -> None:
        self.ask, self.form, self.client, self.metrics = ask, form, client, metrics

    async def whole(self) -> Json:
        """Return the object of the whole answer."""
        await self.begin()
        async with self._stream:
            pieces = [piece async for piece in self._pieces()]
        return self.form.whole(self.ask, pieces, self._finish())

    async def begin(self) -> None:
        """Ask, and return once the first piece is there: until then an error can still have a status."""
        options: GenerateOptions = {**self.ask.options, "request_id": self.form.request_id}
        self._stream = self.client.stream(self.ask.question, self.ask.passages, **options)
        self._first = await anext(self._stream)

    async def events(self) -> AsyncGenerator[Json, None]:
        """Yield the objects of the answer's parts. The role, and so the first object, comes with the first token.

        Parts that add no text are left out, unless the caller wants their log-probabilities.
        """
        offset, is_first = 0, True
        async with self._stream:
            async for piece in self._pieces():
                if piece.finish_reason:
                    # It goes out with the citations, once the stream has ended in order.
                    last = piece
                elif self._is_worth_sending(piece, is_first):
                    yield self.form.part(self.ask, piece, is_first, offset, None)
                    is_first = False
                    offset += len(piece.text)
        answer = self._finish()
        yield self.form.part(self.ask, last, is_first, offset, answer)
        if self.ask.wants_usage:
            yield self.form.usage_part(answer)

    async def _pieces(self) -> AsyncIterator[Piece]:
        yield self._first
        async for piece in self._stream:
            yield piece

    def _is_worth_sending(self, piece: Piece, is_first: bool) -> bool:
        return bool(piece.text or (piece.token_ids and (is_first or self.ask.wants_log_probs)))

    def _finish(self) -> Answer:
        answer = self._stream.answer
        self.metrics.count_answer(answer)
        return answer
