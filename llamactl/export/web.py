"""Export a model as one HTML file that writes by itself: weights, tokenizer and an engine in plain JavaScript, no network.

The parts of the page are in web_page/. Its content security policy names the one script and the one style by their hashes and
forbids every request; the script writes text only as text. So nothing that a run or a model says can become markup.
"""

import base64
import hashlib
import html
import re
import zlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llamactl import DISTRIBUTION, __version__
from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.hf_config import check_published, find_architecture
from llamactl.checkpoint.select import describe_model
from llamactl.config.parameters import num_params
from llamactl.config.schema import ModelConfig
from llamactl.errors import DataError, UsageError, UserError
from llamactl.escape import embed_json, escape_control_chars
from llamactl.export.publish import name_export, publish_files
from llamactl.export.web_measure import HeldOut, dataset_name, find_held_out
from llamactl.export.web_weights import SMALLEST, Change, Kind, Rounded, encode_change, parse_change, parse_rounded, round_model
from llamactl.model.llama import Llama, rotary_frequencies
from llamactl.runs.run_dir import run_of
from llamactl.runs.summary import read_evaluation
from llamactl.storage.records import parse_json, to_json
from llamactl.tokenizer.bpe import Tokenizer

LARGEST = 200_000_000  # parameters: a page of 250 MB, which writes some two tokens per second
LONGEST = 8_192  # tokens of context: keys and values are kept for all of it
CHUNK = 24 << 20  # characters of a text node, of which browsers allow no more than some hundred million
PROMPT = "The "  # where no held-out text is at hand
# Largest difference between a stored and a trained weight, as a share of the largest absolute value in its row. With int4 a
# group's largest weight may be cut to four fifths, where that makes the others more exact.
TOLERANCES = {"int8": 4e-3, "int4": 0.21}
ENGINE, PAGE = ("tokenizer.js", "engine.js", "weights.js", "jobs.js"), ("tokens.js", "page.js")
BLOB = re.compile(r'<script type="text/plain" class="blob" data-number="(\d+)">([A-Za-z0-9+/=]*)</script>')
ABOUT = re.compile(r'<script type="application/json" id="about">(.*?)</script>')


class Stored(NamedTuple):
    """A checkpoint of the page: what the run said of it, and its bytes before compression."""

    facts: dict[str, Any]
    content: bytes


def export_web(path: Path, into: Path, kind: Kind = "int8", checkpoints: int = 1) -> Path:
    """Write `into`/NAME-stepN-KIND.html and return its path; with several checkpoints, earlier ones of the run as well.

    Raises DataError for a model that the page can't compute exactly or that is too large for one, UsageError for checkpoints
    that there are not.
    """
    model, tokenizer, state = checkpoint_io.load_model(path, torch.device("cpu"))
    check_fits(model.config, tokenizer)
    earlier = earlier_checkpoints(path, state.step, checkpoints, kind)
    held_out = find_held_out(path, model.config, tokenizer)
    last = round_model(model, tokenizer.vocab_size, kind)
    stored = [Stored(describe_checkpoint(path, state, held_out, last, model.config), last.to_bytes())]
    stored += list(encode_checkpoints(earlier, last, tokenizer, held_out))
    about = describe_page(path, state, model, tokenizer, kind, held_out)
    about |= {"layout": {"vectors": last.layout.vectors, "matrices": last.layout.matrices}}
    about |= {"checkpoints": [each.facts for each in stored]}
    blobs = [spell_tokens(tokenizer), *(each.content for each in stored)]
    file = into / f"{name_export(path, state, kind)}.html"
    with publish_files(into, file.name) as draft:
        draft.write(file.name, [render_page(about, blobs).encode()])
        check(draft.path / file.name, about, blobs, model)
    return file


