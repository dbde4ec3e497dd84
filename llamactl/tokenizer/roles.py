"""Give a tokenizer what conversations need: tokens for the roles, and the template that writes them."""

import json

from llamactl.storage.records import to_json
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import CHAT_TEMPLATE, ROLE_TOKENS

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BEGIN = "{{ bos_token }}"


def add_roles(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the tokens of the roles, behind all others where it lacks them, and `CHAT_TEMPLATE`.

    The template of a tokenizer whose texts have no token before them names none: other programs would write another one there.
    """
    tree = json.loads(tokenizer.description)
    known = {token["content"]: token for token in tree.get("added_tokens", [])}
    missing = [name for name in ROLE_TOKENS if name not in known]
    for name in known.keys() & set(ROLE_TOKENS):
        known[name].update(FLAGS)
    new = [{"id": number, "content": name, **FLAGS} for number, name in enumerate(missing, tokenizer.vocab_size)]
    tree["added_tokens"] = [*tree.get("added_tokens", []), *new]
    extended = Tokenizer(to_json(tree))
    extended.start = tokenizer.start
    extended.chat_template = CHAT_TEMPLATE if tokenizer.start else CHAT_TEMPLATE.removeprefix(BEGIN)
    return extended
