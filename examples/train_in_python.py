"""Train and sample in 20 lines of Python, from a list of strings."""

import llamactl
from llamactl.training.events import Stepped, Validated

animals, places = ("fox", "hen", "owl", "bee", "cat"), ("barn", "river", "hill", "garden", "road")
documents = [
    f"The {animal} sat by the {place}. It saw the {other}, and the {other} saw the {animal}."
    for animal in animals
    for other in animals
    for place in places
]

dataset = llamactl.prepare(documents=documents, name="animals", tokenizer="bpe:400")
run = llamactl.train(dataset, preset="tiny", tokens=40_000, settings={"model.context": 64, "train.tokens_per_step": 512})
for event in run:
    if isinstance(event, Stepped) and event.step % 20 == 0:
        print(f"step {event.step}: loss {event.loss:.3f}")
    elif isinstance(event, Validated):
        print(f"validation {event.loss:.3f}")

model = llamactl.load(run.name)
print(llamactl.generate(model, "The fox sat by", max_new_tokens=20, temperature=0))
print(f"{llamactl.evaluate(model, ['The owl saw the bee.']).bits_per_byte:.2f} bits per byte")
