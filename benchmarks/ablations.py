"""What each part of the recipe is worth: one change at a time from the defaults, three seeds each.

    python benchmarks/ablations.py DATA --out FOLDER

`tiny` with a key/value head for each query head, on few tokens and small steps. Each run is a process of one thread, `--jobs`
of them at a time; a run that is in FOLDER already is kept. A change is a setting where there is one; what llamactl does not
offer is patched in here, so that what was tried and dropped can be tried again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from recipe import Run, configured
from torch import Tensor, nn

from llamactl.config.schema import Config, build_config
from llamactl.corpus.dataset import DatasetDir
from llamactl.model.llama import Llama
from llamactl.model.objective import NextToken, mean_loss
from llamactl.optim import build as optim_build
from llamactl.optim.muon import NEWTON_SCHULZ, Muon
from llamactl.runs.run_dir import RunDir
from llamactl.training import build as training_build
from llamactl.training import trainer
from llamactl.training.events import Validated
from llamactl.training.trainer import Trainer

SEEDS = (0, 1, 2)
Tree = dict[str, Any]

# Coefficients of Polar Express (Amsel et al. 2025, arXiv 2505.16932), for five steps.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def polar_express(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """`orthogonalize` with other coefficients in each of its steps."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / (1.02 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return orthogonal


def newton_schulz(steps: int, preconditioned: bool = False, rows: int = 0) -> Callable[[Tensor, torch.dtype], Tensor]:
    """`orthogonalize` in fewer steps, each block of so many rows on its own, or after the rescaling of Turbo-Muon.

    That divides each row by the root of the sum of its products with all (Boissin et al. 2025, arXiv 2512.04632).
    """

    def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
        tall = matrices.shape[-2] > matrices.shape[-1]
        whole = (matrices.mT if tall else matrices).to(dtype)
        x = whole.reshape(-1, rows or whole.shape[-2], whole.shape[-1])
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        if preconditioned:
            x = x * (x @ x.mT).abs().sum(-1, keepdim=True).clamp(min=1e-14).rsqrt()
        a, b, c = NEWTON_SCHULZ
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.reshape(whole.shape)
        orthogonal: Tensor = (x.mT if tall else x).to(matrices.dtype)
        return orthogonal

    return orthogonalize


