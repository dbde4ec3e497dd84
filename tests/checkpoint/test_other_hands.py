"""Checkpoints in other hands: pipelines, PEFT's LoRA and transformers' Trainer run on them, and the result comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import ModelConfig
from llamactl.corpus.dataset import Dataset
from llamactl.inference.generate import Request, generate_samples
from llamactl.model.decode import Sampler
from llamactl.model.llama import Llama

CPU = torch.device("cpu")
SHAPE = ModelConfig(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=64, vocab_size=512)


@pytest.fixture
def folder(tmp_path: Path, dataset: Dataset) -> Path:
    """A checkpoint of a model of random weights, large enough that its greedy text varies."""
    torch.manual_seed(0)
    model = Llama(SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    path = tmp_path / "made"
    state = State(step=0, tokens=0, seconds=0.0)
    checkpoint_io.save_checkpoint(path, take_snapshot(model, []), SHAPE, dataset.tokenizer, state)
    return path


def opened(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_what_the_tokenizer_gives_is_what_the_model_takes(folder: Path) -> None:
    """As every guide has it: model.generate(**tokenizer(text)); the text is that of `sample`."""
    theirs, words = opened(folder)
    model, tokenizer, _ = checkpoint_io.load_model(folder, CPU)
    prompts = ("The people", "It is the duty of the Senate")
    (*_, said) = generate_samples(model, tokenizer, Request(prompts, 10, pick=Sampler(temperature=0)))
    for prompt, sample in zip(prompts, said, strict=True):
        given = words(prompt, return_tensors="pt")
        assert (
            theirs.generate(**given, max_new_tokens=10, do_sample=False)[0, given["input_ids"].shape[1] :].tolist()
            == sample.tokens
        )
    batch = words(list(prompts), return_tensors="pt", padding=True)
    together = theirs.generate(**batch, max_new_tokens=10, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert [row.tolist() for row in together] == [sample.tokens for sample in said]


def test_a_pipeline_takes_batches(folder: Path) -> None:
    from transformers import pipeline

    theirs, words = opened(folder)
    make: Any = pipeline
    found = make("text-generation", model=theirs, tokenizer=words, batch_size=2)(["The", "It is"], max_new_tokens=3)
    assert found[0][0]["generated_text"].startswith("The")
    assert found[1][0]["generated_text"].startswith("It is")


@pytest.mark.slow
def test_lora_is_trained_and_what_is_merged_comes_back(folder: Path, tmp_path: Path) -> None:
    import peft

    theirs, words = opened(folder)
    adapted: Any = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.05)
    ids = words("The people of the United States", return_tensors="pt")["input_ids"]
    losses = []
    for _ in range(10):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    words.save_pretrained(tmp_path / "merged")
    ours, tokenizer, _ = checkpoint_io.load_model(tmp_path / "merged", CPU)
    with torch.inference_mode():
        assert torch.allclose(ours(ids), merged(ids).logits, atol=1e-4)
    assert tokenizer.encode_opening("The people of the United States") == ids[0].tolist()


@pytest.mark.slow
def test_transformers_trainer_runs_and_what_it_saves_comes_back(folder: Path, tmp_path: Path) -> None:
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    theirs, words = opened(folder)
    rows = [words(text) for text in ("The people of the United States", "It is the duty", "The Senate") * 4]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no"
    )
    collate: Any = DataCollatorForLanguageModeling(words, mlm=False)
    trainer: Any = Trainer(model=theirs, args=arguments, train_dataset=rows, data_collator=collate, processing_class=words)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    ours, _, state = checkpoint_io.load_model(tmp_path / "saved", CPU)
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.inference_mode():
        assert torch.allclose(ours(ids), trainer.model(ids).logits, atol=1e-4)
    assert state.step == 0
