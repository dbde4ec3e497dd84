"""The stages as functions, for scripts and notebooks: `import llamactl` gives them by name.

Nothing here prints or reads the command line. All that a user can cause is a `UserError` with what happened, why, and a fix.
"""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from llamactl.checkpoint.io import open_model
from llamactl.config.schema import Config, DataConfig, Tree, build_config, preset_settings, suggest_setting
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.engines import local_engine
from llamactl.corpus.prepare import prepare_dataset
from llamactl.corpus.recipes import build_recipe
from llamactl.corpus.sources import Source, open_source
from llamactl.corpus.targets import settings_for, window_rule
from llamactl.corpus.verify import verify_in_background
from llamactl.distributed.context import init_device
from llamactl.errors import UsageError
from llamactl.hardware.device import choose_device
from llamactl.hardware.throughput import peak_flops
from llamactl.inference.evaluate import Evaluation, evaluate_streams, token_stream
from llamactl.inference.generate import Request, generate_samples
from llamactl.metrics.evaluation import evaluate_at_the_end
from llamactl.metrics.monitor import record_events
from llamactl.model.decode import Sampler
from llamactl.model.llama import Llama
from llamactl.planning.defaults import feedable_presets
from llamactl.planning.fit import check_fit, check_memory
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import resolve_config
from llamactl.runs.run_dir import RunDir, data_settings
from llamactl.storage.locks import hold_lock
from llamactl.storage.records import to_json
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.training.events import Event
from llamactl.training.init_from import config_from_checkpoint, pin_init_from
from llamactl.training.resumption import config_of_resumed_run
from llamactl.training.start import start_run
from llamactl.training.teachers import pin_teachers, pin_teachers_where_they_fit
from llamactl.training.timed_budget import Choice, choose_budget
from llamactl.training.trainer import train_run
from llamactl.units import read_time


class Model(NamedTuple):
    """A model, an ordinary `nn.Module` from token ids (B T) to logits (B T V), its tokenizer, and how its run reads data."""

    model: Llama
    tokenizer: Tokenizer
    data: DataConfig = DataConfig()


def load(model: str | Path = "", device: str = "auto") -> Model:
    """Load a model: RUN, RUN@STEP, RUN@best, the folder of a model, hf:ORG/NAME; by default that of the newest run.

    Raises DataError for one that is damaged or not of Llama's family, NoNetwork where the hub can't be reached.
    """
    path, loaded, tokenizer, _ = open_model(str(model), choose_device(device))
    return Model(loaded, tokenizer, data_settings(path))


def prepare(
    source: str | Path | Sequence[str | Path] = (),
    *,
    documents: Iterable[str] | None = None,
    name: str = "",
    tokenizer: str = "",
    val_fraction: float = 0.0,
    dedup: bool = False,
) -> Dataset:
    """Make a dataset under data/ of files, folders, "sample" or hf:ORG/NAME, or of a list of `documents`; return it, opened.

    `tokenizer` is gpt2, bpe:N, bytes, a tokenizer.json or a folder with one; by default it follows from the size of the text.
    What is complete already is not made again. Raises DataError, UsageError.
    """
    words = [str(source)] if isinstance(source, str | Path) else [str(each) for each in source]
    if (documents is None) == (not words):
        raise UsageError("prepare takes a source or documents.", "It got both or neither.", 'Example: prepare(["notes.txt"])')
    options = {"tokenizer": tokenizer, "val_fraction": val_fraction, "dedup": dedup}
    if documents is None:
        return _prepare(open_source(words), words, name, options)
    rows = [to_json({"text": text}) for text in _as_sequence(documents)]
    # Called by its content, so that other documents under the same name are not taken for these.
    content = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{content}.jsonl"
        file.write_text("\n".join(rows) + "\n", "utf-8")
        return _prepare(open_source([str(file)]), [file.name], name or "documents", options)


def _prepare(source: Source, words: Sequence[str], name: str, options: Mapping[str, Any]) -> Dataset:
    recipe = build_recipe(source, words, **options)
    folder = DatasetDir.from_name(name or source.name)
    for _ in prepare_dataset(source, recipe, folder, local_engine(1)):
        pass
    return folder.open()


@dataclass(frozen=True)
class Training:
    """A run that is about to be trained: iterate it for events, which are also logged in its folder."""

    name: str
    config: Config
    dataset: Dataset

    def __iter__(self) -> Iterator[Event]:
        """Train to the end, or from the newest checkpoint on; leaving the loop stops without saving."""
        run, world = RunDir.from_name(self.name), init_device(self.config.train)
        rate = peak_flops(world.device, world.precision.dtype)
        plan = make_plan(self.config, self.dataset, world, rate)
        again = run.config_path.exists()
        with hold_lock(run.lock_path):
            start_run(run, self.config, self.dataset, world, plan, again)
            with closing(train_run(self.config, self.dataset, run, world, rate)) as events:
                yield from self._record(events, run)

    def _record(self, events: Generator[Event, None, None], run: RunDir) -> Iterator[Event]:
        device = init_device(self.config.train).device
        whole = evaluate_at_the_end(events, run, self.dataset, self.config, device)
        logged = record_events(whole, run, vocab_size=self.dataset.info.vocab_size)
        yield from verify_in_background(logged, DatasetDir.from_name(self.dataset.name))


