"""GPT-2's alphabet: a printable character for each byte, in which byte-level tokenizers spell their tokens."""


def _printable_bytes() -> dict[str, int]:
    """Return the byte of each character of GPT-2's alphabet, printable ones for all 256 bytes (openai/gpt-2, encoder.py)."""
    # Bytes that are printable in Latin-1 stand for themselves, the others have the characters from U+0100 on.
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + k): byte for k, byte in enumerate(others)}


BYTE_OF = _printable_bytes()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def spell(token: str) -> bytes:
    """Return the bytes of a token in GPT-2's alphabet; a character that is not of it stands for itself."""
    return b"".join(bytes([BYTE_OF[each]]) if each in BYTE_OF else each.encode() for each in token)
