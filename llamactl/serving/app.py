"""The HTTP application: OpenAI's /v1/completions and /v1/models, and a page to write with at /."""

import asyncio
import hmac
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llamactl.errors import UserError
from llamactl.inference.generate import sample_seed
from llamactl.model.decode import Sampler, fit_prompt
from llamactl.serving.protocol import (
    BadRequest,
    CompletionRequest,
    Delta,
    answer_to_json,
    choice_to_json,
    parse_request,
)
from llamactl.serving.scheduler import Job, Scheduler
from llamactl.storage.records import to_json

LARGEST_BODY = 4 << 20  # bytes
DISCONNECT_EVERY = 0.5  # seconds between two looks at whether who asked is still there
ASSETS = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# The page runs its own script only, and speaks with nobody but this server.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}  # fmt: skip
Handler = Callable[[Request], Awaitable[Response]]
Deltas = asyncio.Queue[Delta | Exception | None]


class Answer(NamedTuple):
    """What every piece of an answer says: the request, the model's name, an identity and the tokens of its prompts."""

    asked: CompletionRequest
    name: str
    identity: str
    prompt_tokens: int


class Server:
    """Answers requests for some models: by name, the folder of each; the first is what a request without a name means."""

    def __init__(self, models: Mapping[str, Path], scheduler: Scheduler, hosts: tuple[str, ...], token: str = "") -> None:
        """Take the names of hosts that requests may be for (none: any), and a token that they must show, where there is one."""
        self.models, self.scheduler, self._hosts, self._token = dict(models), scheduler, hosts, token

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/models", self._guarded(self.list_models), methods=["GET"]),
            Route("/v1/completions", self._guarded(self.complete), methods=["POST"]),
            Route("/{file:path}", self._guarded(self.page, shows_token=False), methods=["GET"]),
        ]
        return Starlette(routes=routes)

    def _guarded(self, handler: Handler, shows_token: bool = True) -> Handler:
        """Return a handler that refuses strangers, and answers a bad request with its reason."""

        async def handle(request: Request) -> Response:
            try:
                self._check_origin(request, shows_token)
                response = await handler(request)
            except BadRequest as error:
                response = JSONResponse(error.to_json(), error.status)
            response.headers.update(HEADERS)
            return response

        return handle

    def _check_origin(self, request: Request, shows_token: bool) -> None:
        """Raise BadRequest for a host that is not this one, as a page elsewhere could name, or a token that is not ours."""
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self._hosts and host not in self._hosts:
            raise BadRequest("This server answers for this machine alone.", status=403)
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if shows_token and self._token and not hmac.compare_digest(shown.encode(), self._token.encode()):
            raise BadRequest("This server needs its token: Authorization: Bearer TOKEN.", status=401)

    async def list_models(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "llamactl"} for name in self.models]
        return JSONResponse({"object": "list", "data": rows})

    async def page(self, request: Request) -> Response:
        """Answer with a file of the page."""
        file = ASSETS / (request.path_params["file"] or "index.html")
        if file.parent != ASSETS or file.suffix not in TYPES or not file.is_file():
            raise BadRequest("There is nothing here.", status=404)
        return Response(file.read_bytes(), media_type=TYPES[file.suffix])

    async def complete(self, request: Request) -> Response:
        """Answer POST /v1/completions, as a whole or as a stream of server-sent events."""
        asked = parse_request(await _read_json(request))
        name = asked.model or next(iter(self.models))
        if name not in self.models:
            raise BadRequest(f"There is no model {name!r}: {', '.join(self.models)}.", status=404, parameter="model")
        deltas: Deltas = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(delta: Delta | Exception | None) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, delta)

        jobs = await asyncio.to_thread(self._jobs, asked, self.models[name], deliver)
        for job in jobs:
            self.scheduler.submit(job)
        answer = Answer(asked, name, f"cmpl-{secrets.token_hex(12)}", sum(len(job.ids) for job in jobs))
        if asked.stream:
            return StreamingResponse(_stream(answer, jobs, deltas), media_type="text/event-stream")
        return await _whole(request, answer, jobs, deltas)

    def _jobs(self, asked: CompletionRequest, folder: Path, deliver: Callable[[Delta | Exception | None], None]) -> list[Job]:
        """Make a job of each prompt; raises BadRequest for ids that the vocabulary does not have."""
        model, tokenizer = self.scheduler.load(folder)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        jobs = []
        for number, prompt in enumerate(asked.prompts):
            try:
                ids = tokenizer.encode_opening(prompt) if isinstance(prompt, str) else prompt or [tokenizer.end]
            except UnicodeEncodeError as error:
                raise BadRequest(f"prompt: it is not Unicode text: {error.reason}.", parameter="prompt") from error
            if not all(0 <= i < tokenizer.vocab_size for i in ids):
                raise BadRequest(f"prompt: ids are from 0 to {tokenizer.vocab_size - 1:,}.", parameter="prompt")
            job = Job(
                folder=folder,
                ids=fit_prompt(ids, model.config.context),
                max_tokens=asked.max_tokens,
                seeds=[sample_seed(seed, str(prompt), sample) for sample in range(1, asked.n + 1)],
                first=number * asked.n,
                pick=Sampler(temperature=asked.temperature, top_p=asked.top_p),
                stops=asked.stops,
                top=asked.logprobs,
                echo=asked.echo,
                deliver=deliver,
            )
            jobs.append(job)
        return jobs