def train(
    dataset: Dataset | str = "",
    *,
    preset: str = "auto",
    tokens: int = 0,
    time: str = "",
    run: str = "",
    init_from: str = "",
    settings: Mapping[str, Any] | None = None,
    anyway: bool = False,
) -> Training:
    """Choose the settings of a run as `llamactl train` does; iterate what is returned to train it.

    `settings` are those of config.toml: {"optim": {"lr": 1e-3}}, or {"optim.lr": 1e-3}. A `time`, "10m", takes the place of
    `tokens`. A budget beyond sense is refused, unless it is wanted `anyway`. A `run` that exists is resumed: it keeps its
    model, its budget and its initial checkpoint, but `settings` that may change, and more `tokens`, replace its own. Raises
    UsageError, DataError.
    """
    data = DatasetDir.from_name(dataset).open() if isinstance(dataset, str) else dataset
    if time and tokens:
        raise UsageError("time and tokens exclude each other.", "Both are the budget.", "Leave one of them out.")
    typed = [_nested(settings or {}), {"data": {"name": data.name}}, {"train": {"tokens": tokens} if tokens else {}}]
    if run and (folder := RunDir.from_name(run)).config_path.exists():
        return Training(run, _resumed_config(folder, typed, data, preset), data)
    if init_from and preset != "auto":
        raise UsageError("preset and init_from exclude each other.", "A checkpoint has its shape.", "Leave preset out.")
    names = feedable_presets(data.info) if preset == "auto" else (preset,)
    configs = [build_config([preset_settings(name), *typed]) for name in (names if time else names[:1])]
    if init_from:
        configs = [config_from_checkpoint(init_from, typed)]
    configs = pin_teachers_where_they_fit([pin_init_from(config, data) for config in configs], data)
    world = init_device(configs[0].train)
    rate = peak_flops(world.device, world.precision.dtype)
    budget = Choice(configs[0], rate, measured=False)
    if time:
        budget = choose_budget(configs, data, world, rate, read_time(time))
    config = resolve_config(budget.config, data, world)
    plan = make_plan(config, data, world, budget.rate, budget.measured)
    check_memory(plan, config, world)
    check_fit(plan, config, RunDir.from_name(run) if run else RunDir.with_new_name(config.preset), anyway)
    return Training(run or RunDir.claim_new_name(config.preset).path.name, config, data)


def _resumed_config(folder: RunDir, typed: Sequence[Tree], dataset: Dataset, preset: str) -> Config:
    """Return the config with which a run is resumed; raises UsageError for what can't change, DataError for other teachers."""
    if preset not in ("auto", known := folder.config().preset):
        raise UsageError(f"The run {folder.path.name} is a {known}, no {preset}.", "", "Leave preset out, or take another run.")
    named = next((tree["train"]["teachers"] for tree in typed if "teachers" in tree.get("train", {})), ())
    # The names of teachers are pinned, so that they are compared by their weights.
    unpinned = {"train": {"teachers": folder.config().train.teachers}}
    config = config_of_resumed_run(folder, [*typed, unpinned])
    config = pin_teachers(config.with_train(teachers=tuple(named)) if named else config, dataset, resumed=True)
    return resolve_config(config, dataset, init_device(config.train))


def _nested(settings: Mapping[str, Any]) -> Tree:
    """Return settings as a tree: {"optim.lr": 1e-3} becomes {"optim": {"lr": 1e-3}}. Raises UsageError."""
    tree: Tree = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        if not key and not isinstance(value, Mapping):
            raise UsageError(f"There is no setting {name!r}.", suggest_setting(name), 'Example: settings={"optim.lr": 1e-3}')
        tree.setdefault(section, {}).update({key: value} if key else value)
    return tree


def generate(
    model: Model | str,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> str:
    """Continue a prompt and return what follows it. The same seed gives the same text; temperature 0 is greedy."""
    found = load(model) if isinstance(model, str) else model
    pick = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    request = Request((prompt,), max_new_tokens, seed=seed, stops=tuple(_as_sequence(stop)), pick=pick)
    text = ""
    for samples in generate_samples(found.model, found.tokenizer, request):
        text = samples[0].text
    return text


def evaluate(model: Model | str, texts: Iterable[str] | None = None, dataset: Dataset | str = "") -> Evaluation:
    """Measure loss, bits per byte and their standard errors on `texts`, or on the held-out split of a dataset.

    By default that is the dataset of the model's run. Raises UsageError for one with another tokenizer, DataError for a
    damaged one or nothing to measure.
    """
    found = load(model) if isinstance(model, str) else model
    if texts is not None:
        return evaluate_streams(found.model, found.tokenizer, (token_stream(found.tokenizer, _as_sequence(texts)),), rests=True)
    data = DatasetDir.from_name(dataset or found.data.name).open() if isinstance(dataset, str) else dataset
    if not found.tokenizer.extends(data.tokenizer):
        what = f"The dataset {data.name} has another tokenizer than the model."
        raise UsageError(what, "The same ids mean other text.", "Evaluate texts instead: evaluate(model, texts)")
    rule = window_rule(data, settings_for(data, found.data), found.model.config.context)
    measured = (evaluate_streams(found.model, found.tokenizer, data.val, False, data.byte_lengths, rule) for _ in range(1))
    (result,) = verify_in_background(measured, DatasetDir.from_name(data.name), "val")
    return result


def _as_sequence(texts: Iterable[str]) -> Iterable[str]:
    """Return texts as they are, or a single one, which would be taken for its characters, as a sequence of one."""
    return (texts,) if isinstance(texts, str) else texts
