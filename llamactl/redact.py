"""Remove secrets that users type from everything that is stored, because a run's folder may be shared."""

import re
from collections.abc import Sequence

HIDDEN = "***"

# Formats of the access tokens of well-known services.
TOKENS = re.compile(
    r"\b(?:hf_\w{8,}|sk-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[pousr]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|xox[abprs]-[\w-]{8,}"
    r"|AIza[\w-]{20,}|npm_\w{8,}|pypi-[\w-]{8,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|(?:wandb_v\d_)\w{8,})"
)
# 32 or more hexadecimal digits, or 40 or more mixed letters and digits, are a key; 64 hexadecimal digits are a sha256.
KEYS = re.compile(
    r"(?<![\w/.@-])(?:(?![0-9a-f]{64}\b)[0-9a-fA-F]{32,}|(?=\w*[a-z])(?=\w*[A-Z])(?=\w*\d)[A-Za-z0-9_-]{40,})(?![\w/.-])"
)
PASSWORD_IN_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^/\s@]+@")
SECRET_NAME = (
    r"(?:[\w.-]*(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|auth|bearer)[\w-]*)"
)
# These are not secrets: `--tokens 256k`, `tokens_per_step=1`, `sample_tokens=4` (counts) and `--tokenizer gpt2` (a name).
HARMLESS_NAME = r"(?![\w.-]*(?:tokens|tokenizer))"
ASSIGNED = re.compile(rf"(?i)(?<![\w.-])((?:--?)?{HARMLESS_NAME}{SECRET_NAME}[=:]\s*)[^\s\"']+")
ASSIGNMENT = re.compile(rf"(?is)((?:--?)?{HARMLESS_NAME}{SECRET_NAME}[=:]).+")
BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
OPTION = re.compile(rf"(?i)--?{HARMLESS_NAME}{SECRET_NAME}")
ENVIRONMENT = re.compile(r"(\b(?:[A-Z0-9]+_)*(?:KEY|TOKEN|SECRET|PASSWORD|PASS|PWD)=)[^\s\"']+")


def redact_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with each apparent secret replaced by ***."""
    shown = []
    for number, word in enumerate(words):
        follows = number > 0 and OPTION.fullmatch(words[number - 1]) is not None
        assigned = ASSIGNMENT.fullmatch(word)
        shown.append(HIDDEN if follows else f"{assigned[1]}{HIDDEN}" if assigned else redact_text(word))
    return shown


def redact_text(text: str) -> str:
    """Return the text with each apparent secret replaced by ***: tokens, keys, passwords in URLs, SECRET=value."""
    for pattern, instead in (
        (PASSWORD_IN_URL, rf"\1{HIDDEN}@"),
        (ENVIRONMENT, rf"\1{HIDDEN}"),
        (ASSIGNED, rf"\1{HIDDEN}"),
        (BEARER, rf"\1 {HIDDEN}"),
        (TOKENS, HIDDEN),
        (KEYS, HIDDEN),
    ):
        text = pattern.sub(instead, text)
    return text