def check_fits(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise DataError for a model or a tokenizer that the page does not compute exactly, or that is too large."""
    check_published(config, "the page")
    if tokenizer.library is not None:
        why = "The page splits text as GPT-2 and llamactl's own vocabularies do, and this one does so in another way."
        raise DataError("This tokenizer can't be written into a page.", why, "Export for other programs: llamactl export hf")
    if num_params(config) > LARGEST:
        what = f"A model of {num_params(config):,} parameters is too large for a page."
        why = f"Up to {LARGEST:,} a browser writes with it; this one would take minutes for a sentence."
        raise DataError(what, why, "Export for llama.cpp: llamactl export gguf --type q8_0")


def earlier_checkpoints(path: Path, step: int, count: int, kind: Kind) -> list[Path]:
    """Return up to `count` - 1 earlier checkpoints of a run, from all over it, newest first; raises UsageError without any."""
    if count == 1:
        return []
    if kind != "int8":
        raise UsageError(
            "Several checkpoints need --type int8.", "Earlier ones are stored as differences of its weights.", "Leave one out."
        )
    run = run_of(path)
    steps = [each for each in run.steps() if each < step] if run else []
    if run is None or not steps:
        fix = "Keep them while it trains: llamactl train --set train.keep_last=12"
        raise UsageError("There is no earlier checkpoint.", f"{path.absolute().name} is the first that was kept.", fix)
    places = np.linspace(0, len(steps), min(count, len(steps) + 1)).round().astype(int)[:-1]
    return [run.checkpoint(steps[place]) for place in reversed(places)]


def encode_checkpoints(
    earlier: Sequence[Path], last: Rounded, tokenizer: Tokenizer, held_out: HeldOut | None
) -> "list[Stored]":
    """Encode checkpoints, newest first, each as differences from the one after it; raises DataError for another shape."""
    stored, later = [], last
    for path in earlier:
        try:
            model, own, state = checkpoint_io.load_model(path, torch.device("cpu"))
        except (UserError, OSError):
            if path.exists():
                raise
            continue  # pruned meanwhile, as the run is training
        rounded = round_model(model, own.vocab_size, "int8")
        if rounded.layout != last.layout or not own.is_same(tokenizer):
            raise DataError(f"{path} is of another shape than the last checkpoint.", "It can't be stored as a difference.")
        change: Change = encode_change(rounded, later)
        later = change.apply(later)
        facts = describe_checkpoint(path, state, held_out, later, model.config)
        facts |= {"coarse": change.coarse, "likenesses": change.likenesses}
        stored.append(Stored(facts, change.stored.to_bytes()))
    return stored


def describe_checkpoint(
    path: Path, state: checkpoint_format.State, held_out: HeldOut | None, rounded: Rounded, config: ModelConfig
) -> dict[str, Any]:
    """Return what the page says of a checkpoint; bits per byte are those of the weights in the page."""
    evaluation = read_evaluation(path, state.step)
    return {
        "step": state.step,
        "tokens": state.tokens,
        "loss": evaluation.get("loss", state.validation_loss),
        "bitsPerByte": held_out.bits_per_byte(rounded.to_model(config)) if held_out else None,
        "sha256": hash_integers(rounded),
    }


def describe_page(
    path: Path, state: checkpoint_format.State, model: Llama, tokenizer: Tokenizer, kind: Kind, held_out: HeldOut | None
) -> dict[str, Any]:
    """Return what the page says of the model, and what its engine has to know; all text is safe to show."""
    config = model.config
    foreign = checkpoint_format.is_foreign(path)
    return {
        "format": 1,
        "name": escape_control_chars(describe_model(path, state).partition(" at step ")[0]),
        "architecture": find_architecture(config).name.removesuffix("ForCausalLM"),
        "parameters": num_params(config.model_copy(update={"vocab_size": tokenizer.vocab_size})),
        "trained": not foreign,
        "dataset": escape_control_chars(dataset_name(path)),
        "heldOutTokens": held_out.tokens if held_out else 0,
        "bitsPerByteBefore": held_out.bits_per_byte(model) if held_out else None,
        "prompt": escape_control_chars(held_out.opening if held_out and held_out.opening else PROMPT),
        "type": kind,
        "ids": tokenizer.vocab_size,
        "start": list(tokenizer.start),
        "end": tokenizer.end,
        "shape": describe_shape(config, tokenizer.vocab_size),
        "install": f"pip install {DISTRIBUTION}",
        "version": __version__,
    }


def describe_shape(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Return the shape of a model as the engine reads it, with the rotary frequencies."""
    return {
        "layers": config.n_layers,
        "dim": config.dim,
        "heads": config.n_heads,
        "kvHeads": config.n_kv_heads,
        "headDim": config.head_dim,
        "ffn": config.ffn_dim,
        "context": min(config.context, LONGEST),
        "vocab": vocab_size,
        "eps": config.norm_eps,
        "frequencies": rotary_frequencies(config, torch.device("cpu")).tolist(),
        "linear": 1.0 if config.rope_original_context else config.rope_scaling,
    }


def spell_tokens(tokenizer: Tokenizer) -> bytes:
    """Return the length of each id (uint16) and the bytes of all of them; raises DataError for one that is too long."""
    spelled = [tokenizer.decode_bytes([number]) for number in range(tokenizer.vocab_size)]
    longest = max(map(len, spelled))
    if longest >= 1 << 16:
        raise DataError("This tokenizer can't be written into a page.", f"It has a token of {longest:,} bytes.")
    return np.array([len(each) for each in spelled], dtype="<u2").tobytes() + b"".join(spelled)


def render_page(about: dict[str, Any], blobs: Sequence[bytes]) -> str:
    """Render the page: its data as escaped JSON and base64, its policy with the hashes of its script and style."""
    engine, script, style = _part(*ENGINE), _part(*PAGE), _part("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(engine)} {_hash(script)}; style-src {_hash(style)}; "
        "worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(about["name"], quote=True),
        "style": style,
        "about": embed_json(about),
        "blobs": "\n".join(_script(number, chunk) for number, blob in enumerate(blobs) for chunk in _chunks(blob)),
        "engine": engine,
        "script": script,
    }
    # In one pass, so that what is put in is not searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("index.html"))


def _script(number: int, chunk: str) -> str:
    return f'<script type="text/plain" class="blob" data-number="{number}">{chunk}</script>'


def _chunks(blob: bytes) -> list[str]:
    # Rounded weights have no repeated strings; Huffman codes alone are smaller, and made in a tenth of the time.
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    text = base64.b64encode(packer.compress(blob) + packer.flush()).decode()
    return [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(*names: str) -> str:
    return "\n".join(files(__package__).joinpath("web_page", name).read_text("utf-8") for name in names)


def read_page(text: str) -> tuple[dict[str, Any], list[bytes]]:
    """Read a page back: what it says of the model, and its blobs; raises DataError where that is not possible."""
    chunks: dict[int, str] = {}
    for number, chunk in BLOB.findall(text):
        chunks[int(number)] = chunks.get(int(number), "") + chunk
    try:
        blobs = [zlib.decompress(base64.b64decode(chunks[number])) for number in range(len(chunks))]
        (about,) = ABOUT.findall(text)
        return parse_json(about), blobs
    except (ValueError, KeyError, zlib.error) as error:
        raise DataError("This is not a page of a model.", "Its data can't be read.") from error


def check(file: Path, about: dict[str, Any], blobs: Sequence[bytes], model: Llama) -> None:
    """Read the file back; raises DataError unless all is as it was, and each weight within half a step of the model's."""
    found, read = read_page(file.read_text("utf-8"))
    if read != blobs or found != parse_json(to_json(about)):
        raise DataError(f"{file} is not the model.", "It was written wrongly.")
    last = parse_rounded(found["layout"], read[1], found["type"])
    _check_hashes(found, read, last)
    weights = model.state_dict()
    for name, stored in last.to_model(model.config).state_dict().items():
        trained = weights[name][: len(stored)]
        bound = trained.abs().amax(-1, keepdim=True) * (TOLERANCES[found["type"]] if stored.ndim == 2 else 0.0)
        if not bool(((stored - trained).abs() <= bound + SMALLEST).all()):
            raise DataError(f"{name} in {file} is not the model's.", "It was written wrongly.")


def _check_hashes(about: dict[str, Any], blobs: Sequence[bytes], last: Rounded) -> None:
    """Restore each checkpoint as the page does; raises DataError where its integers are not those that were measured."""
    restored = last
    for facts, blob in zip(about["checkpoints"], blobs[1:], strict=True):
        if "coarse" in facts:  # all but the last of the run
            restored = parse_change(about["layout"], blob, facts).apply(restored)
        if hash_integers(restored) != facts["sha256"]:
            raise DataError(
                f"The checkpoint of step {facts['step']:,} in the page is not the run's.", "It was written wrongly."
            )


def hash_integers(model: Rounded) -> str:
    """Return the sha256 of the integers of a model."""
    return hashlib.sha256(model.integers.tobytes()).hexdigest()
