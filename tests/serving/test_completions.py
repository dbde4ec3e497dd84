"""OpenAI's completions, asked for by OpenAI's own client: whole and streamed, at once, cancelled, and wrong."""

import http.client
import json
import math
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch

from llamactl.checkpoint.io import load_model
from llamactl.corpus.dataset import Dataset
from llamactl.inference.generate import Request, generate_samples
from llamactl.model.decode import Sampler
from llamactl.runs.run_dir import RunDir
from llamactl.serving.scheduler import Scheduler
from tests.serving.conftest import serving

REQUESTS = int(os.environ.get("LLAMACTL_REQUESTS", "2400"))  # of the load test


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def post(address: str, body: Any, path: str = "/v1/completions", **headers: str) -> tuple[int, Any]:
    """Send a body as it is; return the status and the answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def test_greedy_text_is_that_of_sample(address: str, run: RunDir) -> None:
    model, tokenizer, _ = load_model(run.checkpoint(2), torch.device("cpu"))
    (*_, expected) = generate_samples(model, tokenizer, Request(("The people",), 12, pick=Sampler(temperature=0)))
    found = client_of(address).completions.create(model="served", prompt="The people", max_tokens=12, temperature=0)
    assert found.choices[0].text == expected[0].text
    assert found.usage is not None
    assert found.usage.completion_tokens <= 12
    assert found.choices[0].finish_reason in ("length", "stop")


def test_a_stream_adds_up_to_the_whole(address: str) -> None:
    words: dict[str, Any] = {"model": "served", "prompt": "It is", "max_tokens": 20, "seed": 7, "n": 2}
    client = client_of(address)
    whole = client.completions.create(**words)
    texts = ["", ""]
    last = None
    for part in client.completions.create(**words, stream=True, stream_options={"include_usage": True}):
        for choice in part.choices:
            texts[choice.index] += choice.text
        last = part
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1]
    assert last is not None
    assert last.usage == whole.usage
    assert client.completions.create(**words | {"seed": 8}).choices[0].text != texts[0]


def test_a_stop_ends_the_text_before_it(address: str) -> None:
    client = client_of(address)
    text = client.completions.create(model="served", prompt="a", max_tokens=30, temperature=0).choices[0].text
    stop = text[5:8]
    found = client.completions.create(model="served", prompt="a", max_tokens=30, temperature=0, stop=[stop, "nosuch"])
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_log_probabilities_are_the_models(address: str, run: RunDir) -> None:
    """Also those of a prompt that is echoed, as evaluations ask for."""
    model, tokenizer, _ = load_model(run.checkpoint(2), torch.device("cpu"))
    ids = tokenizer.encode("The people of").tolist()
    found = client_of(address).completions.create(model="served", prompt="The people of", max_tokens=0, echo=True, logprobs=3)
    told = found.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert found.choices[0].text == "The people of" == "".join(told.tokens or [])
    with torch.inference_mode():
        logs = model(torch.tensor([[tokenizer.end, *ids]]))[0, :, : tokenizer.vocab_size].log_softmax(-1)
    expected = [logs[place, token].item() for place, token in enumerate(ids)]
    assert told.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert all(len(top) <= 3 and max(top.values()) <= 0 for top in told.top_logprobs)
    assert told.text_offset == [len(tokenizer.decode(ids[:place])) for place in range(len(ids))]


def test_models_are_the_run_and_its_checkpoints(address: str) -> None:
    client = client_of(address)
    assert [model.id for model in client.models.list()] == ["served", "served@1", "served@2"]
    texts = [
        client.completions.create(model=name, prompt="a", max_tokens=8, temperature=0).choices[0].text
        for name in ("served", "served@1", "served@2")
    ]
    assert texts[0] == texts[2] != texts[1]


def test_several_prompts_and_ids_are_prompts_too(address: str) -> None:
    client = client_of(address)
    found = client.completions.create(model="served", prompt=["a", "b"], max_tokens=4, n=2, seed=1)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert client.completions.create(model="served", prompt=[5, 6, 7], max_tokens=2).choices[0].text
    assert len(client.completions.create(model="served", prompt=[[5], [6]], max_tokens=2).choices) == 2


def test_sixteen_at_once_are_answered_together(address: str) -> None:
    """Each as if it were alone, and a short one before the long ones that were asked for first."""
    client, order = client_of(address), []

    def ask(number: int) -> str:
        tokens = 400 if number < 15 else 2
        found = client.completions.create(model="served", prompt=f"{number}", max_tokens=tokens, temperature=0, stop=["\x00"])
        order.append(number)
        return found.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        started = [pool.submit(ask, number) for number in range(15)]
        time.sleep(0.1)
        started.append(pool.submit(ask, 15))
        texts = [each.result() for each in started]
    alone = client.completions.create(model="served", prompt="3", max_tokens=400, temperature=0, stop=["\x00"])
    assert texts[3] == alone.choices[0].text
    assert order.index(15) < 15


def test_who_leaves_is_not_generated_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that never ends a text."""
    monkeypatch.setattr("llamactl.inference.generate.find_ends", lambda _: frozenset())
    scheduler = Scheduler(torch.device("cpu"))

    def wait_for(active: int) -> None:
        deadline = time.monotonic() + 20
        while scheduler.active_choices != active:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with serving(run.checkpoint(2), scheduler=scheduler) as address:
        stream = client_of(address).completions.create(model="served", prompt="a", max_tokens=100_000, stream=True)
        next(iter(stream))
        host, port = urlsplit(address).netloc.split(":")
        with socket.create_connection((host, int(port))) as connection:
            body = json.dumps({"prompt": "a", "max_tokens": 100_000, "n": 2}).encode()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            wait_for(3)
        wait_for(1)
        stream.close()
        wait_for(0)


