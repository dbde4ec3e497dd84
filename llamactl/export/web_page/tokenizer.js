"use strict";
// Byte-level BPE with GPT-2's pattern: text to ids as tiktoken gives them, ids to bytes. Text never becomes a control token.

// \s is spelled out: JavaScript's counts U+FEFF as a space and U+0085 not, the Unicode property does as tiktoken.
const WORDS = new RegExp(
  "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+|" +
    "\\p{White_Space}+$|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}",
  "gu",
);
const REMEMBERED = 20_000; // words whose ids are kept

class Tokenizer {
  // `lengths` are the bytes of each id, `bytes` all of them one after another; ids above have none.
  constructor(lengths, bytes) {
    this.bytes = [];
    this.ranks = new Map(); // id by the bytes, written as characters up to U+00FF
    this.known = new Map();
    let start = 0;
    for (const [id, length] of lengths.entries()) {
      const token = bytes.subarray(start, start + length);
      start += length;
      this.bytes.push(token);
      this.ranks.set(spelled(token), id);
    }
  }

  encode(text) {
    const encoder = new TextEncoder();
    const ids = [];
    for (const [word] of text.matchAll(WORDS)) {
      let found = this.known.get(word);
      if (!found) {
        found = this.merge(spelled(encoder.encode(word)));
        if (this.known.size < REMEMBERED) this.known.set(word, found);
      }
      for (const id of found) ids.push(id);
    }
    return ids;
  }

  // Join the pair with the lowest id, the leftmost of equal ones, until there is none; `word` is bytes as characters.
  merge(word) {
    if (this.ranks.has(word)) return [this.ranks.get(word)];
    const size = word.length;
    const end = Array.from({ length: size }, (_, i) => i + 1); // of the part that begins here; 0: none does
    const before = Array.from({ length: size }, (_, i) => i - 1);
    const heap = new Heap();
    const offer = (left) => {
      if (left < 0 || end[left] >= size) return;
      const rank = this.ranks.get(word.slice(left, end[end[left]]));
      if (rank !== undefined) heap.push([rank, left, end[end[left]]]);
    };
    for (let i = 0; i + 1 < size; i++) offer(i);
    for (let pair = heap.pop(); pair; pair = heap.pop()) {
      const [, left, stop] = pair;
      const middle = end[left];
      if (middle === 0 || middle >= size || end[middle] !== stop) continue; // one of the two was joined meanwhile
      end[left] = stop;
      end[middle] = 0;
      if (stop < size) before[stop] = left;
      offer(before[left]);
      offer(left);
    }
    const ids = [];
    for (let i = 0; i < size; i = end[i]) ids.push(this.ranks.get(word.slice(i, end[i])));
    return ids;
  }

  bytesOf(id) {
    return this.bytes[id] || new Uint8Array(0);
  }
}

function spelled(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

// A heap of [rank, place, ...], the lowest first.
class Heap {
  constructor() {
    this.items = [];
  }

  push(item) {
    const { items } = this;
    let place = items.length;
    items.push(item);
    while (place > 0) {
      const above = (place - 1) >> 1;
      if (!isLower(item, items[above])) break;
      items[place] = items[above];
      place = above;
    }
    items[place] = item;
  }

  pop() {
    const { items } = this;
    const top = items[0];
    const item = items.pop();
    if (items.length === 0) return top;
    let place = 0;
    for (let below = 1; below < items.length; below = 2 * place + 1) {
      if (below + 1 < items.length && isLower(items[below + 1], items[below])) below++;
      if (!isLower(items[below], item)) break;
      items[place] = items[below];
      place = below;
    }
    items[place] = item;
    return top;
  }
}

const isLower = (a, b) => a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
