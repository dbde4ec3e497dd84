"""OpenAI's completions as data: what a request may say, and the objects that answer it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llamactl.errors import UserError

MOST_TOKENS = 100_000
NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # what is not offered, and the values with which it changes nothing
    "best_of": (None, 1),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
}


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


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: str = ""
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    max_tokens: int = Field(16, ge=0, le=MOST_TOKENS)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)

    @field_validator("temperature", "top_p", mode="before")
    @classmethod
    def _whole_is_a_number_too(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("max_tokens", "temperature", "top_p", "n", "stream", "echo", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Return the prompts, each a text or token ids."""
        if isinstance(self.prompt, str) or not self.prompt:
            return [self.prompt if isinstance(self.prompt, str) else ""]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]


def parse_request(tree: object) -> CompletionRequest:
    """Check a request; raises BadRequest with the reason."""
    if not isinstance(tree, dict):
        raise BadRequest("The body must be a JSON object.")
    for name, values in NEUTRAL.items():
        if tree.get(name) not in values:
            raise BadRequest(f"{name} is not offered.", parameter=name)
    try:
        request = CompletionRequest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        raise BadRequest(f"{name}: {first['msg']}.", parameter=name) from error
    if "" in request.stops or len(request.stops) > 16:
        raise BadRequest("stop: up to 16 texts, none of them empty.", parameter="stop")
    if 0 < request.temperature < 0.01:
        raise BadRequest("temperature: 0, or at least 0.01.", parameter="temperature")
    if len(request.prompts) * request.n > 64:
        raise BadRequest("prompt: at most 64 texts at once, n for each.", parameter="prompt")
    return request


@dataclass(frozen=True)
class TokenDetail:
    """A token as text, its log-probability (None for the first of a prompt) and those of the likeliest ones there."""

    text: str
    log_probability: float | None
    top: dict[str, float]


@dataclass(frozen=True)
class Delta:
    """What is new of one choice: text, its tokens, and why it ended, "stop" or "length"; empty while it has not."""

    choice: int
    text: str
    tokens: tuple[TokenDetail, ...] = ()
    finish: str = ""
    generated: int = 0  # tokens, with those that have no text


def choice_to_json(delta: Delta, details: bool, offset: int = 0) -> dict[str, Any]:
    """Return a choice of an answer; `offset` is the number of characters before its text."""
    told = None
    if details:
        places = [offset]
        for token in delta.tokens:
            places.append(places[-1] + len(token.text))
        told = {
            "tokens": [token.text for token in delta.tokens],
            "token_logprobs": [token.log_probability for token in delta.tokens],
            "top_logprobs": [token.top or None for token in delta.tokens],
            "text_offset": places[:-1],
        }
    return {"index": delta.choice, "text": delta.text, "logprobs": told, "finish_reason": delta.finish or None}


def answer_to_json(
    name: str, identity: str, choices: list[dict[str, Any]], usage: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return an answer, or a piece of a stream; `usage` is the tokens of the prompts and of the answer."""
    body = {"id": identity, "object": "text_completion", "created": int(time.time()), "model": name, "choices": choices}
    if usage is not None:
        prompt, generated = usage
        body["usage"] = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
    return body
