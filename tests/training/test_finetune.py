"""Fine-tuning: what a loss on replies is, that packed conversations do not see one another, and rows for new tokens."""

import json
import random
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.select import locate_checkpoint
from llamactl.config.schema import Config, DataConfig, ModelConfig, Tree
from llamactl.corpus.batches import Batches, Windows
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.targets import IGNORED, settings_for, window_rule
from llamactl.distributed.context import World, init_device
from llamactl.errors import UsageError
from llamactl.inference.evaluate import evaluate_streams
from llamactl.model import objective
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken, mean_loss
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import ROLE_TOKENS, encode_chat
from llamactl.tokenizer.roles import add_roles
from llamactl.training.build import build_batches
from llamactl.training.events import Stepped, Validated
from llamactl.training.finetune import find_text, finetuning_settings, read_base_model
from llamactl.training.gradients import accumulate_gradients
from llamactl.training.init_from import add_rows, config_from_checkpoint, pin_init_from
from llamactl.training.trainer import Trainer, train_run
from llamactl.training.validation import validate_model
from tests.corpus.test_conversations import prepare, talk, write
from tests.training.conftest import Configured

RATE = 1e11
SHAPE = ModelConfig(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, context=64, vocab_size=640)
TRAIN: Tree = {
    "train": {
        "tokens": 4096, "tokens_per_step": 256, "precision": "fp32", "device": "cpu", "sample_tokens": 4, "save_every": 4,
        "eval_every": 8,
    }
}  # fmt: skip


@pytest.fixture
def base(configured: Configured, dataset: Dataset) -> Path:
    """A short run named `base`, with a context of 64 tokens."""
    config, world = configured(model={"context": 64})
    run = RunDir.from_name("base")
    run.start(config, {})
    list(train_run(config, dataset, run, world, RATE))
    return run.checkpoint(20)


@pytest.fixture
def chat(base: Path, tmp_path: Path) -> Dataset:
    """Conversations as rows of 64 tokens for it."""
    choice = random.Random(0)
    rows = [{"messages": talk(choice, turns=1, words=5)} for _ in range(120)]
    prepare(write(tmp_path / "chat.jsonl", rows), read_base_model(base, None).tokenizer)
    return DatasetDir.from_name("chat").open()


def finetuned(chat: Dataset, base: Path, *layers: Tree) -> tuple[Config, World]:
    """The config of a run that fine-tunes it."""
    settings = finetuning_settings(read_base_model(base, None), chat, 0.0)
    config = config_from_checkpoint("base", [*settings, TRAIN, *layers])
    world = init_device(config.train)
    return resolve_config(pin_init_from(config, chat), chat, world), world


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}


def rows_of(chat: Dataset) -> Windows:
    return Windows(chat.train, 64, window_rule(chat, settings_for(chat, DataConfig()), 64))


def test_packed_conversations_have_the_logits_that_they_have_alone() -> None:
    """And those of transformers' attention mask would be the same: each sees itself and what is before it in its document."""
    model = Llama(SHAPE).eval()
    torch.manual_seed(0)
    lengths = [20, 7, 30, 7]
    parts = [torch.randint(0, 600, (1, length)) for length in lengths]
    documents = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    with torch.inference_mode():
        together = model.lm_head(model.hidden(torch.cat(parts, 1), documents=documents))
        alone = torch.cat([model(part) for part in parts], 1)
        mixed = model(torch.cat(parts, 1))
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(mixed, alone, atol=1e-2)


def test_the_loss_is_the_mean_over_the_replies_of_a_step(chat: Dataset, base: Path) -> None:
    """Whatever the micro-batch and the number of processes: gradients and loss are those of one cross-entropy."""
    config, world = finetuned(chat, base)
    torch.manual_seed(1)
    model = Llama(config.model)
    windows = rows_of(chat)
    batch = windows.batch(np.arange(8))
    reference = F.cross_entropy(
        model.lm_head(model.hidden(batch.inputs, documents=batch.documents)).flatten(0, 1),
        batch.targets.flatten(),
        ignore_index=IGNORED,
    )
    torch.autograd.backward(reference)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for most, size in ((8, 1), (3, 1), (1, 1), (2, 3)):
        model.zero_grad()
        total = torch.zeros(())
        for rank in range(size):
            batches = _First(windows, 8, "", rank, size)
            total += accumulate_gradients(NextToken(model), batches.micro_batches(0, most), world, scaler)
        assert total.item() == pytest.approx(reference.item(), abs=1e-5)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, expected[name], atol=1e-6), (name, most, size)


class _First(Batches):
    """Batches whose first step has the first windows."""

    def window_ids(self, step: int) -> np.ndarray:
        return np.arange(step * self._per_step, (step + 1) * self._per_step)


