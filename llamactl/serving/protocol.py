"""OpenAI's completions and chat completions as data: what a request may say."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llamactl.errors import UserError
from llamactl.inference.chat import read_messages
from llamactl.tokenizer.chat import Message

MOST_TOKENS = 100_000


class BadRequest(UserError):
    """A request that can't be answered, with the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400, parameter: str = "") -> None:
        """Take the reason, a status from 400 on, and the field that caused it."""
        super().__init__(message)
        self.status, self.parameter = status, parameter

    def to_json(self) -> dict[str, Any]:
        """Return the body of the answer, as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.what, "type": kind, "param": self.parameter or None, "code": self.status}}


class SamplingRequest(BaseModel):
    """What both kinds of requests say: the model, how tokens are chosen, and how the answer comes."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
    # What is not offered, and the values with which it changes nothing.
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logit_bias": (None, {}),
        "frequency_penalty": (None, 0),
        "presence_penalty": (None, 0),
    }

    model: str = ""
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)

    @field_validator("temperature", "top_p", mode="before")
    @classmethod
    def _whole_is_a_number_too(cls, value: object) -> object:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300
        return float(value) if fits else value  # type: ignore[arg-type]

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def logprob_count(self) -> int | None:
        """Return how many log-probabilities are told besides that of each token; None for not even that one."""
        raise NotImplementedError

    @classmethod
    def parse(cls, tree: object) -> Self:
        """Check a request; raises BadRequest with the reason."""
        if not isinstance(tree, dict):
            raise BadRequest("The body must be a JSON object.")
        for name, values in cls.neutral.items():
            if tree.get(name) not in values:
                raise BadRequest(f"{name} is not offered.", parameter=name)
        try:
            request = cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            raise BadRequest(f"{name}: {first['msg']}.", parameter=name) from error
        if "" in request.stops or len(request.stops) > 16:
            raise BadRequest("stop: up to 16 texts, none of them empty.", parameter="stop")
        if 0 < request.temperature < 0.01:
            raise BadRequest("temperature: 0, or at least 0.01.", parameter="temperature")
        return request


class CompletionRequest(SamplingRequest):
    """The body of POST /v1/completions."""

    neutral = {**SamplingRequest.neutral, "best_of": (None, 1), "suffix": (None, "")}

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    max_tokens: int = Field(16, ge=0, le=MOST_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False

    @property
    def logprob_count(self) -> int | None:
        """Return how many log-probabilities are told besides that of each token; None for not even that one."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Return the prompts, each a text or token ids."""
        if isinstance(self.prompt, str) or not self.prompt:
            return [self.prompt if isinstance(self.prompt, str) else ""]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]

    @classmethod
    def parse(cls, tree: object) -> Self:
        """Check a request; raises BadRequest with the reason."""
        request = super().parse(tree)
        if len(request.prompts) * request.n > 64:
            raise BadRequest("prompt: at most 64 texts at once, n for each.", parameter="prompt")
        return request


class ChatRequest(SamplingRequest):
    """The body of POST /v1/chat/completions."""

    neutral = {
        **SamplingRequest.neutral,
        **dict.fromkeys(("tools", "functions", "audio"), (None, [])),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
    }

    messages: Any = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def logprob_count(self) -> int | None:
        """Return how many log-probabilities are told besides that of each token; None for not even that one."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int:
        """Return how many tokens an answer may have."""
        return self.max_completion_tokens or self.max_tokens or MOST_TOKENS

    def conversation(self) -> list[Message]:
        """Return the conversation that is to be answered; raises BadRequest for one that can't be."""
        try:
            return read_messages(self.messages)
        except UserError as error:
            raise BadRequest(error.what, parameter="messages") from error
