"""Answers as OpenAI's clients read them: of completions and of chat completions, as a whole or in pieces."""

import time
from dataclasses import dataclass
from typing import Any


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


@dataclass(frozen=True)
class Answer:
    """The answer to a completion request: the model's name, an identity and the tokens of the prompts."""

    name: str
    identity: str
    prompt_tokens: int
    details: bool  # with log-probabilities
    prefix, kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def choice_json(self, delta: Delta, offset: int = 0) -> dict[str, Any]:
        """Return a choice; `offset` is the number of characters before its text."""
        return {"index": delta.choice, "text": delta.text, **self._ending(delta, offset)}

    def piece_json(self, delta: Delta, offset: int, first: bool) -> dict[str, Any]:
        """Return what is new of a choice, in a stream; `first` is whether it is the first such piece."""
        return self.choice_json(delta, offset)

    def body(self, choices: list[dict[str, Any]], generated: int | None = None, piece: bool = False) -> dict[str, Any]:
        """Return an answer, or a piece of a stream, with the tokens used where those that were generated are counted."""
        kind = self.piece_kind if piece else self.kind
        body = {"id": self.identity, "object": kind, "created": int(time.time()), "model": self.name, "choices": choices}
        if generated is not None:
            total = self.prompt_tokens + generated
            used = {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total}
            body["usage"] = used
        return body

    def _ending(self, delta: Delta, offset: int) -> dict[str, Any]:
        return {"logprobs": self._logprobs(delta, offset) if self.details else None, "finish_reason": delta.finish or None}

    def _logprobs(self, delta: Delta, offset: int) -> dict[str, Any]:
        places = [offset]
        for token in delta.tokens:
            places.append(places[-1] + len(token.text))
        return {
            "tokens": [token.text for token in delta.tokens],
            "token_logprobs": [token.log_probability for token in delta.tokens],
            "top_logprobs": [token.top or None for token in delta.tokens],
            "text_offset": places[:-1],
        }


class ChatAnswer(Answer):
    """The answer to a chat completion request."""

    prefix, kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice_json(self, delta: Delta, offset: int = 0) -> dict[str, Any]:
        """Return a choice: a message of the assistant."""
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {"index": delta.choice, "message": message, **self._ending(delta, offset)}

    def piece_json(self, delta: Delta, offset: int, first: bool) -> dict[str, Any]:
        """Return what is new of a message."""
        role = {"role": "assistant"} if first else {}
        return {"index": delta.choice, "delta": {**role, "content": delta.text}, **self._ending(delta, offset)}

    def _logprobs(self, delta: Delta, offset: int) -> dict[str, Any]:
        return {
            "content": [
                {
                    **_detail(token.text, token.log_probability or 0.0),
                    "top_logprobs": [_detail(text, log) for text, log in token.top.items()],
                }
                for token in delta.tokens
            ],
            "refusal": None,
        }


def _detail(text: str, log_probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": log_probability, "bytes": list(text.encode("utf-8", "replace"))}
