"use strict";
// Tokens on the page: each is colored by its surprise, tells its probability, and offers what else it could have been.
// Everything is a text node, so nothing that a model writes or a person types can become markup.

const MOST_BITS = 10; // of surprise, with the strongest color
const REST = 120; // milliseconds that a pointer rests on a token until its alternatives are shown
const LINGER = 250; // and until they close behind it

const at = (id) => document.getElementById(id);

function made(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function percent(share) {
  if (share >= 0.9995) return "100 %";
  return share >= 0.1 ? `${(100 * share).toFixed(0)} %` : share >= 1e-6 ? `${Number((100 * share).toPrecision(2))} %` : "under 0.0001 %";
}

// A text of tokens in an element. `bytesOf` gives the bytes of an id; `take` is called with a place and another id.
class Sheet {
  constructor(box, bytesOf, take) {
    Object.assign(this, { box, bytesOf, take });
    this.begin("");
    box.dir = "auto";
    box.addEventListener("click", (event) => this.open(event, true));
    box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && choices.wait(() => this.open(event, false)));
    box.addEventListener("pointerout", () => choices.leave());
    box.addEventListener("keydown", (event) => this.move(event));
  }

  begin(given) {
    this.given = given;
    this.tokens = [];
    this.decoder = new TextDecoder();
    this.box.replaceChildren(made("span", given, "given"));
  }

  // Keep the tokens before a place.
  cut(place) {
    const kept = this.tokens.slice(0, place);
    this.begin(this.given);
    kept.forEach((token) => this.add(token));
  }

  add(token) {
    const bytes = this.bytesOf(token.id);
    const text = bytes.length ? this.decoder.decode(bytes, { stream: true }) : "";
    const word = text.trimStart() || text;
    const span = made("span", text.slice(0, text.length - word.length), text ? "" : bytes.length ? "part" : "end");
    // The space before a word is not colored: it would hang at the end of the line before.
    span.append(made("span", word, "word"));
    if (token.taken) span.classList.add("taken");
    span.setAttribute("role", "button");
    span.setAttribute("aria-haspopup", "true");
    span.setAttribute("aria-label", `${text.trim() || (text ? "space" : bytes.length ? "part of a character" : "end")}: ${percent(Math.exp(-token.nats))}`);
    span.tabIndex = this.tokens.length === 0 ? 0 : -1; // one stop of the Tab key; arrow keys move on
    span.style.setProperty("--surprise", Math.min(1, token.nats / Math.LN2 / MOST_BITS).toFixed(3));
    this.tokens.push({ ...token, text });
    this.box.append(span);
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  placeOf(node) {
    const span = node instanceof Element ? node.closest("[role=button]") : null;
    return span ? [...this.box.children].indexOf(span) - 1 : -1;
  }

  open(event, fixed) {
    const place = this.placeOf(event.target);
    if (place >= 0) choices.show(this, place, fixed);
  }

  move(event) {
    const place = this.placeOf(event.target);
    if (place < 0) return;
    if (event.key === "Enter" || event.key === " ") choices.show(this, place, true);
    else {
      const last = this.tokens.length - 1;
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      this.focus(Math.max(0, Math.min(last, to)));
    }
    event.preventDefault();
  }

  focus(place) {
    for (const span of this.box.querySelectorAll("[tabindex='0']")) span.tabIndex = -1;
    const span = this.box.children[place + 1];
    if (!span) return;
    span.tabIndex = 0;
    span.focus();
  }
}

// The card with the probability of a token and five others. It follows a pointer, and stays where it was asked for.
const choices = {
  show(sheet, place, fixed) {
    if (this.fixed && !fixed) return;
    clearTimeout(this.leaving);
    this.close();
    Object.assign(this, { sheet, place, fixed, anchor: sheet.box.children[place + 1] });
    const token = sheet.tokens[place];
    const head = made("p");
    head.append(made("b", percent(Math.exp(-token.nats))), ` likely · ${(token.nats / Math.LN2).toFixed(1)} bits of surprise`);
    const others = token.others.filter(([id]) => id !== token.id).slice(0, 5);
    at("choices").replaceChildren(head, ...others.map(([id, share]) => this.button(id, share)));
    at("choices").setAttribute("aria-label", `Instead of ${token.text.trim() || "this token"}`);
    at("choices").hidden = false;
    this.anchor.setAttribute("aria-expanded", "true");
    this.settle();
    if (fixed) at("choices").querySelector("button")?.focus({ preventScroll: true });
  },

  button(id, share) {
    const button = made("button");
    button.type = "button";
    button.style.setProperty("--share", share.toFixed(3));
    const bytes = this.sheet.bytesOf(id);
    const text = bytes.length ? new TextDecoder().decode(bytes) : "(end of text)";
    button.append(made("span", text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +$/, "␣"), "word"), made("span", percent(share), "share"));
    button.addEventListener("click", () => {
      const { sheet, place } = this;
      this.close();
      sheet.take(place, id, share);
    });
    return button;
  },

  // Below the token, or above it where there is no room.
  settle() {
    const [card, box] = [at("choices"), this.anchor.getClientRects()[0]];
    const above = box.bottom + card.offsetHeight + 8 > innerHeight && box.top > card.offsetHeight + 8;
    card.style.top = `${scrollY + (above ? box.top - card.offsetHeight - 6 : box.bottom + 6)}px`;
    card.style.left = `${scrollX + Math.max(16, Math.min(box.left, document.documentElement.clientWidth - card.offsetWidth - 16))}px`;
  },

  wait(open) {
    clearTimeout(this.coming);
    this.coming = setTimeout(open, REST);
  },

  leave() {
    clearTimeout(this.coming);
    clearTimeout(this.leaving);
    if (!this.fixed) this.leaving = setTimeout(() => this.close(), LINGER);
  },

  close(refocus = false) {
    clearTimeout(this.coming);
    clearTimeout(this.leaving);
    at("choices").hidden = true;
    this.anchor?.removeAttribute("aria-expanded");
    if (refocus && this.fixed) this.sheet.focus(this.place);
    this.fixed = false;
  },

  start() {
    const card = at("choices");
    card.setAttribute("role", "group");
    card.addEventListener("pointerenter", () => clearTimeout(this.leaving));
    card.addEventListener("pointerleave", () => this.leave());
    document.addEventListener("keydown", (event) => {
      if (card.hidden) return;
      if (event.key === "Escape") return this.close(true);
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const items = [...card.querySelectorAll("button")];
      if (!step || !items.includes(document.activeElement)) return;
      event.preventDefault();
      items[(items.indexOf(document.activeElement) + step + items.length) % items.length].focus();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!card.contains(event.target) && !event.target.closest?.(".text [role=button]")) this.close();
    });
    card.addEventListener("focusout", (event) => this.fixed && event.relatedTarget && !card.contains(event.relatedTarget) && this.close());
  },
};
