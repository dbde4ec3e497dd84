"""Continuous batching: texts that come and go are continued together, with one read of the weights for a token of each."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llamactl.model.cache import KVCache, RowCache
from llamactl.model.decode import Sampler, Step, fit_prompt, uniform_draws
from llamactl.model.llama import Llama
from llamactl.model.row_steps import RowSteps, model_step


class Continuation:
    """A text that is continued: its ids so far, and how the next one is chosen."""

    def __init__(self, prompt: Sequence[int], pick: Sampler, seed: int, model: Llama) -> None:
        """Start from a prompt, of which as many tokens are used as the context holds."""
        device = model.model.embed_tokens.weight.device
        self._pieces = [torch.tensor([fit_prompt(prompt, model.config.context)], device=device)]  # joined only where needed
        self.length = 0  # tokens in the cache
        self._pick, self._draws = pick, uniform_draws([seed], device)

    @property
    def last_token(self) -> Tensor:
        """Return the last token, 1 1."""
        return self._pieces[-1][:, -1:]

    def join_text(self) -> Tensor:
        """Return the whole text, 1 T."""
        self._pieces = [torch.cat(self._pieces, dim=1)]
        return self._pieces[0]

    def choose_token(self, logits: Tensor, total: Tensor) -> Step:
        """Choose the next token from its logits (1 V) and add it to the text."""
        picked = self._pick(logits, self._pieces, next(self._draws))
        self._pieces.append(picked[:, None])
        return Step(picked, (logits.gather(1, picked[:, None]) - total)[:, 0], logits)


class ContinuousBatch:
    """Texts of a model that are continued together, each as `decode_tokens` would do it alone."""

    def __init__(self, model: Llama, vocab_size: int) -> None:
        """Start without any; `vocab_size` is that of the tokenizer."""
        self._model, self._vocab_size = model, vocab_size
        self._rows: list[Continuation | None] = [None]
        self._allocate(1)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of memory that each text takes."""
        return self._cache.row_bytes

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._rows) - self._rows.count(None)

    def add(self, text: Continuation) -> None:
        """Take another text, from the next step on."""
        if None not in self._rows:
            rows = len(self._rows)
            self._allocate(2 * rows, self._cache)  # may raise, where memory is full: then nothing has changed
            self._rows += [None] * rows
        self._rows[self._rows.index(None)] = text

    def remove(self, text: Continuation) -> None:
        """Leave a text, if it is there."""
        if text in self._rows:
            self._rows[self._rows.index(text)] = None

    @torch.inference_mode()
    def step(self) -> Iterator[tuple[Continuation, Step]]:
        """Continue each text by a token; new ones are read first, equal ones once. The next call changes the logits."""
        present = {row: text for row, text in enumerate(self._rows) if text}
        unread = {row: text for row, text in present.items() if text.length == 0}
        yield from self._read(unread)
        if rows := [row for row in present if row not in unread]:
            yield from self._step_together(rows, present)
        if len(self._rows) > 1 and not len(self):
            # The memory of many texts is given back when none is left.
            self._rows = [None]
            self._allocate(1)

    def _allocate(self, rows: int, old: KVCache | None = None) -> None:
        """Make a cache of so many rows, the first of which are those of an old one."""
        weight = self._model.model.embed_tokens.weight
        cache = KVCache(self._model.config, rows, weight.device, weight.dtype)
        longest = max((text.length for text in self._rows if text), default=0)
        for new, held in zip(cache.layers, old.layers if old else (), strict=False):
            known = (slice(len(held.keys)), slice(None), slice(longest))
            new.keys[known], new.values[known] = held.keys[:, :, :longest], held.values[:, :, :longest]
        self._cache = cache
        self._steps: RowSteps | None = None

    def _read(self, unread: dict[int, Continuation]) -> Iterator[tuple[Continuation, Step]]:
        """Read prompts, or the second half of a context that is full, into their rows of the cache."""
        context = self._model.config.context
        first: dict[tuple[int, ...], tuple[RowCache, tuple[Tensor, Tensor]]] = {}
        for row, text in unread.items():
            known = text.join_text()
            most = context - 1 if known.shape[1] < context else context // 2
            tokens, own = known[:, -max(1, most) :], RowCache(self._cache, row)
            key, text.length = tuple(tokens[0].tolist()), tokens.shape[1] % context
            if key in first:
                own.copy_from(first[key][0])
            else:
                first[key] = own, model_step(self._model, tokens, own, self._vocab_size)
            yield text, text.choose_token(*first[key][1])

    def _step_together(self, rows: list[int], present: dict[int, Continuation]) -> Iterator[tuple[Continuation, Step]]:
        self._steps = self._steps or RowSteps(self._model, self._cache, self._vocab_size)
        tokens = torch.cat([present[row].last_token for row in rows])
        lengths = [text.length if text else 0 for text in self._rows]
        logits, totals = self._steps(tokens, rows, lengths)
        with self._steps.pause_threads():
            for number, row in enumerate(rows):
                text = present[row]
                text.length = (text.length + 1) % self._model.config.context  # 0: full, to be read again
                yield text, text.choose_token(logits[number : number + 1], totals[number : number + 1])