@pytest.mark.parametrize("fused", [None, objective.fused_chunk])
def test_ignored_targets_have_no_loss_and_no_gradient(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "CHUNK", 16)
    targets = torch.randint(0, 128, (50,))
    targets[::3] = IGNORED
    hidden, head = torch.randn(50, 32), torch.randn(128, 32)
    results = []
    for ours in (True, False):
        x, weight = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = mean_loss(x, weight, targets, fused) if ours else F.cross_entropy(x @ weight.T, targets, reduction="sum") / 50
        torch.autograd.backward(loss)
        assert x.grad is not None
        assert weight.grad is not None
        results.append([loss.detach(), x.grad, weight.grad])
    assert (results[0][1][::3] == 0).all()
    for mine, reference in zip(*results, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-5, atol=1e-6)
    assert objective.IGNORED == IGNORED


def test_validation_and_evaluation_name_the_loss_of_the_replies(chat: Dataset, base: Path) -> None:
    config, world = finetuned(chat, base, {"train": {"eval_tokens": 10**6}})
    torch.manual_seed(2)
    model = Llama(config.model).eval()
    windows = Windows(chat.val, 64, window_rule(chat, config.data, 64))
    batch = windows.batch(np.arange(len(windows)))
    with torch.inference_mode():
        logits = model.lm_head(model.hidden(batch.inputs, documents=batch.documents))
    losses = F.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), ignore_index=IGNORED, reduction="none")
    counted = (batch.targets >= 0).flatten()
    said = chat.tokenizer.byte_lengths[batch.targets.flatten()[counted].numpy()]
    measured = validate_model(NextToken(model), chat, config, world)
    found = evaluate_streams(model, chat.tokenizer, chat.val, False, chat.byte_lengths, window_rule(chat, config.data, 64))
    assert measured is not None
    for each in (measured, found):
        assert each.tokens == int(counted.sum())
        assert each.loss == pytest.approx((losses.sum() / counted.sum()).item(), abs=1e-5)
        nats = losses[counted][torch.from_numpy(said > 0)].sum().item()
        assert each.bits_per_byte == pytest.approx(nats / np.log(2) / said.sum(), abs=1e-5)
    means = (losses.view(-1, 64).sum(1) - measured.loss * counted.view(-1, 64).sum(1)).square().sum().item()
    error = np.sqrt(means * len(windows) / (len(windows) - 1)) / int(counted.sum())
    assert measured.loss_error == pytest.approx(error, rel=1e-3)


def test_a_run_learns_its_replies_and_asks_held_out_questions(chat: Dataset, base: Path) -> None:
    config, world = finetuned(chat, base)
    assert (config.data.loss_on, config.data.separate_documents, config.optim.name) == ("assistant", True, "adamw")
    assert len(config.train.prompts) == 3
    assert all(prompt.endswith(".") for prompt in config.train.prompts)
    events = list(train_run(config, chat, RunDir.from_name("b"), world, RATE))
    losses = [event.loss for event in events if isinstance(event, Validated)]
    assert losses[-1] < losses[0]


def test_a_run_that_is_stopped_anywhere_is_resumed_bit_for_bit(chat: Dataset, base: Path) -> None:
    config, world = finetuned(chat, base)
    whole = RunDir.from_name("whole")
    reference = [event.loss for event in train_run(config, chat, whole, world, RATE) if isinstance(event, Stepped)]
    for stop in (2, 7, 12):
        run = RunDir.from_name(f"stopped-{stop}")
        events = train_run(config, chat, run, world, RATE)
        for event in events:
            if isinstance(event, Stepped) and event.step == stop:
                break
        events.close()
        again = [event.loss for event in train_run(config, chat, run, world, RATE) if isinstance(event, Stepped)]
        assert again == reference[len(reference) - len(again) :]
        first, second = weights(whole.checkpoint(16)), weights(run.checkpoint(16))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_windows_that_are_no_rows_are_refused(chat: Dataset, base: Path) -> None:
    with pytest.raises(UsageError, match="rows of 64 tokens; the model's context is 32"):
        finetuned(chat, base, {"model": {"context": 32}})


def test_documents_of_a_text_are_separated_in_pre_training(configured: Configured, dataset: Dataset) -> None:
    """Each begins with an end-of-text token, which every text that is continued begins with too."""
    config, world = configured(data={"separate_documents": True}, train={"tokens": 2560})
    batch = build_batches(dataset, config, world).micro_batches(0, 8)[0]
    assert batch.documents is not None
    places, ends = torch.arange(batch.inputs.numel()), batch.inputs.flatten() == dataset.tokenizer.end
    begins = ends | (places % batch.inputs.shape[1] == 0)
    assert batch.documents.tolist() == [*places[begins].tolist(), batch.inputs.numel()]
    assert (batch.targets >= 0).all()
    losses = [
        event.loss for event in train_run(config, dataset, RunDir.from_name("a"), world, RATE) if isinstance(event, Stepped)
    ]
    assert losses[-1] < losses[0]


