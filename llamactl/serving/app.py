"""The HTTP application: OpenAI's completions, chat completions and models under /v1, and a page to write with at /."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llamactl.checkpoint.huggingface import read_chat_template
from llamactl.errors import UserError
from llamactl.inference.chat import prompt_of
from llamactl.inference.generate import sample_seed
from llamactl.model.decode import Sampler, fit_prompt
from llamactl.serving.access import check_host, check_token
from llamactl.serving.answers import Answer, ChatAnswer, Delta
from llamactl.serving.protocol import BadRequest, ChatRequest, CompletionRequest, SamplingRequest
from llamactl.serving.scheduler import Job, Scheduler
from llamactl.storage.records import to_json

LARGEST_BODY = 4 << 20  # bytes
DISCONNECT_EVERY = 0.5  # seconds between two looks at whether who asked is still there
ASSETS = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE = {file.name: file for file in ASSETS.iterdir() if file.suffix in TYPES}
# The page runs its own script only, and speaks with nobody but this server.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}  # fmt: skip
Handler = Callable[[Request], Awaitable[Response]]
Deltas = asyncio.Queue[Delta | Exception | None]


class Prompt(NamedTuple):
    """Ids to continue, what its samples' seeds depend on, by how many tokens, and how it is repeated in the answer.

    `echo` is the number of ids that the server itself put in front and does not repeat; without it the prompt is not repeated.
    """

    ids: list[int]
    key: str
    max_tokens: int
    echo: int | None = None


class Server:
    """Answers requests for some models: by name, the folder of each; the first is what a request without a name means."""

    def __init__(self, models: Mapping[str, Path], scheduler: Scheduler, hosts: tuple[str, ...], token: str = "") -> None:
        """Take the names of hosts that requests may be for (none: any), and a token that they must show, where there is one."""
        self.models, self.scheduler, self._hosts, self._token = dict(models), scheduler, hosts, token

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/models", self._guarded(self.list_models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._guarded(self.show_model), methods=["GET"]),
            Route("/v1/completions", self._guarded(self.complete), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/{file:path}", self._guarded(self.page, shows_token=False), methods=["GET"]),
        ]
        return Starlette(routes=routes)

    def _guarded(self, handler: Handler, shows_token: bool = True) -> Handler:
        """Return a handler that refuses strangers, and answers a bad request with its reason."""

        async def handle(request: Request) -> Response:
            try:
                check_host(request.headers, self._hosts)
                check_token(request.headers, self._token if shows_token else "")
                response = await handler(request)
            except BadRequest as error:
                response = JSONResponse(error.to_json(), error.status)
            except UserError as error:  # a checkpoint that was pruned, or is damaged
                response = JSONResponse(BadRequest(f"{error.what} {error.why}".strip(), status=500).to_json(), 500)
            response.headers.update(HEADERS)
            return response

        return handle

    async def list_models(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        return JSONResponse({"object": "list", "data": [_model_row(name, folder) for name, folder in self.models.items()]})

    async def show_model(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME."""
        name = request.path_params["name"]
        return JSONResponse(_model_row(name, self._folder_of(name)))

    def _folder_of(self, name: str) -> Path:
        """Return the folder of a model; raises BadRequest for one that is not served."""
        if name not in self.models:
            raise BadRequest(f"There is no model {name!r}: {', '.join(self.models)}.", status=404, parameter="model")
        return self.models[name]

    async def page(self, request: Request) -> Response:
        """Answer with a file of the page."""
        file = PAGE.get(request.path_params["file"] or "index.html")
        if file is None:
            raise BadRequest("There is nothing here.", status=404)
        return Response(file.read_bytes(), media_type=TYPES[file.suffix])

    async def complete(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        asked = CompletionRequest.parse(await _read_json(request))
        return await self._answer(request, asked, partial(self._prompts, asked), Answer)

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        asked = ChatRequest.parse(await _read_json(request))
        return await self._answer(request, asked, partial(self._conversation, asked), ChatAnswer)

    async def _answer(
        self, request: Request, asked: SamplingRequest, read: Callable[[Path], list[Prompt]], kind: type[Answer]
    ) -> Response:
        """Answer a request, whose prompts `read` finds for a model, as a whole or as a stream of server-sent events."""
        name = asked.model or next(iter(self.models))
        folder = self._folder_of(name)
        deltas: Deltas = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(delta: Delta | Exception | None) -> None:
            with suppress(RuntimeError):  # the server is being stopped, and its loop is closed
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        prompts = await asyncio.to_thread(read, folder)
        jobs = _jobs(asked, folder, prompts, deliver)
        self.scheduler.submit(jobs)
        identity = f"{kind.prefix}-{secrets.token_hex(12)}"
        answer = kind(name, identity, sum(len(job.ids) for job in jobs), asked.logprob_count is not None)
        if asked.stream:
            counted = bool((asked.stream_options or {}).get("include_usage"))
            return StreamingResponse(_stream(answer, jobs, deltas, counted), media_type="text/event-stream")
        return await _whole(request, answer, jobs, deltas)

    def _prompts(self, asked: CompletionRequest, folder: Path) -> list[Prompt]:
        """Return the prompts of a completion; raises BadRequest for ids that the vocabulary does not have."""
        model, tokenizer = self.scheduler.load(folder)
        prompts = []
        for prompt in asked.prompts:
            try:
                typed = tokenizer.encode(prompt).tolist() if isinstance(prompt, str) else prompt
            except UnicodeEncodeError as error:
                raise BadRequest(f"prompt: it is not Unicode text: {error.reason}.", parameter="prompt") from error
            if not all(0 <= i < tokenizer.vocab_size for i in typed):
                raise BadRequest(f"prompt: ids are from 0 to {tokenizer.vocab_size - 1:,}.", parameter="prompt")
            ids = ([*tokenizer.start, *typed] if isinstance(prompt, str) else typed) or [tokenizer.end]
            fitting = fit_prompt(ids, model.config.context)
            if asked.echo and len(fitting) < len(ids):
                why = f"prompt: it has {len(ids):,} tokens; with echo it may have {len(fitting):,}."
                raise BadRequest(why, parameter="prompt")
            prompts.append(Prompt(fitting, str(prompt), asked.max_tokens, len(ids) - len(typed) if asked.echo else None))
        return prompts

    def _conversation(self, asked: ChatRequest, folder: Path) -> list[Prompt]:
        """Return the prompt of a conversation; raises BadRequest where it does not fit, or the model can't chat."""
        messages = asked.conversation()
        model, tokenizer = self.scheduler.load(folder)
        if not tokenizer.chat_template:
            raise BadRequest("This model was not fine-tuned on conversations: use /v1/completions.", parameter="model")
        try:
            ids, _ = prompt_of(model, tokenizer, messages, asked.most_tokens)
        except UnicodeEncodeError as error:
            raise BadRequest(f"messages: it is not Unicode text: {error.reason}.", parameter="messages") from error
        except UserError as error:
            raise BadRequest(f"messages: {error.what} {error.why}", parameter="messages") from error
        return [Prompt(ids, str(ids), min(asked.most_tokens, model.config.context - len(ids)))]


def _jobs(
    asked: SamplingRequest, folder: Path, prompts: Sequence[Prompt], deliver: Callable[[Delta | Exception | None], None]
) -> list[Job]:
    """Make a job of each prompt."""
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    return [
        Job(
            folder=folder,
            ids=prompt.ids,
            max_tokens=prompt.max_tokens,
            seeds=[sample_seed(seed, prompt.key, sample) for sample in range(1, asked.n + 1)],
            first=number * asked.n,
            pick=Sampler(temperature=asked.temperature, top_p=asked.top_p),
            stops=asked.stops,
            top=asked.logprob_count,
            echo=prompt.echo,
            deliver=deliver,
        )
        for number, prompt in enumerate(prompts)
    ]


def _model_row(name: str, folder: Path) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "llamactl", "chats": _chats(folder)}


def _chats(folder: Path) -> bool:
    """Check whether a model has a chat template; False where its files can't be read, as whoever asks it is told."""
    try:
        return bool(read_chat_template(folder))
    except UserError:
        return False


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


async def _stream(answer: Answer, jobs: Sequence[Job], deltas: Deltas, counted: bool) -> AsyncIterator[str]:
    """Yield an answer as server-sent events, one for what each token adds, and the tokens used where they are `counted`."""
    begun: set[int] = set()
    generated = 0
    try:
        async for delta in _arriving(jobs, deltas):
            generated += delta.generated
            if delta.text or delta.tokens or delta.finish:
                yield _event(answer.body([answer.piece_json(delta, delta.choice not in begun)], piece=True))
                begun.add(delta.choice)
    except BadRequest as error:
        yield _event(error.to_json())
        return
    if counted:
        yield _event(answer.body([], generated, piece=True))
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
        answer.choice_json(
            Delta(
                number,
                "".join(delta.text for delta in found),
                tuple(token for delta in found for token in delta.tokens),
                found[-1].finish,
            )
        )
        for number, found in sorted(parts.items())
    ]
    return JSONResponse(answer.body(choices, sum(delta.generated for found in parts.values() for delta in found)))
