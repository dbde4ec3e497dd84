"""A page of a model: its bytes are the model's, its policy names its script, and nothing in it becomes markup."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, ModelConfig, build_config
from llamactl.corpus.dataset import Dataset
from llamactl.errors import DataError, UsageError
from llamactl.escape import escape_control_chars
from llamactl.export import web
from llamactl.export.web_weights import GROUP, Kind, encode_change, parse_rounded, round_model
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import Tokenizer
from tests.export.pages import stored_models

SHAPE = ModelConfig(n_layers=2, dim=48, n_heads=4, n_kv_heads=2, head_dim=12, ffn_dim=80, context=32, vocab_size=512)


def make_model(config: ModelConfig, seed: int) -> Llama:
    """A model of random weights, which change a little from seed to seed."""
    torch.manual_seed(1)
    model = Llama(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def save_run(tokenizer: Tokenizer, config: ModelConfig = SHAPE, steps: int = 1, name: str = "mine") -> RunDir:
    run = RunDir.from_name(name)
    run.start(Config(), {"command": "llamactl train"})
    for step in range(1, steps + 1):
        taken = take_snapshot(make_model(config, step), [])
        state = checkpoint_format.State(step=step, tokens=9 * step, seconds=1.0, validation_loss=4.5)
        checkpoint_io.save_checkpoint(run.checkpoint(step), taken, config, tokenizer, state)
    return run


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("change", [{}, {"tie_embeddings": True}, {"qk_norm": True}, {"qkv_bias": True}])
def test_weights_come_back_as_they_were_rounded(kind: Kind, change: dict[str, bool]) -> None:
    model = make_model(SHAPE.model_copy(update=change), 1)
    rounded = round_model(model, 500, kind)
    again = parse_rounded({"vectors": rounded.layout.vectors, "matrices": rounded.layout.matrices}, rounded.to_bytes(), kind)
    assert np.array_equal(again.integers, rounded.integers)
    assert np.array_equal(again.scales, rounded.scales)
    for name, weight in again.to_model(model.config).state_dict().items():
        trained = model.state_dict()[name][: len(weight)]
        if weight.ndim == 1:
            assert torch.equal(weight, trained)
        else:
            error = (weight - trained).square().mean().sqrt() / trained.square().mean().sqrt()
            assert error < (0.012 if kind == "int8" else 0.11), name


def test_int4_takes_half_of_the_bytes() -> None:
    model = make_model(SHAPE, 1)
    assert len(round_model(model, 512, "int4").to_bytes()) < 0.6 * len(round_model(model, 512, "int8").to_bytes())
    assert SHAPE.dim % GROUP  # the last group of a row is shorter


def test_a_change_restores_the_earlier_checkpoint() -> None:
    earlier, later = (round_model(make_model(SHAPE, seed), 512, "int8") for seed in (1, 2))
    change = encode_change(earlier, later)
    assert np.abs(change.apply(later).integers.astype(int) - earlier.integers).max() <= change.coarse // 2 + change.coarse % 2
    assert np.abs(change.stored.integers).mean() < 0.1 * np.abs(earlier.integers).mean()


def test_the_page_holds_the_model_and_says_so(dataset: Dataset, tmp_path: Path) -> None:
    run = save_run(dataset.tokenizer, steps=9)
    file = web.export_web(run.checkpoint(9), tmp_path / "out", "int8", 4)
    assert file.name == "mine-step9-int8.html"
    about, blobs = web.read_page(file.read_text("utf-8"))
    assert [facts["step"] for facts in about["checkpoints"]] == [9, 6, 4, 1]
    assert about["name"] == "mine"
    assert about["ids"] == dataset.tokenizer.vocab_size
    for facts, model in zip(about["checkpoints"], stored_models(about, blobs), strict=True):
        assert facts["sha256"] == web.hash_integers(model)
    lengths = np.frombuffer(blobs[0], "<u2", about["ids"])
    assert blobs[0][2 * about["ids"] :] == dataset.tokenizer.decode_bytes(range(about["ids"]))
    assert lengths.tolist() == dataset.tokenizer.byte_lengths.tolist()
    again = web.export_web(run.checkpoint(9), tmp_path / "out", "int8", 4)
    assert again.read_bytes() == file.read_bytes()


def test_held_out_text_is_measured(home: Path, corpus: Path) -> None:
    from tests.conftest import make_dataset

    data = make_dataset(home / "data" / "addresses", corpus).open()
    run = RunDir.from_name("mine")
    run.start(build_config([{"data": {"name": "addresses"}}]), {})
    state = checkpoint_format.State(step=1, tokens=9, seconds=1.0)
    taken = take_snapshot(make_model(SHAPE, 1), [])
    checkpoint_io.save_checkpoint(run.checkpoint(1), taken, SHAPE, data.tokenizer, state)
    about, _ = web.read_page(web.export_web(run.checkpoint(1), home / "out").read_text("utf-8"))
    assert about["dataset"] == "addresses"
    assert about["heldOutTokens"] > 1_000
    assert abs(about["bitsPerByteBefore"] / about["checkpoints"][0]["bitsPerByte"] - 1) < 0.01
    assert about["prompt"] != web.PROMPT


def test_the_policy_names_the_script_and_the_style(dataset: Dataset, tmp_path: Path) -> None:
    page = web.export_web(save_run(dataset.tokenizer).checkpoint(1), tmp_path / "out").read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    inline = re.findall(r"<script(?: id=\"engine\")?>(.*?)</script>", page, re.S) + re.findall(
        r"<style>(.*?)</style>", page, re.S
    )
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in inline]
    assert len(hashes) == 3
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "fetch(",
        "http:",
        "https:",
    ):
        assert forbidden not in page, forbidden


class Elements(HTMLParser):
    """The elements of a page, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


