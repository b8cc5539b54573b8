"""`/v1/completions` and `/v1/chat/completions`: prompts in, tokens out, whole or as they are made."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from holdfast.serve import bodies
from holdfast.serve.answers import DONE, Answers, Chats, Completions, Gathered, Wish, event
from holdfast.serve.bodies import Chat, Common, Completion
from holdfast.serve.errors import ApiError, bad_value
from holdfast.serve.jobs import Job, Piece, Sequence
from holdfast.serve.sampling import Sampling
from holdfast.serve.server import Server


def routes(server: Server) -> list[Route]:
    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": _cards(server)})

    async def completions(request: Request) -> Response:
        raw = await bodies.read_json(request)
        bodies.refuse_unsupported(raw)
        return await _complete(server, request, bodies.convert(raw, Completion))

    async def chat(request: Request) -> Response:
        raw = await bodies.read_json(request)
        bodies.refuse_unsupported(raw)
        return await _chat(server, request, bodies.convert(raw, Chat))

    return [
        Route("/v1/models", models),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]


def _cards(server: Server) -> list[dict[str, object]]:
    base, root, longest = server.adapters.base_name, str(server.config.model), server.limits.max_model_len
    cards = [_card(server, base, root, None, longest)]
    cards += [_card(server, adapter.name, adapter.path, base, None) for adapter in server.adapters.loaded]
    return cards


def _card(server: Server, name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": server.created,
        "owned_by": "holdfast",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [],
    }


async def _complete(server: Server, request: Request, body: Completion) -> Response:
    _check_model(server, body.model)
    wanted = bodies.prompts(body.prompt)
    prompts = await asyncio.to_thread(_encode_all, server, wanted, special=body.add_special_tokens)
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    samplings = [
        bodies.sampling(body, server.limits, prompt_len=len(prompt), max_tokens=max_tokens, logprobs=body.logprobs)
        for prompt in prompts
    ]
    answers = Completions(server.texts, _wish(server, body, "cmpl", prompts, body.logprobs))
    return await _answer(server, request, body, answers, samplings)


async def _chat(server: Server, request: Request, body: Chat) -> Response:
    _check_model(server, body.model)
    if body.top_logprobs and not body.logprobs:
        raise bad_value("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    prompt = await asyncio.to_thread(
        server.texts.chat,
        bodies.conversation(body.messages),
        generation_prompt=body.add_generation_prompt,
        more=body.chat_template_kwargs or {},
    )
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    made = bodies.sampling(body, server.limits, prompt_len=len(prompt), max_tokens=max_tokens, logprobs=num_top)
    answers = Chats(server.texts, _wish(server, body, "chatcmpl", [prompt], num_top))
    return await _answer(server, request, body, answers, [made])


def _check_model(server: Server, name: str | None) -> None:
    """While generation is paused, adapters may be about to change: an unknown name waits with the rest."""
    if name is None or server.engine.is_paused:
        return
    try:
        server.adapters.find(name)
    except LookupError as error:
        raise server.adapters.unknown(name) from error


def _encode_all(server: Server, wanted: list[str | list[int]], *, special: bool) -> list[list[int]]:
    prompts = [server.texts.encode(each, special=special) if isinstance(each, str) else each for each in wanted]
    for prompt in prompts:
        if not prompt:
            raise bad_value("The prompt has no tokens.", "prompt")
        if (largest := max(prompt)) >= server.limits.vocab_size:
            raise bad_value(f"Token id {largest} is out of vocabulary")
    return prompts


def _wish(server: Server, body: Common, prefix: str, prompts: list[list[int]], num_top: int | None) -> Wish:
    options = body.stream_options
    return Wish(
        id=f"{prefix}-{uuid.uuid4().hex[:16]}",
        created=int(time.time()),
        model=body.model or server.adapters.base_name,
        prompts=tuple(prompts),
        n=1 if body.n is None else body.n,
        token_ids=bool(body.return_token_ids),
        logprobs=num_top is not None,
        num_top=num_top or 0,
        ids_for_tokens=bool(body.return_tokens_as_token_ids),
        include_usage=options is not None and options.include_usage,
    )


class _Pieces:
    """A job's pieces, handed over from the engine's thread to this event loop."""

    def __init__(self, server: Server, wish: Wish, samplings: list[Sampling]) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self._engine = server.engine
        sequences = [
            Sequence(place * wish.n + copy, prompt, _seeded(sampling, copy), server.texts)
            for place, (prompt, sampling) in enumerate(zip(wish.prompts, samplings, strict=True))
            for copy in range(wish.n)
        ]
        self.num_open = len(sequences)
        try:
            adapter = server.adapters.find(wish.model)
        except LookupError:
            adapter = None
        self.job = Job(wish.model, adapter, sequences, self._hand_over)

    def _hand_over(self, piece: Piece | ApiError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)

    def submit(self) -> None:
        self._engine.submit(self.job)

    async def __aiter__(self) -> AsyncGenerator[Piece, None]:
        """Each piece, until all sequences have ended. Who stops reading earlier gives the job up."""
        try:
            while self.num_open:
                piece = await self._arrived.get()
                if isinstance(piece, ApiError):
                    self.num_open = 0
                    raise piece
                if piece.finish_reason is not None:
                    self.num_open -= 1
                yield piece
        finally:
            if self.num_open:
                self._engine.cancel(self.job)


def _seeded(sampling: Sampling, copy: int) -> Sampling:
    if copy == 0 or sampling.seed is None:
        return sampling
    return dataclasses.replace(sampling, seed=sampling.seed + copy)


async def _answer(
    server: Server, request: Request, body: Common, answers: Answers, samplings: list[Sampling]
) -> Response:
    wish = answers.wish
    if len(wish.prompts) * wish.n > bodies.SEQUENCES_MAX:
        raise bad_value(f"at most {bodies.SEQUENCES_MAX} sequences in one request", "n", wish.n)
    pieces = _Pieces(server, wish, samplings)
    pieces.submit()
    if body.stream:
        return StreamingResponse(_stream(pieces, answers), media_type="text/event-stream")
    gathering = asyncio.ensure_future(_gather(pieces))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({gathering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            return Response(status_code=499)  # nobody reads it
        return Response(answers.whole(gathering.result(), pieces.job.fingerprint()), media_type="application/json")
    finally:
        for task in (gathering, leaving):
            task.cancel()
        await asyncio.gather(gathering, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _gather(pieces: _Pieces) -> list[Gathered]:
    gathered = [Gathered() for _ in pieces.job.sequences]
    async with contextlib.aclosing(aiter(pieces)) as each:
        async for piece in each:
            gathered[piece.index].add(piece)
    return gathered


async def _stream(pieces: _Pieces, answers: Answers) -> AsyncGenerator[bytes, None]:
    """Server-sent events. An error after the first of them can only be told as one more event, as vLLM does."""
    for chunk in answers.opening():
        yield chunk
    try:
        async with contextlib.aclosing(aiter(pieces)) as each:
            async for piece in each:
                last = pieces.num_open == 0
                for chunk in answers.events(piece, pieces.job.fingerprint(), last=last):
                    yield chunk
    except ApiError as error:
        yield event(error.body())
    yield DONE
