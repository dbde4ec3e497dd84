"""Ways to damage a file of an artifact, each drawn from a seed: what a disk, an editor, another program or a stranger does."""

import copy
import json
import os
import random
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

Damage = Callable[[Path, random.Random], None]

# What may stand in the place of any value.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**63) - 1, 10**12, 10**18, 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "x", "1", "../../../../etc/passwd", "/etc/passwd", "\x1b]52;c;eA==\x07",
    "a" * 100_000, "\x00", "\ud800", [], {}, [1], ["x"], {"a": 1}, [[]], [None],
)  # fmt: skip


def _replace(make: Callable[[Path], None]) -> Damage:
    def damage(path: Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


def _outside(path: Path) -> Path:
    """The same content in a place that the artifact must not lead to."""
    secret = path.parents[len(path.parts) - path.parts.index("home") - 2] / "outside"
    secret.write_bytes(path.read_bytes())
    return secret


def _link(path: Path, _: random.Random) -> None:
    secret = _outside(path)
    path.unlink()
    path.symlink_to(secret)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may have 107 bytes
        made.bind(path.name)
        os.chdir(before)


def _edit(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        path.write_bytes(change(path.read_bytes(), rng))

    return damage


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\xff"
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :]


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _sparse(path: Path, _: random.Random) -> None:
    os.truncate(path, 1 << 40)


STRUCTURAL: dict[str, Damage] = {
    "missing": lambda path, _: path.unlink(),
    "folder": _replace(Path.mkdir),
    "fifo": _replace(os.mkfifo),
    "link": _link,
    "dangling link": _replace(lambda path: path.symlink_to("nowhere")),
    "link to a device": _replace(lambda path: path.symlink_to("/dev/zero")),
    "link to itself": _replace(lambda path: path.symlink_to(path.name)),
    "socket": _replace(_socket),
    "sparse terabyte": _sparse,
}
BYTES: dict[str, Damage] = {
    "empty": _edit(lambda content, _: b""),
    "half": _edit(lambda content, rng: content[: rng.randrange(len(content) + 1)]),
    "flipped byte": _edit(_flip),
    "garbage": _edit(lambda _, rng: rng.randbytes(500)),
    "more at the end": _edit(lambda content, rng: content + rng.randbytes(9)),
    "UTF-16": _edit(lambda content, _: _decoded(content).encode("utf-16")),
    "BOM": _edit(lambda content, _: b"\xef\xbb\xbf" + content),
    "CRLF": _edit(lambda content, _: content.replace(b"\n", b"\r\n")),
    "NULs": _edit(lambda content, _: bytes(len(content))),
    "deep arrays": _edit(lambda content, _: b"[" * 200_000),
    "deep objects": _edit(lambda content, _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n"),
    "digits": _edit(lambda content, _: b"9" * 100_000 + b"\n"),
    "Latin-1": _edit(lambda content, _: content.replace(b'"', b'"\xe9', 1)),
}


def _places(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [here, *(place for key, value in inside for place in _places(value, (*here, key)))]


def mutated(tree: Any, rng: random.Random) -> Any:
    """A tree with one value replaced, removed, added or nested."""
    tree = copy.deepcopy(tree)
    # Deep places are many and alike (ids of a vocabulary): shallow ones are drawn as often.
    depth = rng.choice([0, 1, 1, 1, 2, 2, 3, 9])
    places = [place for place in _places(tree) if len(place) <= depth]
    place = rng.choice([place for place in places if len(place) == max(map(len, places))])
    if not place:
        return rng.choice(VALUES)
    *above, key = place
    parent = tree
    for step in above:
        parent = parent[step]
    match rng.choice(["replace", "replace", "replace", "remove", "add", "nest"]):
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, dict):
            parent[rng.choice(["extra", "", "\x1b[2J", "__proto__"])] = rng.choice(VALUES)
        case "nest":
            parent[key] = [parent[key]]
        case _:
            parent[key] = rng.choice(VALUES)
    return tree


def _json(value: Any) -> bytes:
    import sys

    sys.set_int_max_str_digits(0)
    return json.dumps(value).encode()


def _mutate_json(content: bytes, rng: random.Random) -> bytes:
    return _json(mutated(json.loads(content), rng)) + b"\n"


def _mutate_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    place = rng.choice([0, len(lines) - 1, rng.randrange(len(lines))])
    if rng.random() < 0.2:
        lines[place] = rng.choice([b"", b"null", b"[]", b"1", b'"x"', b"{}", lines[place][:-9], lines[place] * 2, b"\xff"])
    else:
        lines[place] = _json(mutated(json.loads(lines[place]), rng))
    return b"\n".join(lines) + b"\n"


def _duplicate_key(content: bytes, rng: random.Random) -> bytes:
    tree = json.loads(content.splitlines()[0] if b'"kind"' in content[:20] else content)
    key = rng.choice(list(tree))
    return b"{" + _json(key) + b": " + _json(rng.choice(VALUES)) + b", " + _json(tree)[1:] + b"\n"


def _mutate_toml(content: bytes, rng: random.Random) -> bytes:
    tree = mutated(tomllib.loads(content.decode()), rng)
    try:
        return tomli_w.dumps(tree if isinstance(tree, dict) else {"preset": tree}).encode()
    except (TypeError, UnicodeEncodeError):  # TOML has no null and no surrogates
        return content + b"\nx = null\n"


def _mutate_header(content: bytes, rng: random.Random) -> bytes:
    """Of a safetensors file: the header's length in 8 bytes, JSON, tensors."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    choice = rng.randrange(6)
    if choice == 0:
        return rng.choice([0, 1, 2**32, 2**63, 2**64 - 1, length + 9]).to_bytes(8, "little") + content[8:]
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    if choice == 1:
        header[name]["dtype"] = rng.choice(["I64", "I32", "F64", "BF16", "F16", "U8", "BOOL", "F8_E4M3", "X", 3])
    elif choice == 2:
        header[name]["data_offsets"] = header[other]["data_offsets"]
    elif choice == 3:
        header[rng.choice(["x", "", "../x", "model.layers.0.x", f"{name}:exp_avg"])] = header.pop(name)
    elif choice == 4:
        return _numbers(content, 8 + length, rng)
    else:
        header = mutated(header, rng)
    written = _json(header)
    return len(written).to_bytes(8, "little") + written + data


def _numbers(content: bytes, start: int, rng: random.Random) -> bytes:
    """NaN, infinity or zeros in the place of all tensors."""
    number = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", bytes(4), b"\xff\xff\x7f\x7f"])
    return content[:start] + number * ((len(content) - start) // 4)


def _wide_type(content: bytes, _: random.Random) -> bytes:
    """All tensors as 64-bit integers, whose bytes are there."""
    length = int.from_bytes(content[:8], "little")
    header, at = json.loads(content[8 : 8 + length]), 0
    for name, told in header.items():
        if name != "__metadata__":
            size = 8
            for dimension in told["shape"]:
                size *= dimension
            told |= {"dtype": "I64", "data_offsets": [at, at + size]}
            at += size
    written = _json(header)
    return len(written).to_bytes(8, "little") + written + bytes(at)


def _mutate_npy(content: bytes, rng: random.Random) -> bytes:
    headers = [
        b"{'descr': '|O', 'fortran_order': False, 'shape': (10,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (9,), }",
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,), }",
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (-1,), }",
        b"{'descr': '<u2', 'fortran_order': 1, 'shape': 1}",
        b"{'descr': '<u2', 'shape': (1,), }",
        b"{" * 90,
        b"9" * 100,
    ]
    header = rng.choice(headers)
    return content[:10] + header.ljust(117) + b"\n" + content[128:]


def _zeroed(content: bytes, _: random.Random) -> bytes:
    return content[:128] + bytes(len(content) - 128)


def _ids(content: bytes, _: random.Random) -> bytes:
    return content[:128] + b"\xff" * (len(content) - 128)


JSON: dict[str, Damage] = {
    **{f"mutated {number}": _edit(_mutate_json) for number in range(12)},
    "duplicate key": _edit(_duplicate_key),
}
KINDS: dict[str, dict[str, Damage]] = {
    ".json": JSON,
    ".toml": {f"mutated {number}": _edit(_mutate_toml) for number in range(14)},
    ".jsonl": {**{f"mutated {number}": _edit(_mutate_line) for number in range(16)}, "duplicate key": _edit(_duplicate_key)},
    ".safetensors": {**{f"mutated {number}": _edit(_mutate_header) for number in range(16)}, "64 bits": _edit(_wide_type)},
    ".npy": {**{f"header {number}": _edit(_mutate_npy) for number in range(6)}, "zeros": _edit(_zeroed), "ids": _edit(_ids)},
}


def damages(file: str) -> dict[str, Damage]:
    """All ways to damage a file of this name."""
    return {**STRUCTURAL, **BYTES, **KINDS.get(Path(file).suffix, {})}
