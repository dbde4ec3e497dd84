"""Compile `native/decode.cpp` on first use, keep the library in the user's cache folder, and load it.

There is one library for each source, compiler, set of flags and kind of processor: machines that share a home folder have one
each. Those that none of them used for months are removed when another one is compiled. Where none can be made,
`load_library` says why, and decoding takes PyTorch's way.
"""

import ctypes
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llamactl.errors import UsageError
from llamactl.storage.home import cache_folder

SOURCE = Path(__file__).with_name("native") / "decode.cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++20", "-O3", "-shared", "-fPIC")
OPENMP, OWN_THREADS = "-fopenmp", "-pthread"  # Apple's compiler has no OpenMP
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
TIME_LIMIT = 300.0  # seconds: it takes two
UNUSED = 90 * 86_400.0  # seconds after its last use that a library is kept
CPUINFO = Path("/proc/cpuinfo")
INSTALL = "Install a C++ compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) for several times the speed."


class BuildError(Exception):
    """No library could be made; the message says why."""


@dataclass(frozen=True)
class Library:
    """The loaded library; None where there is none. `notice` tells people what is amiss, if anything is."""

    functions: ctypes.CDLL | None
    notice: str = ""


@cache
def load_library() -> Library:
    """Load the library of this machine, compiled now if it is not in the cache folder; once per process."""
    try:
        command = find_compiler()
        return _load_or_build(command, cache_folder() / f"decode-{library_key(command)}.so")
    except (BuildError, OSError, UsageError) as error:
        return Library(None, f"Decoding by PyTorch, which is slower: {' '.join(str(error).split())}")


def find_compiler() -> list[str]:
    """Return the command that compiles, from CXX or the first of the usual ones; raises BuildError."""
    try:
        wanted = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX is no command: {error}.") from error
    command = wanted or [name for name in COMPILERS if shutil.which(name)][:1]
    if not command or not shutil.which(command[0]):
        raise BuildError(f"the compiler {command[0]} (CXX) is missing." if command else f"there is no compiler. {INSTALL}")
    return [*command, *FLAGS, NATIVE]


def library_key(command: list[str]) -> str:
    """Return a hash of all that a library depends on: source, compiler, flags, processor; raises BuildError."""
    version = _run([command[0], "--version"])
    parts = (SOURCE.read_bytes(), shlex.join(command).encode(), version.encode(), describe_processor().encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]


def describe_processor() -> str:
    """Return the model and the instructions of the processor, as far as the system tells."""
    lines: list[str] = []
    with suppress(OSError):
        lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    names = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part")
    first = {name: next((line for line in lines if line.partition(":")[0].strip() == name), "") for name in names}
    return "\n".join([platform.machine(), platform.processor(), *first.values()])


def _load_or_build(command: list[str], path: Path) -> Library:
    """Load a library from the cache folder, or compile it, into a temporary folder where the cache can't be written."""
    again = "The decoding step is compiled again each time:"
    notice = ""
    if _is_sound(path):
        with suppress(OSError):  # the folder of another user
            _note_use(path)
        try:
            return Library(ctypes.CDLL(str(path)))
        except OSError as error:  # a disk from which nothing may be executed
            notice = f"{again} {error}."
    with tempfile.TemporaryDirectory(prefix="llamactl-") as folder:
        built = Path(folder) / path.name
        _compile(command, built)
        try:
            _keep(built, path)
            remove_unused(path.parent)
        except OSError as error:
            notice = f"{again} {path.parent} can't be written ({error.strerror})."
        try:
            # The one that was just made, as another process may put its own into the cache meanwhile.
            return Library(ctypes.CDLL(str(built)), notice)
        except OSError:  # a folder for temporary files from which nothing may be executed
            return Library(ctypes.CDLL(str(path)))


def _compile(command: list[str], target: Path) -> None:
    """Compile the library, with threads of its own where there is no OpenMP; raises BuildError."""
    try:
        _run([*command, OPENMP, str(SOURCE), "-o", str(target)])
    except BuildError:
        _run([*command, OWN_THREADS, str(SOURCE), "-o", str(target)])


def _is_sound(path: Path) -> bool:
    """Check that a library is whole, by the hash that was written after it: loading a part of one can end the process."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sha256").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _note_use(path: Path) -> None:
    """Set the times of a library and its hash to now, by which `remove_unused` knows them; raises OSError."""
    for file in (path, path.with_suffix(".sha256")):
        os.utime(file)


def remove_unused(folder: Path) -> None:
    """Remove libraries that no machine loaded for `UNUSED` seconds, their hashes, and drafts that are as old."""
    # Several processes may do so at once, and one that has a library open keeps it.
    for pattern in ("decode-*", ".decode-*"):
        for file in folder.glob(pattern):
            with suppress(OSError):
                if time.time() - file.lstat().st_mtime > UNUSED:
                    file.unlink()


def _keep(built: Path, path: Path) -> None:
    """Copy a library and its hash into the cache folder, each of them at once; raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = built.read_bytes()
    for target, data in ((path, content), (path.with_suffix(".sha256"), hashlib.sha256(content).hexdigest().encode())):
        draft = path.parent / f".{target.name}-{secrets.token_hex(8)}"  # process numbers repeat on other machines
        try:
            draft.write_bytes(data)
            draft.replace(target)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def _run(command: list[str]) -> str:
    """Run a compiler and return its output; raises BuildError with the last line that it wrote."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler {command[0]} does not run ({type(error).__name__}).") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"the compiler {command[0]} failed{': ' + said[0].strip() if said else ''}.")
    return done.stdout
