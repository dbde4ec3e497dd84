"use strict";
// What the page asks for, done away from it: in a worker, or in slices where there is none.

const SLICE = 12; // milliseconds of work between two looks at what the page says
const SHOWN = 6; // likeliest tokens that are told: five others, and the one that was taken

class Jobs {
  constructor(post) {
    this.post = post;
    this.current = 0; // a job ends when this is another number
    this.models = []; // by number of the checkpoint, the last one of the run first
  }

  async receive(message) {
    try {
      if (message.kind === "load") await this.load(message);
      else if (message.kind === "stop") this.current = 0;
      else {
        this.current = message.job;
        await this[message.kind === "read" ? "read" : "write"](message);
      }
    } catch (error) {
      this.post({ kind: "failed", job: message.job, why: String(error && error.message) });
    }
  }

  async load({ about, blobs }) {
    this.about = about;
    this.blobs = blobs;
    const tokens = await inflate(blobs[0]);
    const lengths = new Uint16Array(tokens.slice(0, 2 * about.ids).buffer);
    this.tokenizer = new Tokenizer(lengths, tokens.subarray(2 * about.ids));
    await this.become(0);
    this.post({ kind: "ready", lengths, bytes: tokens.slice(2 * about.ids) });
  }

  // Make the engine that of a checkpoint, one request after another; false if the job ended meanwhile.
  async choose(number, job) {
    this.queue = (this.queue || Promise.resolve()).catch(() => {}).then(() => this.become(number));
    await this.queue;
    return this.current === job;
  }

  async become(number) {
    if (this.chosen === number) return;
    const { layout, type, checkpoints, shape } = this.about;
    for (let n = this.models.length; n <= number; n++) {
      const found = split(layout, await inflate(this.blobs[1 + n]), type);
      this.blobs[1 + n] = null;
      this.models[n] = n === 0 ? found : restore(layout, found, this.models[n - 1], checkpoints[n]);
    }
    this.engine = new Engine(shape, dequantise(layout, this.models[number]));
    this.chosen = number;
  }

  // Continue a text, or ids that were written before; each token is told with its probability and the likeliest ones.
  async write({ job, text, ids, count, sampling, checkpoint }) {
    const begun = ids || [...this.about.start, ...this.tokenizer.encode(text)];
    const all = begun.length ? begun : [this.about.end];
    if (!(await this.choose(checkpoint, job))) return;
    const teller = new Teller(this, job, all.slice());
    const random = mulberry32(sampling.seed + all.length);
    const { engine } = this;
    let next = this.without(all.slice(-Math.max(1, engine.shape.context - 1)));
    for (let n = 0; n < count; n++) {
      const logits = await this.feed(next, teller);
      if (!logits) return;
      const id = pick(logits, sampling, random);
      all.push(id);
      if (!(await teller.tell(id, logits))) return;
      if (id === this.about.end && sampling.stops !== false) break;
      next = [id];
      // As in training's samples: the second half of a full context becomes the first half of a new one.
      if (engine.ids.length === engine.shape.context) {
        engine.ids = [];
        next = all.slice(-Math.max(1, engine.shape.context >> 1));
      }
    }
    teller.finish();
  }

  // Keep in the cache what a new text begins with, and return the rest of it.
  without(ids) {
    const { engine } = this;
    let same = 0;
    while (same < Math.min(ids.length - 1, engine.ids.length) && ids[same] === engine.ids[same]) same++;
    engine.ids.length = same;
    return ids.slice(same);
  }

  // Read tokens by blocks and return the logits after the last; null if the job ended meanwhile.
  async feed(ids, teller) {
    for (let from = 0; ; from += BLOCK) {
      const logits = this.engine.forward(ids.slice(from, from + BLOCK));
      if (from + BLOCK >= ids.length) return logits;
      if (!(await teller.pause())) return null;
    }
  }