def test_only_what_the_server_put_in_front_is_hidden(address: str, dataset: Dataset) -> None:
    """Also where ids that are sent begin with the one that begins a text."""
    end, ids = dataset.tokenizer.end, dataset.tokenizer.encode("The people").tolist()
    asked = {"max_tokens": 0, "echo": True, "logprobs": 1}
    told = post(address, asked | {"prompt": [end, *ids]})[1]["choices"][0]["logprobs"]
    assert len(told["tokens"]) == 1 + len(ids)
    assert told["tokens"][0] == "(end)"
    assert told["token_logprobs"][0] is None
    as_text = post(address, asked | {"prompt": "The people"})[1]["choices"][0]["logprobs"]
    assert as_text["token_logprobs"] == pytest.approx(told["token_logprobs"][1:])
    assert post(address, asked | {"prompt": [[]]})[1]["choices"][0]["logprobs"]["tokens"] == []


def test_a_prompt_that_is_repeated_must_fit(address: str) -> None:
    asked = {"max_tokens": 0, "echo": True, "logprobs": 1}
    assert len(post(address, asked | {"prompt": [5] * 63})[1]["choices"][0]["logprobs"]["tokens"]) == 63
    status, answer = post(address, asked | {"prompt": [5] * 100})
    assert status == 400
    assert "100 tokens; with echo it may have 63" in answer["error"]["message"]
    assert post(address, {"prompt": [5] * 100, "max_tokens": 1})[0] == 200


