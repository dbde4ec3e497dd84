"""What `gpu.py correctness` compares: a small model on a device with the same one on the CPU, and with itself."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from operator import eq
from typing import Any

import torch

from llamactl import api
from llamactl.config.schema import ModelConfig, build_config, preset_settings
from llamactl.distributed.context import init_device
from llamactl.model.continuous import Continuation, ContinuousBatch
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken
from llamactl.training.compile import compile_objective
from llamactl.training.events import Degraded


def small_shape(preset: str) -> ModelConfig:
    """Return the shape of a preset with two layers, so that the CPU is done with it in seconds."""
    return build_config([preset_settings(preset), {"model": {"n_layers": 2, "vocab_size": 8192}}]).model


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in fp64 what is fp32 otherwise: new tensors, and what the model turns into fp32."""
    usual = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = usual  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def loss_and_gradients(
    objective: NextToken, rows: torch.Tensor, documents: torch.Tensor | None, compute: AbstractContextManager[object]
) -> tuple[float, torch.Tensor]:
    """Return the loss of windows, computed within `compute`, and all gradients as one vector in fp64, on the CPU."""
    with compute:
        loss = objective(rows[:, :-1], rows[:, 1:], documents=documents)
    torch.autograd.backward(loss)
    gradients = [weight.grad.flatten().cpu().to(torch.float64) for weight in objective.parameters() if weight.grad is not None]
    return loss.item(), torch.cat(gradients)


def gradients_differ(config: ModelConfig, device: str, precision: str, compiled: bool, apart: bool) -> dict[str, float]:
    """Compare loss and gradients with those of the CPU in fp64: the difference of losses, and the relative one of gradients.

    `apart` has documents that do not see one another.
    """
    world = init_device(build_config([{"train": {"device": device, "precision": precision}}]).train)
    rows = torch.randint(0, config.vocab_size, (2, 257), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([0, 1, 100, 256, 300, 512], dtype=torch.int32) if apart else None
    torch.manual_seed(0)
    model = Llama(config)
    with in_double():
        expected, reference = loss_and_gradients(NextToken(deepcopy(model).double()), rows, documents, nullcontext())
    objective = NextToken(model).to(world.device)
    if compiled and (why := compile_objective(objective)):
        raise RuntimeError(why)
    starts = None if documents is None else documents.to(world.device)
    compute = world.precision.compute(world.device)
    loss, gradients = loss_and_gradients(objective, rows.to(world.device), starts, compute)
    return {"loss": abs(loss - expected), "gradients": ((gradients - reference).norm() / reference.norm()).item()}


def decoded(config: ModelConfig, device: str, length: int) -> dict[str, Any]:
    """Continue a prompt greedily on the CPU and on the device, in fp32; return how many tokens agree before the first other."""
    texts = []
    prompt = torch.randint(0, config.vocab_size, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.set_float32_matmul_precision("highest")
    for place in ("cpu", device):
        torch.manual_seed(0)
        steps = decode_tokens(Llama(config).to(place).eval(), [prompt], config.vocab_size, Sampler(0.0), [0])
        texts.append([next(steps).tokens.item() for _ in range(32)])
    same = next((number for number, pair in enumerate(zip(*texts, strict=True)) if pair[0] != pair[1]), 32)
    return {"same tokens": same, "of": 32}


def batched(config: ModelConfig, device: str) -> dict[str, Any]:
    """Continue prompts of three lengths as one batch and each by itself, in fp32; return how many tokens agree."""
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    model = Llama(config).to(device).eval()
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, config.vocab_size, (length,), generator=draw).tolist() for length in (5, 40, 100)]
    batch = ContinuousBatch(model, config.vocab_size)
    texts = [Continuation(prompt, Sampler(0.0), 0, model) for prompt in prompts]
    for text in texts:
        batch.add(text)
    for _ in range(32):
        list(batch.step())
    same = 0
    for text, prompt in zip(texts, prompts, strict=True):
        alone = decode_tokens(model, [prompt], config.vocab_size, Sampler(0.0), [0])
        expected = [next(alone).tokens.item() for _ in range(32)]
        same += sum(map(eq, text.join_text()[0, len(prompt) :].tolist(), expected))
    return {"same tokens": same, "of": 96}


def halved(device: str) -> dict[str, Any]:
    """Train with a tenth of the memory and a micro-batch that needs more; return how often it was halved."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / torch.cuda.get_device_properties(0).total_memory))
    train = {"tokens_per_step": 256 * 512, "micro_batch": 256, "device": device}
    settings = {"train": train, "model": {"context": 512}}
    try:
        events = api.train("sample", preset="10m", tokens=2 * 256 * 512, settings=settings, anyway=True)
        return {"halvings": [event.why for event in events if isinstance(event, Degraded)]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
