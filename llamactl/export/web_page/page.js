"use strict";
// The page itself: what it says of the model, its two tabs, the slider over the run, and the worker that computes.

const about = JSON.parse(at("about").textContent);
const PATIENCE = 700; // milliseconds after the last key, until the model writes by itself
const BETWEEN = 1600; // milliseconds that a text stays when the run is played
const EXAMPLE =
  "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator with " +
  "certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.";

let jobs = 0;
let job = null; // what the worker is doing: {number, kind, sheet, asked}
let vocabulary = null; // a Tokenizer, for the bytes of ids
let post = null;
let typing = 0;
let playing = 0;

const number = (value) => value.toLocaleString("en");
const short = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(1)} billion` : value >= 1e6 ? `${(value / 1e6).toFixed(1)} million` : number(value));
const compact = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(1)}B` : value >= 1e6 ? `${(value / 1e6).toFixed(1)}M` : number(value));
const bytesOf = (id) => vocabulary.bytesOf(id);
const sheets = { write: new Sheet(at("written"), bytesOf, branch), read: new Sheet(at("passage-read"), bytesOf, branchFromText) };
const tab = () => (at("read").hidden ? "write" : "read");

function introduce() {
  const last = about.checkpoints[0];
  const origin = about.trained ? `trained from scratch${about.dataset ? ` on “${about.dataset}”` : ""}, ${short(last.tokens)} tokens` : "made by another program";
  at("summary").textContent =
    `A ${about.architecture} of ${short(about.parameters)} parameters, ${origin}. It runs here, in this page: nothing that you type leaves it.`;
  for (const [name, value] of Object.entries(facts(last))) {
    if (!value) continue;
    const row = made("div");
    row.append(made("dt", name), made("dd", value));
    at("facts").append(row);
  }
  at("caution").textContent =
    "It continues a text as those that it was trained on continue, true or not. It has learned nothing else: it answers no questions.";
  at("own").textContent = `${about.install}\nllamactl quickstart my.txt --time 10m\nllamactl export web`;
  at("footer").textContent = `Made by llamactl ${about.version}. This file needs nothing else: no network, no server.`;
  at("prompt").value = about.prompt;
  at("passage").value = EXAMPLE;
  at("history").hidden = about.checkpoints.length < 2;
  at("moment").max = about.checkpoints.length - 1;
  at("moment").value = about.checkpoints.length - 1;
  showMoment();
}

function facts({ step, tokens, loss, bitsPerByte }) {
  const { shape, type } = about;
  const measured = bitsPerByte !== null && about.bitsPerByteBefore !== null;
  return {
    Run: about.name,
    Parameters: number(about.parameters),
    Shape: `${shape.layers} layers, width ${number(shape.dim)}, ${shape.heads} ${shape.heads === 1 ? "head" : "heads"}`,
    Context: `${number(shape.context)} tokens`,
    Vocabulary: `${number(about.ids)} tokens`,
    "Trained on": about.dataset,
    Training: about.trained ? `${number(step)} steps, ${number(tokens)} tokens` : "",
    "Validation loss": loss === null ? "" : `${loss.toFixed(3)} nats per token`,
    "Bits per byte": measured ? bitsPerByte.toFixed(4) : "",
    [`Before rounding to ${type}`]: measured ? about.bitsPerByteBefore.toFixed(4) : "",
    "Measured on": measured ? `${number(about.heldOutTokens)} held-out tokens` : "",
    "Stored as": measured ? "" : type,
  };
}

// The worker, or the same code in this thread where a browser allows no worker.
function connect() {
  const local = () => {
    const own = new Jobs((message) => receive(message));
    post = (message) => own.receive(message);
    load();
  };
  const load = () => {
    const blobs = [];
    for (const element of document.querySelectorAll(".blob")) (blobs[element.dataset.number] ||= []).push(element.textContent);
    post({ kind: "load", about, blobs });
  };
  try {
    const worker = new Worker(URL.createObjectURL(new Blob([at("engine").textContent], { type: "text/javascript" })));
    worker.onmessage = (event) => receive(event.data);
    worker.onerror = () => vocabulary || local();
    post = (message) => worker.postMessage(message);
    load();
  } catch {
    local();
  }
}

const receivers = {
  ready({ lengths, bytes }) {
    vocabulary = new Tokenizer(lengths, bytes);
    for (const element of document.querySelectorAll(".blob")) element.remove();
    for (const id of ["go", "another", "read-go"]) at(id).disabled = false;
    write();
  },
  begun({ ids }) {
    job.sheet.promptIds ||= ids;
  },
  tokens({ tokens }) {
    tokens.forEach((token) => job.sheet.add(token));
  },
  done({ tokens, seconds }) {
    const rate = seconds > 0 ? `, ${number(Math.round(tokens / seconds))} tokens per second` : "";
    const { sheet, kind, asked } = job;
    const bits = sheet.tokens.reduce((total, token) => total + token.nats, 0) / Math.LN2;
    const size = Math.max(1, new TextEncoder().encode(sheet.text).length);
    const surprise = `${(bits / size).toFixed(3)} bits per byte over ${number(sheet.tokens.length)} tokens`;
    say(kind === "read" ? `${surprise}${rate}` : `${number(tokens)} tokens${rate}`);
    if (asked) at("spoken").textContent = kind === "read" ? surprise : `It wrote: ${sheet.text}`;
    rest();
    if (playing) playing = setTimeout(next, BETWEEN);
  },
  failed({ why }) {
    at("trouble").textContent = `This browser could not do it: ${why}`;
    rest();
  },
};

