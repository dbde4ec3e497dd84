"""Which token ends a text: what a model's files say, else the likeliest name."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken

from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import Tokenizer, load_tokenizer
from llamactl.tokenizer.text_end import MARK

NAMES = ("<|endoftext|>", "<|begin|>", "<|done|>", "<|EOT|>")
FIRST = 256


@pytest.fixture(params=["llamactl's own order", "another order"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a model with a vocabulary of bytes and four control tokens."""
    made = tokenizers.Tokenizer.from_str(bpe.byte_tokenizer().description)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    text = made.to_str() if request.param.startswith("llamactl") else made.to_str().replace("<|endoftext|>", "<|unused|>")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({"tokenizer_config.json": {"eos_token": "<|done|>"}}, 2),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|done|>", "lstrip": False}}}, 2),
        ({"tokenizer_config.json": {"eos_token": "<|done|>"}, "config.json": {"eos_token_id": FIRST + 3}}, 2),
        ({"tokenizer_config.json": {"eos_token": None}, "config.json": {"eos_token_id": FIRST + 2}}, 2),
        ({"config.json": {"eos_token_id": [FIRST + 2, FIRST + 3]}}, 2),
        ({"config.json": {"eos_token_id": None}, "generation_config.json": {"eos_token_id": FIRST + 2}}, 2),
        ({"config.json": {"eos_token_id": []}, "generation_config.json": {"eos_token_id": [FIRST + 3]}}, 3),
    ],
)
def test_a_model_s_files_say_what_ends_a_text(files: dict[str, Any], end: int, folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    made = load_tokenizer(str(folder))
    assert made.end == FIRST + end
    assert load_tokenizer(str(folder / "tokenizer.json")).digest == made.digest
    # A dataset keeps its tokenizer.json alone; other programs read it as before.
    assert Tokenizer(made.description).end == made.end
    text = "one <|done|> two"
    assert made.encode(text).tolist() == list(text.encode())
    assert tokenizers.Tokenizer.from_str(made.description).token_to_id(NAMES[end]) == made.end


@pytest.mark.parametrize(
    "files", [{}, {"tokenizer_config.json": {"eos_token": "<|unknown|>"}}, {"config.json": {"eos_token_id": 9}}]
)
def test_a_tokenizer_alone_is_judged_by_its_names(files: dict[str, Any], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    made = load_tokenizer(str(folder))
    assert made.name_of(made.end) == ("<|endoftext|>" if "<|endoftext|>" in made.description else "<|EOT|>")
    assert MARK not in made.description
