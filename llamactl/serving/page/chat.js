"use strict";
// The chat view: a conversation that is sent as a whole with each message. Text goes into the page as text nodes only.

const turns = []; // {role, content}

const chatting = () => document.body.classList.contains("chats");

// A model that was fine-tuned on conversations can do both; others continue texts.
function offerChat(can) {
  at("modes").hidden = !can;
  showMode();
}

function showMode() {
  document.body.classList.toggle("chats", !at("modes").hidden && at("mode-chat").checked);
  at("prompt").placeholder = chatting() ? "Hello!" : "Once upon a time";
  at("prompt").rows = chatting() ? 2 : 3;
}

function addTurn(role, content) {
  turns.push({ role, content });
  const item = document.createElement("li");
  item.className = role;
  item.setAttribute("aria-label", role === "user" ? "You" : "The model");
  item.textContent = content;
  at("turns").append(item);
  return item;
}

// `token` is what the server says of one: its text, its logarithm of a probability, and those of others.
function tokenSpan(token) {
  const made = document.createElement("span");
  const probability = Math.exp(token.logprob);
  made.textContent = token.token;
  made.className = `p${bounds.filter((bound) => probability < bound).length}`;
  made.title = [token, ...token.top_logprobs.filter((other) => other.token !== token.token)]
    .map((other) => `${JSON.stringify(other.token)} ${percent(Math.exp(other.logprob))}`)
    .join("\n");
  return made;
}

async function say() {
  const said = at("prompt").value.trim();
  if (!said) return;
  at("prompt").value = "";
  addTurn("user", said);
  const system = at("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns];
  const item = addTurn("assistant", "");
  const turn = turns[turns.length - 1];
  const stopped = !(await ask("v1/chat/completions", { messages, logprobs: true, top_logprobs: 4 }, (choice) => {
    turn.content += choice.delta.content || "";
    item.append(...((choice.logprobs && choice.logprobs.content) || []).map(tokenSpan));
    item.scrollIntoView({ block: "nearest" });
  }));
  // The pieces of a character that several tokens make are no text by themselves.
  if (item.textContent !== turn.content) item.textContent = turn.content;
  // A message that was not answered can be said again.
  if (!turn.content && (at("trouble").textContent || stopped)) {
    turns.splice(-2);
    item.previousSibling.remove();
    item.remove();
    at("prompt").value = said;
  }
  at("prompt").focus();
}

function newConversation() {
  if (running) running.abort();
  turns.length = 0;
  at("turns").replaceChildren();
  at("prompt").focus();
}

document.getElementById("reset").addEventListener("click", newConversation);
for (const mode of document.getElementsByName("mode")) mode.addEventListener("change", showMode);
