"""Tokenizers of other models, trained here with the settings of public ones: their ids are those of the library."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.verify import check_dataset
from llamactl.errors import DataError
from llamactl.inference.evaluate import evaluate_streams, token_stream
from llamactl.model.llama import Llama
from llamactl.tokenizer import encoders, library
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.encoders import ENCODERS
from tests.conftest import make_dataset

ByteLevel, Sequence, Split = pre_tokenizers.ByteLevel, pre_tokenizers.Sequence, pre_tokenizers.Split
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
ALPHABET = ByteLevel.alphabet()


def special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level(splits: list[Any], names: tuple[str, ...], texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=not splits)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special(*names), initial_alphabet=ALPHABET, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


def llama3(texts: list[str]) -> tokenizers.Tokenizer:
    made = byte_level([Split(Regex(LLAMA3), "isolated")], (), texts)
    made.add_special_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    begin = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair=None, special_tokens=[("<|begin_of_text|>", begin)]
    )
    tree = json.loads(made.to_str())
    tree["model"]["ignore_merges"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def qwen2(texts: list[str]) -> tokenizers.Tokenizer:
    made = byte_level([Split(Regex(QWEN), "isolated")], (), texts)
    made.normalizer = normalizers.NFC()
    made.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return made


def smollm(texts: list[str]) -> tokenizers.Tokenizer:
    return byte_level([pre_tokenizers.Digits(individual_digits=True)], ("<|endoftext|>", "<|im_start|>"), texts)


def end_first(texts: list[str]) -> tokenizers.Tokenizer:
    return byte_level([], ("<|endoftext|>",), texts)


def roberta(texts: list[str]) -> tokenizers.Tokenizer:
    made = byte_level([], ("<s>", "<pad>", "</s>", "<unk>"), texts)
    made.pre_tokenizer = ByteLevel(add_prefix_space=True)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def deepseek(texts: list[str]) -> tokenizers.Tokenizer:
    splits = [Split(Regex(pattern), "isolated") for pattern in (r"\p{N}{1,3}", "[一-龥]+", r"\s?[A-Za-z]+|[^A-Za-z]+")]
    made = byte_level(splits, (), texts)
    made.add_special_tokens(special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"))
    return made


def sentencepiece(texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    made.train_from_iterator((word for text in texts for word in text.replace(" ", " ▁").split(" ")), trainer)
    tree = json.loads(made.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in ("<unk>", "<s>", "</s>")]
    made = tokenizers.Tokenizer.from_str(json.dumps(tree))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
    return made


def metaspace(texts: list[str]) -> tokenizers.Tokenizer:
    tree = json.loads(sentencepiece(texts).to_str())
    tree["normalizer"] = None
    tree["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return tokenizers.Tokenizer.from_str(json.dumps(tree))


def unigram(texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=500, special_tokens=names, unk_token="<unk>", show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair=None, special_tokens=[("</s>", 1)])
    return made


def wordpiece(texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=700, special_tokens=names, show_progress=False))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def clip(texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.BPEDecoder()
    names = ["<unk>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=names, end_of_word_suffix="</w>", show_progress=False)
    made.train_from_iterator(texts, trainer)
    return made


KINDS: list[Callable[[list[str]], tokenizers.Tokenizer]] = [
    llama3, qwen2, smollm, end_first, roberta, deepseek, sentencepiece, metaspace, unigram, wordpiece, clip,
]  # fmt: skip
# The token that ends a document, and those that begin one.
RULES = {
    "llama3": ("<|end_of_text|>", ["<|begin_of_text|>"]), "qwen2": ("<|endoftext|>", []), "smollm": ("<|endoftext|>", []),
    "end_first": ("<|endoftext|>", []), "roberta": ("</s>", ["<s>"]), "deepseek": ("<｜end▁of▁sentence｜>", []),
    "sentencepiece": ("</s>", ["<s>"]), "metaspace": ("</s>", ["<s>"]), "unigram": ("</s>", []),
    "wordpiece": ("[SEP]", ["[CLS]"]), "clip": ("<|endoftext|>", []),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest, documents: list[str]) -> tuple[str, Tokenizer, tokenizers.Tokenizer]:
    """A kind's name, llamactl's tokenizer and the library's own."""
    made = request.param(documents[:20])
    reference = tokenizers.Tokenizer.from_str(made.to_str())
    reference.encode_special_tokens = True
    return request.param.__name__, Tokenizer(made.to_str()), reference


def test_ids_are_those_of_the_library(pair: tuple[str, Tokenizer, tokenizers.Tokenizer], documents: list[str]) -> None:
    _, made, reference = pair
    pieces = [text[start : start + 160] for text in documents for start in range(0, 8_000, 130)][:5_000]
    expected = [encoded.ids for encoded in reference.encode_batch(pieces, add_special_tokens=False)]
    ids, lengths = ENCODERS["tokenizers"](made)(pieces)
    assert [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])] == expected
    assert [made.encode(piece).tolist() for piece in pieces[:200]] == expected[:200]