function receive(message) {
  if (message.job === undefined || message.job === job?.number) receivers[message.kind](message);
}

const say = (text) => (at(`${job.kind}-status`).textContent = text);

function rest() {
  if (job) job.sheet.box.classList.remove("writing");
  job = null;
  at("go").textContent = "Write";
  at("read-go").textContent = "Read";
}

function stop() {
  clearTimeout(typing);
  if (!job) return;
  post({ kind: "stop" });
  say("Stopped.");
  rest();
}

function begin(kind, message, asked) {
  stop();
  choices.close();
  at("trouble").textContent = "";
  job = { number: ++jobs, kind, sheet: sheets[kind], asked };
  say(kind === "read" ? "Reading …" : "Writing …");
  sheets[kind].box.classList.add("writing");
  at(kind === "read" ? "read-go" : "go").textContent = "Stop";
  post({ kind, job: job.number, checkpoint: about.checkpoints.length - 1 - Number(at("moment").value), ...message });
}

const limited = (id, least, most) => Math.max(least, Math.min(most, Number(at(id).value) || 0));

function settings() {
  const sampling = { temperature: limited("temperature", 0, 2), topK: limited("top-k", 0, 1e6), topP: limited("top-p", 0.01, 1) };
  return { count: limited("count", 1, 10_000), sampling: { ...sampling, seed: limited("seed", 0, 2 ** 32 - 1) } };
}

function write(asked = false) {
  if (!vocabulary) return;
  stop();
  sheets.write.begin(at("prompt").value);
  sheets.write.promptIds = null;
  begin("write", { text: at("prompt").value, ...settings() }, asked);
}

function read(asked = false) {
  if (!vocabulary) return;
  stop();
  sheets.read.begin("");
  begin("read", { text: at("passage").value }, asked);
}

const again = () => (tab() === "write" ? write() : read());

// Take another token in place of one, and write on from there.
function branch(place, id, share) {
  pause();
  stop();
  const sheet = sheets.write;
  const token = sheet.tokens[place];
  sheet.cut(place);
  sheet.add({ ...token, id, nats: -Math.log(share), taken: true });
  if (id !== about.end) begin("write", { ids: [...sheet.promptIds, ...sheet.tokens.map((each) => each.id)], ...settings() }, true);
  sheet.focus(place);
}

// The same in a text that was read: what comes before it becomes the beginning of another.
function branchFromText(place, id) {
  const before = sheets.read.tokens.slice(0, place).map((token) => token.text).join("");
  at("prompt").value = before + new TextDecoder().decode(bytesOf(id));
  show("write");
  write(true);
  at("prompt").focus();
}

function show(name) {
  pause();
  stop();
  choices.close();
  for (const each of ["write", "read"]) {
    at(each).hidden = each !== name;
    at(`tab-${each}`).setAttribute("aria-selected", each === name);
    at(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  if (name === "read" && !sheets.read.tokens.length) read();
}

// The slider: the first checkpoint on the left, the last one on the right.
function showMoment() {
  const { step, tokens, loss, bitsPerByte } = about.checkpoints[about.checkpoints.length - 1 - Number(at("moment").value)];
  const parts = [`step ${number(step)} of ${number(about.checkpoints[0].step)}`, `${compact(tokens)} tokens`];
  if (bitsPerByte !== null) parts.push(`${bitsPerByte.toFixed(3)} bits per byte`);
  else if (loss !== null) parts.push(`loss ${loss.toFixed(3)}`);
  at("moment-shown").textContent = parts.join(" · ");
  at("moment").setAttribute("aria-valuetext", parts.join(", "));
}

function pause() {
  clearTimeout(playing);
  playing = 0;
  at("play").textContent = "Play";
  at("play").setAttribute("aria-pressed", "false");
}

function play() {
  if (playing) return pause();
  at("play").textContent = "Pause";
  at("play").setAttribute("aria-pressed", "true");
  if (at("moment").value === at("moment").max) turnTo(0);
  else next();
}

function next() {
  if (at("moment").value === at("moment").max) pause();
  else turnTo(Number(at("moment").value) + 1);
}

function turnTo(moment) {
  playing ||= -1; // until the text is written, and a timer's number after it
  at("moment").value = moment;
  showMoment();
  again();
}

function listen() {
  const on = (id, event, action) => at(id).addEventListener(event, action);
  const submit = (action) => (event) => {
    event.preventDefault();
    pause();
    if (job) stop();
    else action(true);
  };
  on("form", "submit", submit(write));
  on("read-form", "submit", submit(read));
  on("another", "click", () => {
    pause();
    at("seed").value = (Number(at("seed").value) + 1) % 2 ** 32;
    write(true);
  });
  on("prompt", "input", () => {
    pause();
    stop();
    typing = setTimeout(() => write(), PATIENCE);
  });
  on("prompt", "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    write(true);
  });
  for (const id of ["temperature", "count"]) {
    on(id, "input", () => (at(`${id}-shown`).textContent = at(id).value));
    on(id, "change", () => write());
  }
  on("moment", "input", () => {
    pause();
    showMoment();
    again();
  });
  on("play", "click", play);
}

function listenToTabs() {
  for (const [name, other] of [["write", "read"], ["read", "write"]]) {
    at(`tab-${name}`).addEventListener("click", () => show(name));
    at(`tab-${name}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      show(other);
      at(`tab-${other}`).focus();
    });
  }
}

introduce();
choices.start();
listen();
listenToTabs();
connect();
