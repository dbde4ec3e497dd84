"use strict";
// Text goes into the page as text nodes only, so that nothing that a model writes can become markup.

const at = (id) => document.getElementById(id);
const bounds = [0.5, 0.2, 0.05, 0.01]; // probabilities below which a token has the next color
let models = [];
let running = null; // the AbortController of the answer that is arriving
let written = []; // the tokens so far: {name, bytes, text, probability, others}
let decoder; // of their bytes, of which the last ones may be a part of a character
let given = ""; // the text that they continue

const headers = () => ({
  "Content-Type": "application/json",
  ...(at("token").value ? { Authorization: `Bearer ${at("token").value}` } : {}),
});

function complain(message) {
  at("trouble").textContent = message;
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

async function start() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (!answer.ok) return complain(await reason(answer));
  complain("");
  const found = (await answer.json()).data;
  models = found.map((model) => model.id);
  at("name").textContent = models[0];
  document.title = models[0];
  const steps = models.slice(1);
  at("history").hidden = steps.length < 2;
  at("step").max = Math.max(0, steps.length - 1);
  at("step").value = at("step").max;
  showStep();
  offerChat(found[0].chats);
  // A link may carry a text: /#Once%20upon
  if (location.hash.length > 1 && !given && !turns.length) {
    at("prompt").value = decodeURIComponent(location.hash.slice(1));
    submit();
  }
}

const chosenModel = () => (at("history").hidden ? models[0] : models[1 + Number(at("step").value)]);

function showStep() {
  at("shown").textContent = (chosenModel() || "").split("@")[1] || "";
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice("data: ".length));
  }
}

// Ask the server and give each choice of the stream to `take`, until it ends (true), or is stopped or refused.
async function ask(path, body, take) {
  if (running) running.abort();
  const mine = (running = new AbortController());
  complain("");
  at("go").disabled = true;
  at("stop").hidden = false;
  const how = { max_tokens: Number(at("tokens").value), temperature: Number(at("temperature").value), top_p: 0.95, stream: true };
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: headers(),
      signal: mine.signal,
      body: JSON.stringify({ model: chosenModel(), ...how, ...body }),
    });
    if (!answer.ok) return complain(await reason(answer));
    for await (const event of events(answer)) {
      if (event.error) return complain(event.error.message);
      for (const choice of event.choices) take(choice);
    }
    return true;
  } catch (error) {
    if (error.name !== "AbortError") complain("The server does not answer.");
  } finally {
    if (running === mine) {
      running = null;
      at("go").disabled = false;
      at("stop").hidden = true;
    }
  }
}

// Take tokens as what is written.
function write(tokens) {
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  written = tokens.map(complete);
}

// A token with the characters that it completes: a part of one is not shown, and not sent back, before the rest is there.
const complete = (token) => ({ ...token, text: decoder.decode(Uint8Array.from(token.bytes), { stream: true }) });

function go() {
  decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return ask("v1/completions", { prompt: given + written.map((token) => token.text).join(""), logprobs: 6 }, add);
}

function add(choice) {
  const told = choice.logprobs;
  for (let n = 0; told && n < told.tokens.length; n++) {
    const others = Object.entries(told.top_logprobs[n] || {}).map(([name, log]) => ({
      name,
      bytes: told.top_bytes[n][name],
      probability: Math.exp(log),
    }));
    written.push(complete({ name: told.tokens[n], bytes: told.bytes[n], probability: Math.exp(told.token_logprobs[n]), others }));
    at("text").append(button(written.length - 1));
  }
}

function percent(probability) {
  return probability >= 0.1 ? `${(100 * probability).toFixed(0)} %` : `${(100 * probability).toPrecision(2)} %`;
}

function button(place) {
  const token = written[place];
  // Not a <button>, which would not break a line where the token does.
  const made = document.createElement("span");
  made.setAttribute("role", "button");
  made.tabIndex = 0;
  made.textContent = token.text;
  made.title = percent(token.probability);
  made.className = `p${bounds.filter((bound) => token.probability < bound).length}`;
  made.addEventListener("click", () => offer(place, made));
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    offer(place, made);
  });
  return made;
}

function draw() {
  const before = document.createElement("span");
  before.className = "given";
  before.textContent = given;
  at("text").replaceChildren(before, ...written.map((_, place) => button(place)));
}

function offer(place, anchor) {
  const menu = at("choices");
  menu.replaceChildren(
    ...written[place].others.map((other) => {
      const made = document.createElement("button");
      made.type = "button";
      made.setAttribute("role", "menuitem");
      const share = document.createElement("span");
      share.textContent = percent(other.probability);
      made.append(JSON.stringify(other.name).slice(1, -1), share);
      made.addEventListener("click", () => branch(place, other));
      return made;
    }),
  );
  menu.hidden = false;
  const box = anchor.getBoundingClientRect();
  menu.style.top = `${box.bottom + window.scrollY + 4}px`;
  menu.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - menu.offsetWidth - 16))}px`;
  if (menu.firstChild) menu.firstChild.focus();
}

function close() {
  at("choices").hidden = true;
}

function branch(place, other) {
  close();
  if (other.name === "(end)") return;
  write([...written.slice(0, place), { ...written[place], ...other }]);
  draw();
  go();
}

function again() {
  if (!at("prompt").value) return;
  close();
  given = at("prompt").value;
  write([]);
  draw();
  go();
}

const submit = () => (chatting() ? say() : again());

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
at("prompt").addEventListener("keydown", (event) => {
  const sends = event.ctrlKey || event.metaKey || (chatting() && !event.shiftKey && !event.isComposing);
  if (event.key !== "Enter" || !sends) return;
  event.preventDefault();
  submit();
});
at("stop").addEventListener("click", () => running && running.abort());
at("step").addEventListener("input", showStep);
at("step").addEventListener("change", () => chatting() || again());
at("token").addEventListener("change", start);
document.addEventListener("keydown", (event) => {
  const menu = at("choices");
  if (event.key === "Escape") close();
  if (menu.hidden || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  event.preventDefault();
  const items = [...menu.children];
  const next = items.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
  items[(next + items.length) % items.length].focus();
});
document.addEventListener("click", (event) => {
  if (!at("choices").contains(event.target) && !at("text").contains(event.target)) close();
});
start();
