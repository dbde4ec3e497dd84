"""What is learned from teachers: the gradient of a mixture of their predictions and the text, and the loss of the text."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llamactl.config.schema import ModelConfig
from llamactl.model.distillation import Teachers
from llamactl.model.llama import Llama
from llamactl.model.objective import CHUNK, IGNORED, NextToken

SHAPE = {
    "n_layers": 2,
    "dim": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": 64,
    "context": 64,
    "vocab_size": 128,
}


def model_of(seed: int) -> Llama:
    torch.manual_seed(seed)
    model = Llama(ModelConfig.model_validate(SHAPE))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def gradients(objective: NextToken, loss: Tensor) -> list[Tensor]:
    objective.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [weight.grad.clone() for weight in objective.model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_gradient_is_that_of_the_mixture(share: float, ignored: bool) -> None:
    """Compared with autograd through a cross-entropy with probabilities; of more than one chunk of the logits."""
    student, teachers = NextToken(model_of(0)), [model_of(1), model_of(2)]
    inputs, targets = torch.randint(128, (2, 3 * CHUNK // 64, 64)).unbind()
    if ignored:
        targets[:, :20] = IGNORED
    student.teachers = Teachers(teachers, share)
    loss = student(inputs, targets)
    found = gradients(student, loss)
    with torch.no_grad():
        predicted = torch.stack([F.softmax(each(inputs), -1) for each in teachers]).mean(0)
    counts = (targets >= 0)[..., None]
    mixture = share * predicted + (1 - share) * F.one_hot(targets.clamp(min=0), 128)
    expected = -(mixture * F.log_softmax(student.model(inputs), -1) * counts).sum() / targets.numel()
    for ours, reference in zip(found, gradients(student, expected), strict=True):
        assert torch.allclose(ours, reference, atol=1e-6, rtol=1e-4)
    student.teachers = None
    assert torch.allclose(loss, student(inputs, targets), atol=1e-6), "the loss is that of the text"


def test_teachers_are_no_part_of_what_is_trained() -> None:
    student = NextToken(model_of(0))
    names = set(student.state_dict())
    student.teachers = Teachers([model_of(1)], 0.5)
    assert set(student.state_dict()) == names
    before = [weight.clone() for weight in student.teachers.models[0].parameters()]
    student(*torch.randint(128, (2, 1, 64)).unbind()).backward()
    assert all(weight.grad is None for weight in student.teachers.models[0].parameters())
    assert all(map(torch.equal, before, student.teachers.models[0].parameters()))


def test_a_teacher_learns_nothing_from_itself() -> None:
    """Its own predictions are where the gradient of a full share vanishes."""
    student = NextToken(model_of(0))
    student.teachers = Teachers([model_of(0)], 1.0)
    found = gradients(student, student(*torch.randint(128, (2, 2, 64)).unbind()))
    assert max(gradient.abs().max().item() for gradient in found) < 1e-6