  // Read a text, and tell how likely each token of it was. After the first window a token has half a context before it.
  async read({ job, text, checkpoint }) {
    const before = this.about.start.length ? this.about.start : [this.about.end];
    const ids = [...before, ...this.tokenizer.encode(text)];
    if (!(await this.choose(checkpoint, job))) return;
    const teller = new Teller(this, job, before);
    const { engine } = this;
    const { context, vocab } = engine.shape;
    for (let done = before.length; done < ids.length; ) {
      const start = done === before.length ? 0 : done - (context >> 1);
      const end = Math.min(ids.length, start + context + 1);
      engine.ids = [];
      for (let from = start; from < end - 1; from += BLOCK) {
        const block = ids.slice(from, Math.min(from + BLOCK, end - 1));
        const logits = engine.forward(block, true);
        for (let t = 0; t < block.length; t++) {
          if (from + t + 1 < done) continue; // told with the window before
          if (!(await teller.tell(ids[from + t + 1], logits.subarray(t * vocab, (t + 1) * vocab)))) return;
        }
        if (!(await teller.pause())) return;
      }
      done = end;
    }
    teller.finish();
  }
}

// Tells the page about tokens, several at a time, and lets the page speak in between.
class Teller {
  constructor(jobs, job, ids) {
    Object.assign(this, { jobs, job, waiting: [], told: 0, began: performance.now(), paused: performance.now() });
    jobs.post({ kind: "begun", job, ids });
  }

  // Returns false when the job was ended meanwhile.
  async tell(id, logits) {
    this.waiting.push(describe(id, logits));
    this.told++;
    return this.pause();
  }

  async pause() {
    if (performance.now() - this.paused > SLICE) {
      this.flush();
      await new Promise((resolve) => {
        const channel = new MessageChannel(); // at once, where a timer would wait four milliseconds
        channel.port1.onmessage = resolve;
        channel.port2.postMessage(0);
      });
      this.paused = performance.now();
    }
    return this.jobs.current === this.job;
  }

  flush() {
    if (this.waiting.length) this.jobs.post({ kind: "tokens", job: this.job, tokens: this.waiting });
    this.waiting = [];
  }

  finish() {
    this.flush();
    this.jobs.post({ kind: "done", job: this.job, tokens: this.told, seconds: (performance.now() - this.began) / 1000 });
  }
}

// The probability of a token before temperature and filters, and the likeliest ones there.
function describe(id, logits) {
  const best = [];
  let most = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    if (logits[i] > most) most = logits[i];
    if (best.length === SHOWN && logits[i] <= logits[best[SHOWN - 1]]) continue;
    let place = best.length;
    while (place > 0 && logits[best[place - 1]] < logits[i]) place--;
    best.splice(place, 0, i);
    if (best.length > SHOWN) best.pop();
  }
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(logits[i] - most);
  const share = (i) => Math.exp(logits[i] - most) / total;
  return { id, nats: Math.log(total) - (logits[id] - most), others: best.map((i) => [i, share(i)]) };
}

// The next token: the likeliest at temperature 0, else one drawn after temperature, top-k and top-p.
function pick(logits, { temperature, topK, topP }, random) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  if (temperature === 0) return best;
  const chances = Float64Array.from(logits, (logit) => Math.exp((logit - logits[best]) / temperature));
  const least = topK > 0 || topP < 1 ? leastChance(chances, topK, topP) : 0;
  let total = 0;
  for (let i = 0; i < chances.length; i++) total += chances[i] >= least ? chances[i] : (chances[i] = 0);
  let left = random() * total;
  for (let i = 0; i < chances.length; i++) if ((left -= chances[i]) < 0) return i;
  return best;
}

// The chance below which tokens are left out: those after the k likeliest, and those after a share of p of the rest.
function leastChance(chances, topK, topP) {
  const ordered = chances.slice().sort().reverse();
  const kept = topK > 0 ? ordered.subarray(0, topK) : ordered;
  let left = topP * kept.reduce((total, chance) => total + chance, 0);
  let last = 0;
  for (; last + 1 < kept.length && (left -= kept[last]) > 0; last++);
  return kept[last];
}

// A small generator of random numbers in [0, 1): the same seed gives the same text.
function mulberry32(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

if (typeof document === "undefined") {
  const jobs = new Jobs((message) => postMessage(message));
  self.onmessage = (event) => jobs.receive(event.data);
}
