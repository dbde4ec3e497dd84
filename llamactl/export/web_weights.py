"""Weights as a page stores them: integers with scales, and earlier checkpoints as differences from the next one.

The page's script reads the same bytes (web_page/weights.js), so every product here is one that IEEE arithmetic gives alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from llamactl.config.schema import ModelConfig
from llamactl.model.llama import Llama, build_empty

Kind = Literal["int8", "int4"]
STEPS = 127  # integers of int8 on each side of zero
FEW_STEPS, GROUP, FACTORS = 7, 32, 255  # those of int4, how many of them share a factor, and the largest factor
SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a group's largest weight, tried as the end of its range
SMALLEST = 1e-12  # scale of a row of zeros
# An earlier checkpoint is stored in steps of so many integers of int8: as a share of the standard deviation of the
# differences, so that a step costs about as many bits for all of them, and at most so coarse that the loss hardly changes.
STEP_SHARE, FINEST, COARSEST = 1.0, 2, 14

OUTER = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head", "model.norm.weight": "norm"}


@dataclass(frozen=True)
class Layout:
    """The tensors of a model as they are stored: vectors with their sizes, matrices with rows and columns."""

    vectors: tuple[tuple[str, int], ...]
    matrices: tuple[tuple[str, int, int], ...]

    def blocks(self) -> Iterator[tuple[str, slice, slice, tuple[int, int]]]:
        """Yield the name of each matrix, where its rows and its numbers are, and its shape."""
        row = number = 0
        for name, rows, columns in self.matrices:
            yield name, slice(row, row + rows), slice(number, number + rows * columns), (rows, columns)
            row, number = row + rows, number + rows * columns


@dataclass(frozen=True)
class Rounded:
    """A model in integers: a weight is its integer times the scale of its row, with int4 also times the factor of its group.

    `vectors` and `scales` are float32, `integers` int8 from -127 to 127 (-7 to 7), `factors` uint8, empty with int8.
    """

    layout: Layout
    vectors: np.ndarray
    scales: np.ndarray
    integers: np.ndarray
    factors: np.ndarray

    def to_bytes(self) -> bytes:
        """Return the bytes that the page stores, before compression."""
        floats = [self.vectors.astype("<f4").tobytes(), self.scales.astype("<f4").tobytes()]
        if not len(self.factors):
            return b"".join([*floats, self.integers.tobytes()])
        pairs = np.append(self.integers, np.zeros(len(self.integers) % 2, np.int8)).reshape(-1, 2) + 8
        return b"".join([*floats, self.factors.tobytes(), (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()])

    def matrix(self, number: int) -> np.ndarray:
        """Return a matrix in float32, as the page multiplies by it."""
        _, rows, numbers, shape = list(self.layout.blocks())[number]
        integers = self.integers[numbers].reshape(shape).astype(np.float32)
        scales: np.ndarray = self.scales[rows, None]
        if len(self.factors):
            before = sum(rows * -(-columns // GROUP) for _, rows, columns in self.layout.matrices[:number])
            count = -(-shape[1] // GROUP)
            factors = self.factors[before : before + shape[0] * count].reshape(shape[0], count).astype(np.float32)
            scales = np.repeat(scales * factors, GROUP, axis=1)[:, : shape[1]]
        product: np.ndarray = integers * scales
        return product

    def to_model(self, config: ModelConfig) -> Llama:
        """Build the model that the page computes, in eval mode; its vocabulary has no padding rows."""
        model = build_empty(config.model_copy(update={"vocab_size": self.layout.matrices[0][1]}))
        found = {name: torch.from_numpy(self.matrix(number)) for number, (name, *_) in enumerate(self.layout.matrices)}
        start = 0
        for name, size in self.layout.vectors:
            found[name] = torch.from_numpy(self.vectors[start : start + size])
            start += size
        found.setdefault("head", found["embedding"])
        model.load_state_dict({name: found[short_name(name)] for name in model.state_dict()}, assign=True)
        model.tie_weights()
        return model.eval()


def parse_rounded(layout: Mapping[str, Any], content: bytes, kind: Kind) -> Rounded:
    """Read what `Rounded.to_bytes` made, by a layout as it stands in the page's JSON."""
    vectors, matrices = (tuple(map(tuple, layout[name])) for name in ("vectors", "matrices"))
    rows, numbers = sum(each[1] for each in matrices), sum(each[1] * each[2] for each in matrices)
    floats = np.frombuffer(content, "<f4", sum(each[1] for each in vectors) + rows)
    rest = np.frombuffer(content, np.uint8, offset=floats.nbytes)
    factors = rest[: sum(rows * -(-columns // GROUP) for _, rows, columns in matrices)] if kind == "int4" else rest[:0]
    integers = rest.view(np.int8)
    if kind == "int4":
        pairs = rest[len(factors) :]
        integers = (np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:numbers].astype(np.int8)) - 8
    return Rounded(Layout(vectors, matrices), floats[:-rows].copy(), floats[-rows:], integers, factors)


def short_name(name: str) -> str:
    """Return what a parameter is called in a page: embedding, norm, 0.q_proj, 0.q_bias."""
    if name in OUTER:
        return OUTER[name]
    _, _, layer, *_, part, kind = name.split(".")
    return f"{layer}.{part.replace('_proj', '_bias') if kind == 'bias' else part}"


def round_model(model: Llama, vocab_size: int, kind: Kind) -> Rounded:
    """Round the matrices of a model to integers; the rows that only pad its vocabulary are left out."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if not (name == "lm_head.weight" and model.config.tie_embeddings):
            found[short_name(name)] = tensor[:vocab_size].numpy() if name in OUTER and tensor.ndim == 2 else tensor.numpy()
    vectors = {name: values for name, values in found.items() if values.ndim == 1}
    matrices = {name: values for name, values in found.items() if values.ndim == 2}
    layout = Layout(
        tuple((name, len(values)) for name, values in vectors.items()),
        tuple((name, *values.shape) for name, values in matrices.items()),
    )
    rounded = [(round_rows if kind == "int8" else round_groups)(values) for values in matrices.values()]
    scales, integers, factors = (np.concatenate([part.reshape(-1) for part in parts]) for parts in zip(*rounded, strict=True))
    return Rounded(layout, np.concatenate([*vectors.values()]), scales, integers, factors)


def round_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round a matrix to int8 with a scale for each row; returns scales, integers and no factors."""
    scales = (np.abs(matrix).max(1) / STEPS).clip(SMALLEST).astype(np.float32)
    integers = np.rint(matrix / scales[:, None]).clip(-STEPS, STEPS).astype(np.int8)
    return scales, integers, np.zeros(0, np.uint8)


def round_groups(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round a matrix to int4: each group has the factor, of some, with the least squared error."""
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -columns % GROUP))).reshape(rows, -1, GROUP)
    largest = np.abs(padded).max(2)
    scales = (largest.max(1) / (FEW_STEPS * FACTORS)).clip(SMALLEST).astype(np.float32)
    best, lowest, integers = np.ones(largest.shape, np.float32), np.full(largest.shape, np.inf), np.zeros(padded.shape, np.int8)
    for shrunk in SHRUNK:
        factors = np.rint(shrunk * largest / FEW_STEPS / scales[:, None]).clip(1, FACTORS).astype(np.float32)
        steps = (scales[:, None] * factors)[..., None]
        tried = np.rint(padded / steps).clip(-FEW_STEPS, FEW_STEPS)
        errors = np.square(tried * steps - padded).sum(2)
        better = errors < lowest
        best, lowest = np.where(better, factors, best), np.where(better, errors, lowest)
        integers = np.where(better[..., None], tried, integers).astype(np.int8)
    return scales, integers.reshape(rows, -1)[:, :columns], best.astype(np.uint8)


@dataclass(frozen=True)
class Change:
    """An int8 checkpoint as differences from a later one: a matrix is its likeness times what it becomes, plus differences.

    The integers of `stored` are the differences, in steps of `coarse`.
    """

    likenesses: tuple[float, ...]
    coarse: int
    stored: Rounded

    def apply(self, later: Rounded) -> Rounded:
        """Restore the checkpoint, as the page does."""
        integers = np.empty_like(self.stored.integers)
        predicted = _predict(later, self.stored.scales, self.likenesses)
        for (_, _, numbers, _), guess in zip(self.stored.layout.blocks(), predicted, strict=True):
            restored = guess + self.coarse * self.stored.integers[numbers].astype(np.float64)
            integers[numbers] = restored.clip(-STEPS, STEPS).astype(np.int8)
        return replace(self.stored, integers=integers)


def parse_change(layout: Mapping[str, Any], content: bytes, facts: Mapping[str, Any]) -> Change:
    """Read a change by its bytes and by what the page's JSON says of it."""
    return Change(tuple(facts["likenesses"]), facts["coarse"], parse_rounded(layout, content, "int8"))


def encode_change(earlier: Rounded, later: Rounded) -> Change:
    """Encode an int8 checkpoint as differences from a later one, which loses about as much as rounding to five bits."""
    likenesses = []
    for number in range(len(earlier.layout.matrices)):
        before, after = earlier.matrix(number).astype(np.float64), later.matrix(number).astype(np.float64)
        likenesses.append(float((before * after).sum() / max(np.square(after).sum(), SMALLEST)))
    differences = earlier.integers - np.concatenate(_predict(later, earlier.scales, likenesses))
    coarse = int(np.clip(np.rint(STEP_SHARE * differences.std()), FINEST, COARSEST))
    steps = np.rint(differences / coarse).astype(np.int8)
    return Change(tuple(likenesses), coarse, replace(earlier, integers=steps))


def _predict(later: Rounded, scales: np.ndarray, likenesses: Sequence[float]) -> list[np.ndarray]:
    """Return the integers (float64) of each matrix of an earlier checkpoint with some scales, by those of a later one."""
    predicted = []
    for likeness, (_, rows, numbers, shape) in zip(likenesses, later.layout.blocks(), strict=True):
        ratios = likeness * later.scales[rows].astype(np.float64) / scales[rows].astype(np.float64)
        guess = np.floor(later.integers[numbers].reshape(shape) * ratios[:, None] + 0.5)
        predicted.append(guess.clip(-STEPS, STEPS).reshape(-1))
    return predicted
