"""How many tokens per second `llamactl serve` writes for some that ask at once, and how long the first token takes.

    python benchmarks/serve.py RUN --at-once 1 4 16

Each request continues a text of its own length by as many tokens. The server runs in a process of its own, as people start it.
"""

import argparse
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI


def main() -> None:
    """Print a row for each number of requests: the median of some rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    words = [sys.executable, "-m", "llamactl", "serve", options.model, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        client = OpenAI(base_url=f"{find_address(server)}/v1", api_key="none", max_retries=0)
        try:
            ask(client, 0, 8)  # what is done once
            print("| at once | tokens/s | first token, s |\n|---:|---:|---:|")
            for count in options.at_once:
                rounds = [measure(client, count, options.tokens) for _ in range(options.rounds)]
                rate, first = (statistics.median(each) for each in zip(*rounds, strict=True))
                print(f"| {count} | {rate:,.0f} | {first:.2f} |", flush=True)
        finally:
            server.terminate()


def find_address(server: "subprocess.Popen[str]") -> str:
    """Read what the server says until it names its address; raises RuntimeError where it ends."""
    assert server.stderr is not None
    for line in server.stderr:
        for word in line.split():
            if word.startswith("http://"):
                return word.rstrip("/.,")
    raise RuntimeError("the server has ended")


def measure(client: OpenAI, count: int, tokens: int) -> tuple[float, float]:
    """Ask so many times at once; return the tokens per second of all together, and the median time to a first token."""
    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda number: ask(client, number, tokens), range(count)))
    seconds = time.perf_counter() - started
    return sum(written for written, _ in answers) / seconds, statistics.median(first for _, first in answers)


def ask(client: OpenAI, number: int, tokens: int) -> tuple[int, float]:
    """Ask for a continuation; return how many tokens came and after how many seconds the first of them."""
    started, first, written = time.perf_counter(), 0.0, 0
    prompt = "The people of the United States " * (1 + number % 5)
    words = {"model": "", "prompt": prompt, "max_tokens": tokens, "seed": number, "stream_options": {"include_usage": True}}
    for part in client.completions.create(**words, stream=True):  # type: ignore[call-overload]
        first = first or time.perf_counter() - started
        written = part.usage.completion_tokens if part.usage else written
    return written, first


if __name__ == "__main__":
    main()
