"""What training makes small: the surprise at each next token."""

from torch import Tensor, nn
from torch.nn import functional as F

from llamactl.model.llama import Llama


class NextToken(nn.Module):
    """The model and its loss as one module, so that both can be compiled or sharded together."""

    def __init__(self, model: Llama) -> None:
        """Wrap a model; its own names stay as they are."""
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, a scalar, of `targets` B T after `inputs` B T."""
        return self.per_token(inputs, targets).mean()

    def per_token(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each target in nats, B T, in fp32."""
        logits = self.model(inputs).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