def test_parts_of_a_character_are_told_by_their_bytes(address: str, dataset: Dataset) -> None:
    spelled = [dataset.tokenizer.decode_bytes([token]) for token in range(dataset.tokenizer.vocab_size)]
    ids = [spelled.index(bytes([byte])) for byte in "aâb".encode()]
    told = post(address, {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 2})[1]["choices"][0]["logprobs"]
    assert told["tokens"] == ["a", "<0xC3>", "<0xA2>", "b"]
    assert told["bytes"] == [[97], [195], [162], [98]]
    assert told["text_offset"] == [0, 1, 1, 2]
    assert all(top.keys() == told["top_bytes"][place].keys() for place, top in enumerate(told["top_logprobs"]) if top)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        ([], 400, "JSON object"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": [10**9]}, 400, "ids are from 0"),
        ({"prompt": [-1]}, 400, "ids are from 0"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": "many"}, 400, "max_tokens"),
        ({"prompt": "a", "temperature": 3}, 400, "temperature"),
        ({"prompt": "a", "temperature": 0.001}, 400, "temperature"),
        ({"prompt": "a", "top_p": 0}, 400, "top_p"),
        ({"prompt": "a", "n": 1000}, 400, "n:"),
        ({"prompt": ["a"] * 100}, 400, "at most 64"),
        ({"prompt": "a", "stop": [""]}, 400, "stop"),
        ({"prompt": "a", "logprobs": 99}, 400, "logprobs"),
        ({"prompt": "a", "best_of": 3}, 400, "best_of is not offered"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"prompt": "a", "seed": -1}, 400, "seed"),
        ({"prompt": "\ud800"}, 400, "prompt: it is not Unicode text"),
        ({"prompt": "a", "model": "other"}, 404, "no model 'other'"),
        (b" " * (5 << 20), 413, "bytes"),
    ],
)
def test_a_bad_request_is_answered_with_its_reason(address: str, body: Any, status: int, says: str) -> None:
    found, answer = post(address, body)
    assert found == status
    assert says in answer["error"]["message"]
    assert post(address, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_null_means_the_default(address: str) -> None:
    nulls = {
        "prompt": None,
        "echo": None,
        "stream": None,
        "max_tokens": None,
        "temperature": None,
        "n": None,
        "stop": None,
        "logit_bias": None,
        "unknown": 1,
    }
    assert post(address, nulls)[0] == 200
    # Each of them alone, so that none is made good by another.
    for name in nulls:
        assert post(address, {"max_tokens": 1, name: None})[0] == 200, name


def test_a_page_elsewhere_can_not_ask(address: str) -> None:
    """Its name may lead here (DNS rebinding), and the browser then names it."""
    assert post(address, {"prompt": "a", "max_tokens": 1}, Host="evil.example:8000")[0] == 403
    assert post(address, {"prompt": "a", "max_tokens": 1}, Host="localhost:8000")[0] == 200
    for host in ("localhost", "LOCALHOST:80", "[::1]", "[::1]:8000", "127.0.0.1"):
        assert post(address, {"prompt": "a", "max_tokens": 1}, Host=host)[0] == 200, host
    for host in ("", "[::1", "localhost.evil.example", "evil.example@localhost", "localhost:80:80"):
        assert post(address, {"prompt": "a", "max_tokens": 1}, Host=host)[0] == 403, host


def test_a_page_of_another_site_can_not_ask(address: str) -> None:
    """A form or a script may send plain text to any address, without a question before."""
    kind, host = {"Content-Type": "text/plain"}, urlsplit(address).netloc
    for origin in ("https://evil.example", "null", "", "http://localhost:3000", f"http://{host}.evil.example"):
        assert post(address, {"prompt": "a", "max_tokens": 1}, Origin=origin, **kind)[0] == 403, origin
    assert post(address, {"prompt": "a", "max_tokens": 1}, Origin=f"http://{host}", **kind)[0] == 200


def test_a_model_is_shown_by_its_name(address: str) -> None:
    client = client_of(address)
    assert client.models.retrieve("served@1").id == "served@1"
    with pytest.raises(openai.NotFoundError, match="no model 'other/one'"):
        client.models.retrieve("other/one")


def test_with_a_token_only_who_shows_it_is_answered(run: RunDir) -> None:
    with serving(run.checkpoint(2), token="secret", hosts=()) as address:
        assert post(address, {"prompt": "a"})[0] == 401
        assert post(address, {"prompt": "a"}, Authorization="Bearer wrong")[0] == 401
        assert post(address, {"prompt": "a"}, Authorization="Bearer secret", Host="example.org")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "wrong").models.list()
        assert client_of(address, "secret").models.list()


def test_the_page_and_nothing_else_is_there(address: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    for path, status, kind in (
        ("/", 200, "text/html"), ("/page.js", 200, "text/javascript"), ("/page.css", 200, "text/css"),
        ("/app.py", 404, ""), ("/..%2fapp.py", 404, ""), ("/nosuch.html", 404, ""),
        (f"/{'a' * 300}.html", 404, ""), ("/%00.html", 404, ""),
    ):  # fmt: skip
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == status, path
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert kind in answer.headers["Content-Type"]
        assert b"http://" not in content
        assert b"https://" not in content


@pytest.mark.slow
def test_thousands_of_requests_leave_nothing_behind(address: str) -> None:
    def memory() -> int:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * 4096

    def ask(count: int) -> None:
        for _ in range(count):
            assert post(address, {"prompt": "a", "max_tokens": 2})[0] == 200

    ask(200)
    before, threads = memory(), threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [REQUESTS // 8] * 8))
    assert memory() - before < 60e6
    assert threading.active_count() <= threads + 40  # of the event loop's pool
    assert math.isfinite(before)