class Cautious(Muon):
    """Weights decay only where the update makes them smaller too (Chen et al. 2025, arXiv 2510.12402)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step without decay, then the decay of those weights that it made smaller."""
        decays = [group["weight_decay"] for group in self.param_groups]
        before = [[parameter.clone() for parameter in group["params"]] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, decay, olds in zip(self.param_groups, decays, before, strict=True):
            group["weight_decay"] = decay
            for parameter, old in zip(group["params"], olds, strict=True):
                parameter -= group["lr"] * decay * old * ((old - parameter) * old >= 0)


class ZLoss(NextToken):
    """The logits' normaliser is pulled towards 1 as well (PaLM, arXiv 2204.02311)."""

    def forward(
        self, inputs: Tensor, targets: Tensor, dropout: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """The loss, and 1e-4 of the squared logarithm of the normaliser."""
        logits = self.model.lm_head(self._hidden(inputs, dropout, documents)).float()
        normaliser = logits.logsumexp(-1)
        loss: Tensor = (normaliser - logits.gather(-1, targets.flatten()[:, None])[:, 0]).mean()
        extra: Tensor = 1e-4 * normaliser.square().mean()
        return loss + extra


class Sampled(NextToken):
    """The loss among the targets of a micro-batch and some other ids, which stand for all others, until a share of the tokens.

    An id that stands for w others has its logit raised by log w, so that the sum of exponentials is unbiased.
    """

    ids, until = 4096, 0.8
    tokens = seen = 0  # of the run, and so far

    def forward(
        self, inputs: Tensor, targets: Tensor, dropout: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """The loss among all ids after the given share of the run."""
        self.seen += targets.numel()
        if self.seen > self.until * self.tokens:
            return super().forward(inputs, targets, dropout, documents)
        hidden, head = self._hidden(inputs, dropout, documents), self.model.lm_head.weight
        present, places = torch.unique(targets.flatten(), return_inverse=True)
        others = torch.ones(len(head), dtype=torch.bool).index_fill_(0, present, False).nonzero()[:, 0]
        drawn = others[torch.randperm(len(others))[: self.ids]]
        raised = torch.zeros(len(present) + len(drawn))
        raised[len(present) :] = math.log(len(others) / len(drawn))
        # One more channel, that of the bias.
        among = torch.cat([head[torch.cat([present, drawn])], raised[:, None]], -1)
        return mean_loss(torch.cat([hidden, torch.ones_like(hidden[:, :1])], -1), among, places)


class Averaged(Trainer):
    """It is the average of the weights over the second half that is validated."""

    def optimizer_step(self, total: Tensor) -> tuple[float, float]:
        """As ever, and the average after it."""
        done = super().optimizer_step(total)
        weights = [parameter.detach() for parameter in self.model.parameters()]
        if self.state.step == self.max_steps // 2:
            self.average = [weight.clone() for weight in weights]
        elif self.state.step > self.max_steps // 2:
            torch._foreach_lerp_(self.average, weights, 0.02)
        return done

    @torch.no_grad()
    def validate(self) -> Iterator[Any]:
        """With the average in the weights' place; it is for the last step, where nothing comes after."""
        torch._foreach_copy_([parameter.detach() for parameter in self.model.parameters()], self.average)
        yield from super().validate()


def zero_outputs(model: Llama, seed: int) -> None:
    """`init_weights` with blocks that add nothing at first."""
    INITIALISE(model, seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)


CHEAPER: dict[str, Any] = {
    "4 steps of Newton-Schulz": {"steps": 4},
    "rows rescaled, 4 steps": {"steps": 4, "preconditioned": True},
    "rows rescaled, 3 steps": {"steps": 3, "preconditioned": True},
    "blocks of 64 rows, each on its own": {"steps": 5, "rows": 64},
}
INITIALISE = training_build.init_weights
PATCHES: dict[str, Any] = {
    "Polar Express": patch("llamactl.optim.muon.orthogonalize", polar_express),
    **{name: patch("llamactl.optim.muon.orthogonalize", newton_schulz(**how)) for name, how in CHEAPER.items()},
    "cautious weight decay": patch.object(optim_build, "Muon", Cautious),
    "loss among 4096 other ids, the last 20% among all": patch.object(training_build, "NextToken", Sampled),
    "z-loss, 1e-4": patch.object(training_build, "NextToken", ZLoss),
    "EMA of the second half, 0.98 a step": patch.object(trainer, "Trainer", Averaged),
    "o_proj and down_proj start at zero": patch.object(training_build, "init_weights", zero_outputs),
    "momentum without a warm-up": patch.object(trainer, "muon_momentum", lambda _, target: target),
}
SETTINGS: dict[str, Tree] = {
    "the defaults": {},
    "rows not evened (no NorMuon)": {"optim": {"normuon_beta2": 0.0}},
    "untied, its own embedding at 20 times the rate": {"model": {"tie_embeddings": False}, "optim": {"embedding_scale": 20.0}},
    "1 key/value head for 3": {"model": {"n_kv_heads": 1}},
    "6 heads of 32": {"model": {"n_heads": 6, "n_kv_heads": 6, "head_dim": 32}},
    "2 heads of 96": {"model": {"n_heads": 2, "n_kv_heads": 2, "head_dim": 96}},
    "no weight decay": {"optim": {"weight_decay": 0.0}},
    "cosine to zero": {"schedule": {"min_lr_ratio": 0.0}},
    "cosine to a fifth": {"schedule": {"min_lr_ratio": 0.2}},
    "wsd to zero": {"schedule": {"name": "wsd", "min_lr_ratio": 0.0}},
    "wsd to a tenth": {"schedule": {"name": "wsd"}},
    "AdamW for all, at half the rate": {"optim": {"name": "adamw", "lr": 3.6e-3}},
}
CHANGES = (*SETTINGS, *PATCHES)

# Two widths, and shares of the rate that is the default there: the best share should be the same.
WIDTHS: dict[int, Tree] = {192: {}, 384: {"dim": 384, "n_heads": 6, "n_kv_heads": 6, "ffn_dim": 1024}}
SHARES = (0.5, 0.71, 1.0, 1.41, 2.0)


def rate_name(width: int, share: float) -> str:
    """A run of the table of rates."""
    return "the defaults" if (width, share) == (192, 1.0) else f"width {width}, rate x {share:g}"


def settings(name: str, config: Config) -> Tree:
    """What a run of that name sets."""
    for width, model in WIDTHS.items():
        for share in SHARES:
            if name == rate_name(width, share) and name not in SETTINGS:
                return {"model": model, "optim": {"lr": share * config.optim.lr * (192 / width) ** 0.5}}
    return SETTINGS.get(name, {})


def make(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train in this process, and write down the loss and the number of parameters."""
    torch.set_num_threads(1)
    Sampled.tokens = options.tokens
    dataset = DatasetDir.from_name(options.data).open()
    config, world = configured(Run("llamactl", options.tokens, seed), dataset)
    once = {"train": {"eval_every": 10**9, "save_every": 10**9}}
    fitting = {"optim": {"lr": config.optim.lr * (config.model.dim / options.model.get("dim", config.model.dim)) ** 0.5}}
    config = build_config([config.model_dump(), {"model": options.model}, fitting, once, settings(name, config)])
    with PATCHES.get(name, patch.dict(os.environ)):
        events = list(trainer.train_run(config, dataset, RunDir(Path(f"run-{options.out.name}")), world, rate=1.0))
    loss = next(event.loss for event in events if isinstance(event, Validated))
    options.out.write_text(json.dumps({"name": name, "seed": seed, "loss": loss}))


def found(name: str, seed: int, options: argparse.Namespace) -> float:
    """The loss of a run, from its file or from a process that makes it."""
    path = options.out / f"{name} {seed}.json".replace(" ", "-").replace("/", "_")
    if not path.exists():
        words = [sys.executable, __file__, options.data, "--out", str(path), "--run", name, "--seeds", str(seed)]
        words += ["--tokens", str(options.tokens), "--model", json.dumps(options.model)]
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=options.out)
    loss: float = json.loads(path.read_text())["loss"]
    return loss


def main() -> None:
    """Make what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset under data/")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the losses")
    parser.add_argument("--tokens", type=int, default=245_760, help="of a run; the tokens of a step follow from it")
    parser.add_argument("--model", type=json.loads, default={}, help="JSON of settings of [model], for all runs")
    parser.add_argument("--only", nargs="*", help="changes beside the defaults; left out: all, and the table of rates")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.absolute()
    if options.run:
        make(options.run, options.seeds[0], options)
        return
    os.environ["LLAMACTL_HOME"] = str(Path(os.environ.get("LLAMACTL_HOME", ".")).absolute())
    options.out.mkdir(parents=True, exist_ok=True)
    changes = CHANGES if options.only is None else ("the defaults", *options.only)
    rates = [rate_name(width, share) for width in WIDTHS for share in SHARES if options.only is None]
    runs: list[tuple[str, int]] = [(name, seed) for name in changes for seed in options.seeds]
    runs += [(name, 0) for name in rates]
    with ThreadPoolExecutor(options.jobs) as pool:
        losses = dict(zip(runs, pool.map(lambda run: found(run[0], run[1], options), runs), strict=True))
    usual = {seed: losses["the defaults", seed] for seed in options.seeds}
    print("| what | " + " | ".join(f"seed {seed}" for seed in usual) + " | difference |\n|---|" + "---:|" * (len(usual) + 1))
    for name in changes:
        each = [losses[name, seed] for seed in usual]
        difference = statistics.mean(each) - statistics.mean(usual.values())
        print(f"| {name} | " + " | ".join(f"{loss:.3f}" for loss in each) + f" | {difference:+.3f} |")
    if not rates:
        return
    print("\n| width | " + " | ".join(f"rate x {share:g}" for share in SHARES) + " |\n|---:|" + "---:|" * len(SHARES))
    for width in WIDTHS:
        print(f"| {width} | " + " | ".join(f"{losses[rate_name(width, share), 0]:.3f}" for share in SHARES) + " |")


if __name__ == "__main__":
    main()
