"""Give a tokenizer what conversations need: tokens for the roles, and the template that writes them."""

import json

from llamactl.storage.records import to_json
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import BEGIN, CHAT_TEMPLATE, ROLE_TOKENS
from llamactl.tokenizer.library import opening_rule

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def add_roles(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the tokens of the roles, which it gets behind all others, and the template of conversations."""
    tree = json.loads(tokenizer.description)
    known = {token["content"]: token for token in tree.get("added_tokens", [])}
    missing = [name for name in ROLE_TOKENS if name not in known]
    for name in known.keys() & set(ROLE_TOKENS):
        known[name].update(FLAGS)
    new = [{"id": number, "content": name, **FLAGS} for number, name in enumerate(missing, tokenizer.vocab_size)]
    tree["added_tokens"] = [*tree.get("added_tokens", []), *new]
    extended = Tokenizer(to_json(tree))
    if tokenizer.start not in ((), extended.start):
        # Another file said so, as add_bos_token does in tokenizer_config.json, and this one stands alone in a dataset.
        tree["post_processor"] = opening_rule(tokenizer.name_of(tokenizer.start[0]), tokenizer.start[0])
        extended = Tokenizer(to_json(tree))
    extended.chat_template = chat_template(extended)
    return extended


def chat_template(tokenizer: Tokenizer) -> str:
    """Return the template of conversations for a tokenizer.

    Where no token begins a text it names none, as other programs would write the one that ends a text there.
    """
    return CHAT_TEMPLATE if tokenizer.start else CHAT_TEMPLATE.removeprefix(BEGIN)