def test_any_string_has_the_ids_of_the_library(pair: tuple[str, Tokenizer, tokenizers.Tokenizer]) -> None:
    _, made, reference = pair

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def check(text: str) -> None:
        assert made.encode(text).tolist() == reference.encode(text, add_special_tokens=False).ids

    check()


def test_a_text_that_names_a_control_token_has_none(pair: tuple[str, Tokenizer, tokenizers.Tokenizer]) -> None:
    name, made, _ = pair
    assert made.end not in made.encode(f"before {RULES[name][0]} after {' '.join(RULES[name][1])}").tolist()


def test_documents_begin_and_end_as_the_model_expects(pair: tuple[str, Tokenizer, tokenizers.Tokenizer]) -> None:
    name, made, reference = pair
    end, start = RULES[name]
    assert made.end == reference.token_to_id(end)
    assert list(made.start) == [reference.token_to_id(token) for token in start]
    assert made.encode_opening("a") == [*made.start, *made.encode("a").tolist()]
    assert made.separator == (made.end, *made.start)


def test_text_comes_back(pair: tuple[str, Tokenizer, tokenizers.Tokenizer], documents: list[str]) -> None:
    """From a tokenizer that changes text, what its own decoder gives, but for a space before it."""
    _, made, reference = pair
    ids = made.encode(documents[0]).tolist()
    if made.lossless:
        assert made.decode(ids) == documents[0]
    else:
        words = made.decode(ids).split()
        assert "".join(words) == "".join(reference.decode(ids).replace(" ##", "").split())


def lacking_letters(texts: list[str]) -> tokenizers.Tokenizer:
    made = byte_level([], ("<|endoftext|>",), texts)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special("<|endoftext|>"), show_progress=False)
    made.train_from_iterator(["".join(texts).replace("q", "")], trainer)
    return made


def without_spaces(texts: list[str]) -> tokenizers.Tokenizer:
    return byte_level([Split(" ", "removed")], ("<|endoftext|>",), texts)


def words_alone(texts: list[str]) -> tokenizers.Tokenizer:
    return byte_level([pre_tokenizers.Whitespace()], ("<|endoftext|>",), texts)


def greedy_tokens(texts: list[str]) -> tokenizers.Tokenizer:
    made = smollm(texts)
    made.add_tokens([AddedToken("people", lstrip=True, rstrip=True, special=False)])
    return made


DROPPING = [lacking_letters, without_spaces, words_alone, greedy_tokens]


@pytest.mark.parametrize("kind", DROPPING, ids=lambda kind: kind.__name__)
def test_a_tokenizer_that_drops_text_says_so(
    kind: Callable[[list[str]], tokenizers.Tokenizer],
    corpus: Path,
    documents: list[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = home / "dropping.json"
    file.write_text(kind(documents[:20]).to_str(), "utf-8")
    made = Tokenizer(file.read_text("utf-8"))
    text = "a queue of people "
    assert made.decode(made.encode(text)) != text
    assert not made.lossless
    folder = make_dataset(home / "data" / "dropping", corpus, tokenizer=str(file))
    assert not [damage for _, damage in check_dataset(folder) if damage]
    # One that claims to hold all of the text is found out.
    monkeypatch.setattr(library, "_is_lossless", lambda *_: True)
    encoders.open_tokenizer.cache_clear()
    with pytest.raises(DataError, match="does not encode all of the text"):
        make_dataset(home / "data" / "claimed", corpus, tokenizer=str(file))
    encoders.open_tokenizer.cache_clear()


def test_bits_per_byte_are_those_of_the_text(
    pair: tuple[str, Tokenizer, tokenizers.Tokenizer], corpus: Path, home: Path, tmp_path: Path
) -> None:
    """A model that knows nothing has log2(ids) bits for each token, whatever the tokenizer does to the text."""
    name, made, _ = pair
    file = tmp_path / f"{name}.json"
    file.write_text(made.description, "utf-8")
    folder = make_dataset(home / "data" / name, corpus, tokenizer=str(file))
    assert not [damage for _, damage in check_dataset(folder) if damage]
    dataset = DatasetDir.from_name(name).open()
    rows = -(-made.vocab_size // 128) * 128
    model = Llama(ModelConfig(n_layers=1, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16, context=32, vocab_size=rows))
    torch.nn.init.zeros_(model.lm_head.weight)
    found = evaluate_streams(model, dataset.tokenizer, dataset.val, rests=True, byte_lengths=dataset.byte_lengths)
    tokens = sum(int((np.asarray(shard) != made.end).sum()) for shard in dataset.val)
    controls = sum(int(np.isin(np.asarray(shard), made.start).sum()) for shard in dataset.val) if made.start else 0
    text_bytes = folder.info().total("val", "text_bytes")
    assert found.bits_per_byte == pytest.approx((tokens - controls) * math.log2(rows) / text_bytes, rel=0.01)
    assert len(token_stream(made, ["a"])) == len(made.separator) * 2 + len(made.encode("a"))
