"use strict";
// Weights out of the file. A model is its vectors (float32) and one scale a row (float32), then the integers of its matrices.
// An earlier checkpoint has vectors and scales of its own, and the differences of its integers from those of the next one.

const GROUP = 32; // integers of four bits that share a factor

async function inflate(chunks) {
  const stream = new Blob(chunks.map(fromBase64)).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

// Split the bytes of a model; `layout` has vectors [name, size] and matrices [name, rows, columns].
function split(layout, bytes, type) {
  const rows = sum(layout.matrices.map(([, count]) => count));
  const floats = new Float32Array(bytes.slice(0, 4 * (sum(layout.vectors.map(([, size]) => size)) + rows)).buffer);
  const [vectors, scales] = [floats.subarray(0, floats.length - rows), floats.subarray(floats.length - rows)];
  const rest = bytes.subarray(4 * floats.length);
  if (type === "int8") return { vectors, scales, integers: new Int8Array(rest.slice().buffer) };
  const groups = sum(layout.matrices.map(([, count, columns]) => count * Math.ceil(columns / GROUP)));
  return { vectors, scales, factors: rest.slice(0, groups), integers: nibbles(rest.subarray(groups)) };
}

// Two integers from -7 to 7 in each byte, the first in its lower half.
function nibbles(bytes) {
  const integers = new Int8Array(2 * bytes.length);
  bytes.forEach((byte, i) => {
    integers[2 * i] = (byte & 15) - 8;
    integers[2 * i + 1] = (byte >> 4) - 8;
  });
  return integers;
}

const clamp = (integer) => Math.max(-127, Math.min(127, integer));

// Restore an earlier checkpoint from the next one: a matrix is predicted as its likeness times what it becomes.
function restore(layout, found, next, { likenesses, coarse }) {
  const { scales, integers } = found;
  let [row, i] = [0, 0];
  layout.matrices.forEach(([, rows, columns], number) => {
    for (const end = row + rows; row < end; row++) {
      const ratio = (likenesses[number] * next.scales[row]) / scales[row];
      for (const stop = i + columns; i < stop; i++) {
        const predicted = clamp(Math.floor(next.integers[i] * ratio + 0.5));
        integers[i] = clamp(predicted + coarse * integers[i]);
      }
    }
  });
  return found;
}

// The float32 arrays that the engine multiplies by.
function dequantise(layout, { vectors, scales, factors, integers }) {
  const weights = { layers: [] };
  const keep = (name, values) => {
    const [layer, part] = name.includes(".") ? name.split(".") : [null, name];
    if (layer === null) weights[part] = values;
    else (weights.layers[layer] ||= {})[part] = values;
  };
  let start = 0;
  for (const [name, size] of layout.vectors) keep(name, vectors.subarray(start, (start += size)));
  let [row, i, group] = [0, 0, 0];
  for (const [name, rows, columns] of layout.matrices) {
    const values = new Float32Array(rows * columns);
    for (let r = 0, to = 0; r < rows; r++, row++) {
      let scale = scales[row];
      for (let column = 0; column < columns; column++) {
        if (factors && column % GROUP === 0) scale = Math.fround(scales[row] * factors[group++]);
        values[to++] = integers[i++] * scale;
      }
    }
    keep(name, values);
  }
  weights.head ||= weights.embedding;
  return weights;
}
