"""Files that make a folder of weights a Hugging Face model: config.json, tokenizer and generation settings."""

import json
from pathlib import Path

from llamactl.checkpoint.format import checkpoint_root, is_foreign, locate_file
from llamactl.checkpoint.hf_config import hf_config
from llamactl.config.schema import ModelConfig
from llamactl.storage.records import parse_json, read_object, read_text, to_json
from llamactl.tokenizer.bpe import Tokenizer, read_tokenizer
from llamactl.tokenizer.chat import find_turn_end
from llamactl.tokenizer.library import LibraryTokenizer, opening_rule
from llamactl.tokenizer.text_end import read_end

CHAT_TEMPLATE = "chat_template.jinja"  # where transformers 5 stores it; checkpoints have it in tokenizer_config.json


def description_files(config: ModelConfig, tokenizer: Tokenizer, dtype: str = "float32") -> dict[str, str]:
    """Build the text of each file that transformers needs besides weights stored as `dtype`, by file name."""
    end, begin = tokenizer.end, (tokenizer.start or (tokenizer.end,))[0]
    ids = {"bos_token_id": begin, "eos_token_id": end}
    # Batches of prompts are filled up with the end-of-text token, in front, so that all continue at their end.
    # An answer ends its turn, a text ends with the end-of-text token.
    stops = [end, turn] if (turn := find_turn_end(tokenizer)) not in (None, end) else end
    generation = {
        **ids,
        "eos_token_id": stops,
        "pad_token_id": end,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 50,
        "max_new_tokens": 200,
    }
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": tokenizer.name_of(begin),
        "eos_token": tokenizer.name_of(end),
        "pad_token": tokenizer.name_of(end),
        "unk_token": tokenizer.name_of(end),
        "padding_side": "left",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
    }
    trees = {
        "config.json": hf_config(config, dtype) | ids,
        "generation_config.json": generation,
        "tokenizer_config.json": tokens,
    }
    texts = {name: to_json(tree, indent=2) + "\n" for name, tree in trees.items()}
    return {**texts, "tokenizer.json": say_opening(tokenizer)}


def say_opening(tokenizer: Tokenizer) -> str:
    """Return the tokenizer.json with a rule that texts begin as documents do here, where its own says something else."""
    # Another file may have said so, as add_bos_token does in tokenizer_config.json.
    if tokenizer.start in ((), tokenizer.library.parts.start if tokenizer.library else ()):
        return tokenizer.description
    begin = tokenizer.start[0]
    tree = json.loads(tokenizer.description)
    tree["post_processor"] = opening_rule(tokenizer.name_of(begin), begin)
    return to_json(tree)


def read_chat_template(folder: Path) -> str:
    """Return the Jinja template by which a model's conversations become text, as transformers finds it; empty without one.

    `tokenizer/chat.py` runs it, in a sandbox. Raises DataError for a file that can't be read.
    """
    path = folder / CHAT_TEMPLATE
    if path.exists():
        return read_text(path.resolve())
    path = folder / "tokenizer_config.json"
    found = read_object(path.resolve()).get("chat_template") if path.exists() else None
    # Transformers 4 could store several of them, one of which is called "default".
    for each in found if isinstance(found, list) else ():
        if isinstance(each, dict) and each.get("name") == "default":
            found = each.get("template")
    return found if isinstance(found, str) else ""


def read_template_names(folder: Path) -> dict[str, str]:
    """Return the control tokens that a chat template can name, bos_token and so on, as tokenizer_config.json has them."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path.resolve()) if path.exists() else {}
    found = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    names = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: token for name, token in names.items() if isinstance(token, str)}


def read_model_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint, or of another program's folder, whose files say what begins and ends a text.

    Raises DataError.
    """
    if not is_foreign(path):
        return read_tokenizer(path / "tokenizer.json", checkpoint_root(path))
    tokenizer = read_tokenizer(locate_file(path, "tokenizer.json"), end=read_end(path))
    tokenizer.start = read_opening(path, tokenizer)
    return tokenizer


def read_opening(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that transformers puts before a text with the tokenizer of a folder that another program saved."""
    library = tokenizer.library or LibraryTokenizer(tokenizer.description, parse_json(tokenizer.description))
    path = folder / "tokenizer_config.json"
    settings = read_object(path.resolve()) if path.exists() else {}
    # A rule in tokenizer.json holds; without one, transformers 5 obeys add_bos_token.
    name = settings.get("bos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if library.parts.start or not settings.get("add_bos_token") or not isinstance(name, str):
        return library.parts.start
    begin = library.find_id(name)
    return () if begin is None else (begin,)
