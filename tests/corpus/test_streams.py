"""Bytes that are no text, and half characters that JSON spells, cost their document."""

from pathlib import Path

import pytest

from llamactl.corpus import readers
from llamactl.corpus.unreadable import Unreadable


@pytest.mark.parametrize("half", [r"\ud83d", r"\ude00", r"\udc41", r"\udbff", r"\ud83d \ude00"])
@pytest.mark.parametrize("encoding", ["", "utf_16_le"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_a_bad_byte_beside_half_a_character_is_unreadable(half: str, encoding: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [f'{{"text": "caf# {half} au lait"}}', '{"text": "whole"}']
    text = f"[{', '.join(rows)}]" if name == "x.json" else "\n".join(rows)
    bad, mark = (b"\x00\xd8", b"\xff\xfe") if encoding else (b"\xe9", b"")
    used = encoding or "utf_8"
    path.write_bytes(mark + text.encode(used).replace("#".encode(used), bad))
    (part,) = readers.split_into_parts(path)
    first, second = readers.read_part(part, "text")
    assert isinstance(first, Unreadable)
    assert first.lost > 10
    assert second == "whole"
