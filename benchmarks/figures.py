"""Make the pictures and the printed output in README and docs, all from one quick start: `make figures`.

It types README's own quick start, trains a second run with AdamW to compare it with, and takes pictures of the
pages in Chromium: some ten minutes on two cores. Output goes between the comments `<!-- output NAME -->` and
`<!-- end -->` of each page.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS, README = ROOT / "docs", ROOT / "README.md"
COLUMNS = 100
RUN = "quickstart"
SURPRISE = "The people of the United States have the right to expect that the Congress will not be moved by fear."

# Lines of the whole output that README shows: enough to know it again.
SHORT = (r"  (train|budget|result)  ",)
SHORT_SAMPLE = 2  # lines of the sample


def quick_start() -> list[str]:
    """Return the commands of README's quick start, in order."""
    block = re.search(r"## Quick start.*?```\n(.*?)```", README.read_text("utf-8"), re.S)
    if block is None:
        raise SystemExit("README.md has no block of commands under Quick start.")
    return [line for line in block[1].splitlines() if line.startswith("llamactl ")]


def run(command: str, home: Path) -> str:
    """Run a command with its data and runs under `home`; return what it prints, progress included."""
    print("$", command, flush=True)
    variables = {**os.environ, "LLAMACTL_HOME": str(home), "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(
        words, env=variables, cwd=home, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines = done.stdout.replace(f"{home}/", "").splitlines()
    return "\n".join(line.rstrip() for line in lines)  # tables are padded to the width


def take_picture(page: Path, picture: Path, width: int, height: int, dark: bool) -> None:
    """Draw a page in headless Chromium, `width` x `height` CSS pixels at twice the resolution."""
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    size = [f"--window-size={width},{height}", "--force-device-scale-factor=2", "--hide-scrollbars"]
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", scheme, *size]
    subprocess.run([*browser, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


def shorten(output: str) -> str:
    """Keep the lines that README shows, with dots for those left out in between; a wrapped line is cut at a comma."""
    kept: list[str] = []
    lines = output.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if any(re.match(pattern, line) for pattern in SHORT):
            kept.append(line.rpartition(", ")[0] if following.startswith(" " * 8) else line)
        elif kept and kept[-1] != "  ...":
            kept.append("  ...")
    return "\n".join(kept).rstrip(" .\n")


def shorten_sample(output: str) -> str:
    """Keep the beginning of the text, wrapped; the notes before it are left out."""
    text = output[output.index("California") :]
    return "\n".join(textwrap.wrap(" ".join(text.split()), COLUMNS)[:SHORT_SAMPLE]) + " ..."


def fill_in(blocks: dict[str, str]) -> None:
    """Write each block between its comments on every page that has them."""
    for page in (README, *DOCS.glob("*.md")):
        text = before = page.read_text("utf-8")
        for name, block in blocks.items():
            between = re.compile(rf"(<!-- output {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
            text = between.sub(lambda found, block=block: f"{found[1]}```\n{block}\n```\n{found[2]}", text)  # type: ignore[misc]
        if text != before:
            page.write_text(text, "utf-8")
            print("wrote", page.name)


def main() -> None:
    """Type the quick start and make everything that shows it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare, train, plot, sample = quick_start()
        printed = {prepare: run(prepare, home), train: run(f"{train} --run {RUN}", home)}
        printed |= {command: run(command, home) for command in (plot, sample)}
        run(f"{train} --run adamw --set optim.name=adamw", home)
        run(f"llamactl report {RUN} adamw --out report.html", home)
        run(f"llamactl surprise '{SURPRISE}' --run {RUN} --out surprise.html", home)
        shutil.copy(home / "runs" / RUN / "loss.png", DOCS / "loss.png")
        for suffix, dark in (("", False), ("-dark", True)):
            take_picture(home / "report.html", DOCS / f"report{suffix}.png", 1000, 1100, dark)
            take_picture(home / "surprise.html", DOCS / f"surprise{suffix}.png", 860, 260, dark)
        blocks = {words.split()[1]: f"$ {words}\n{text.strip()}" for words, text in printed.items()}
        fill_in(blocks | {"short": shorten(f"{printed[prepare]}\n{printed[train]}") + "\n\n" + shorten_sample(printed[sample])})


if __name__ == "__main__":
    main()