def test_rows_are_windows_in_every_epoch(chat: Dataset, base: Path) -> None:
    config, world = finetuned(chat, base)
    batches = build_batches(chat, config, world)
    rows = {tuple(row) for shard in chat.train for row in np.asarray(shard)[:-1].reshape(-1, 64).tolist()}
    for step in range(0, 40, 5):
        for batch in batches.micro_batches(step, 4):
            assert {tuple(row) for row in batch.inputs.tolist()} <= rows


@pytest.mark.parametrize("rows", [640, 512, 700])
def test_new_tokens_take_spare_rows_first_and_the_known_ones_stay(rows: int) -> None:
    torch.manual_seed(0)
    stored = torch.randn(min(rows, 640), 8).bfloat16()
    new = range(510, 514)
    grown = add_rows("lm_head.weight", stored, new, max(rows, 640), seed=3)
    assert grown.shape == (max(rows, 640), 8)
    assert torch.equal(grown[:510], stored[:510].float())
    assert torch.equal(grown[514 : len(stored)], stored[514:].float())
    mean = stored[:510].float().mean(0)
    assert torch.allclose(grown[510:514], mean.expand(4, -1), atol=0.5)
    assert len({tuple(row) for row in grown[510:514].tolist()}) == 4
    assert torch.equal(grown, add_rows("lm_head.weight", stored, new, max(rows, 640), seed=3))
    assert not torch.equal(grown, add_rows("model.embed_tokens.weight", stored, new, max(rows, 640), seed=3))


def test_the_vocabulary_grows_where_it_has_no_room(chat: Dataset, base: Path) -> None:
    """512 ids are 4 times 128 exactly: the roles take a fifth."""
    config, world = finetuned(chat, base)
    assert (chat.info.vocab_size, config.model.vocab_size) == (516, 640)
    trainer = Trainer(config, chat, RunDir.from_name("b"), world, RATE)
    list(trainer.load_checkpoint())
    before, after = weights(base), trainer.model.state_dict()
    assert all(torch.equal(tensor, after[name][: len(tensor)]) for name, tensor in before.items())
    with pytest.raises(UsageError, match=r"model.vocab_size: 640 -> 768"):
        finetuned(chat, base, {"model": {"vocab_size": 768}})


def test_more_control_tokens_are_the_same_tokenizer_for_every_text(dataset: Dataset) -> None:
    more = add_roles(dataset.tokenizer)
    assert more.extends(dataset.tokenizer)
    assert more.extends(more)
    assert not dataset.tokenizer.extends(more)
    assert more.library is None
    assert (more.start, more.end) == (dataset.tokenizer.start, dataset.tokenizer.end)
    text = "To the Senate <|user|> and <|endoftext|>"
    assert more.encode(text).tolist() == dataset.tokenizer.encode(text).tolist()
    assert add_roles(more).description == more.description
    other: dict[str, Any] = json.loads(more.description)
    other["model"]["merges"] = other["model"]["merges"][:-1]
    assert not Tokenizer(json.dumps(other)).extends(dataset.tokenizer)


def test_transformers_loads_the_result_and_its_template(chat: Dataset, base: Path) -> None:
    config, world = finetuned(chat, base)
    list(train_run(config, chat, RunDir.from_name("b"), world, RATE))
    folder = RunDir.from_name("b").checkpoint(16)
    model, tokenizer, _ = checkpoint_io.load_model(folder, torch.device("cpu"))
    theirs, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who are you?"}]
    ids = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_chat(tokenizer, messages, generation_prompt=True)
    with torch.inference_mode():
        assert torch.allclose(theirs(torch.tensor([ids])).logits, model(torch.tensor([ids])), atol=1e-4)
    names = tokenizer.controls
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [tokenizer.end, names["<|end|>"]]
    assert words.convert_tokens_to_ids(list(ROLE_TOKENS)) == [names[name] for name in ROLE_TOKENS]


def test_what_was_fine_tuned_is_fine_tuned_again(chat: Dataset, base: Path) -> None:
    config, world = finetuned(chat, base)
    run = RunDir.from_name("b")
    run.start(config, {})
    list(train_run(config, chat, run, world, RATE))
    again = read_base_model(locate_checkpoint("b"), None)
    assert again.tokenizer.digest == chat.tokenizer.digest or again.tokenizer.extends(chat.tokenizer)
    assert again.tokenizer.vocab_size == chat.tokenizer.vocab_size
    assert not again.other_template
    shutil.rmtree(run.path)


def test_text_of_a_model_from_elsewhere_must_be_named(chat: Dataset, base: Path, tmp_path: Path) -> None:
    """Its run began with a folder, of which nobody knows what it was trained on."""
    config, world = finetuned(chat, base)
    elsewhere = config.with_train(init_from=str(tmp_path / "llama"))
    run = RunDir.from_name("b")
    run.start(elsewhere, {})
    list(train_run(config, chat, run, world, RATE))
    with pytest.raises(UsageError, match="--mix does not know"):
        find_text(read_base_model(locate_checkpoint("b"), None), 0.3, "")