PAYLOADS = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "]]><svg onload=alert(1)>", "<!--", "-->",
    "<!--<script>", "\u2028\u2029", "{{script}}{{blobs}}", "\\u003c", '"}', "'\"><b>", "&lt;script&gt;", "\u202eabc",
    "javascript:alert(1)", "</title><h1>", "</style><style>*{}", "\x00\x1b[2J", "${alert(1)}", "`", "\\", "%3Cscript%3E",
    "\\1\\g<0>", "<script src=//x>", "<iframe srcdoc='<p>'>", "<a href=javascript:alert(1)>", "</textarea><b>",
    "</dd></dl>", "<math><mtext><script>", "<base href=//x>", "<meta http-equiv=refresh>", "<link rel=stylesheet href=//x>",
    "<template><script>", "\u200b\u2066\u2069", "&#60;b&#62;", "<plaintext>", "<noscript><p title='</noscript>'>",
    "__proto__", "constructor", "<object data=//x>", "'-alert(1)-'",
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_name_or_prompt_is_text(payload: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(dataset.tokenizer)
    plain = Elements(web.export_web(run.checkpoint(1), tmp_path / "a").read_text("utf-8")).found
    monkeypatch.setattr(web, "describe_model", lambda *_: f"{payload} at step 1")
    monkeypatch.setattr(web, "PROMPT", payload)
    text = web.export_web(run.checkpoint(1), tmp_path / "b").read_text("utf-8")
    assert Elements(text).found == plain
    about, _ = web.read_page(text)
    assert about["name"] == escape_control_chars(payload)
    assert about["prompt"] == escape_control_chars(payload)


def test_a_tokenizer_of_another_kind_is_refused(dataset: Dataset) -> None:
    library = Library(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["</s>"])
    with pytest.raises(DataError, match="tokenizer can't be written into a page"):
        web.check_fits(SHAPE, Tokenizer(library.to_str()))
    with pytest.raises(DataError, match="parameters is too large for a page"):
        web.check_fits(SHAPE.model_copy(update={"dim": 8192, "n_layers": 40, "ffn_dim": 8192}), dataset.tokenizer)


def test_checkpoints_that_are_not_there_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    run = save_run(dataset.tokenizer)
    with pytest.raises(UsageError, match=r"no earlier checkpoint(.|\n)*keep_last=12"):
        web.export_web(run.checkpoint(1), tmp_path / "out", "int8", 8)
    with pytest.raises(UsageError, match="need --type int8"):
        web.export_web(run.checkpoint(1), tmp_path / "out", "int4", 8)


def test_a_page_with_other_weights_is_refused(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(dataset.tokenizer)
    chunks = web._chunks
    monkeypatch.setattr(web, "_chunks", lambda blob: chunks(blob[:-1] + bytes([blob[-1] ^ 64])))
    with pytest.raises(DataError, match="is not the model"):
        web.export_web(run.checkpoint(1), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.html"))


def test_large_blobs_are_several_elements(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CHUNK", 1_000)
    page = web.export_web(save_run(dataset.tokenizer).checkpoint(1), tmp_path / "out").read_text("utf-8")
    assert page.count('class="blob" data-number="1"') > 10
    web.read_page(page)