async def _read_json(request: Request) -> object:
    """Read the body as JSON; raises BadRequest for one that is too large or none."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise BadRequest(f"The body has more than {LARGEST_BODY:,} bytes.", status=413)
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    except ClientDisconnect:
        raise BadRequest("Whoever asked is gone.") from None


async def _arriving(jobs: Sequence[Job], deltas: Deltas) -> AsyncIterator[Delta]:
    """Yield what is new until all jobs have ended; leaving it cancels them. Raises BadRequest for one that failed."""
    running = len(jobs)
    try:
        while running:
            delta = await deltas.get()
            if isinstance(delta, Exception):
                message = delta.what if isinstance(delta, UserError) else str(delta)
                raise BadRequest(message or type(delta).__name__, status=500)
            if delta is None:
                running -= 1
            else:
                yield delta
    finally:
        for job in jobs:
            job.cancelled.set()


async def _stream(answer: Answer, jobs: Sequence[Job], deltas: Deltas) -> AsyncIterator[str]:
    """Yield an answer as server-sent events, one for what each token adds."""
    lengths, generated = Counter[int](), 0
    try:
        async for delta in _arriving(jobs, deltas):
            generated += delta.generated
            choice = choice_to_json(delta, answer.asked.logprobs is not None, lengths[delta.choice])
            lengths[delta.choice] += len(delta.text)
            if delta.text or delta.tokens or delta.finish:
                yield _event(answer_to_json(answer.name, answer.identity, [choice]))
    except BadRequest as error:
        yield _event(error.to_json())
        return
    if (answer.asked.stream_options or {}).get("include_usage"):
        yield _event(answer_to_json(answer.name, answer.identity, [], (answer.prompt_tokens, generated)))
    yield "data: [DONE]\n\n"


def _event(tree: Mapping[str, Any]) -> str:
    return f"data: {to_json(tree)}\n\n"


async def _whole(request: Request, answer: Answer, jobs: Sequence[Job], deltas: Deltas) -> Response:
    """Wait for all of an answer; end the jobs when whoever asked is gone."""
    parts: dict[int, list[Delta]] = {}

    async def collect() -> None:
        async for delta in _arriving(jobs, deltas):
            parts.setdefault(delta.choice, []).append(delta)

    collecting = asyncio.create_task(collect())
    while not (await asyncio.wait({collecting}, timeout=DISCONNECT_EVERY))[0]:
        if await request.is_disconnected():
            collecting.cancel()
            raise BadRequest("Whoever asked is gone.")
    collecting.result()
    choices = [
        choice_to_json(
            Delta(
                number,
                "".join(delta.text for delta in found),
                tuple(token for delta in found for token in delta.tokens),
                found[-1].finish,
            ),
            answer.asked.logprobs is not None,
        )
        for number, found in sorted(parts.items())
    ]
    generated = sum(delta.generated for found in parts.values() for delta in found)
    return JSONResponse(answer_to_json(answer.name, answer.identity, choices, (answer.prompt_tokens, generated)))
