"use strict";
// The model: token ids in, logits out. Weights are float32, activations float64, keys and values float32.
// D width, H query heads, K key/value heads, E head width, F hidden width of SwiGLU, V vocabulary, T tokens at once.

const BLOCK = 16; // tokens that a prompt is read by, so that each weight is loaded once for four of them

class Engine {
  // `weights` has embedding (V D), head (V D), norm (D) and layers: an object of Float32Arrays each.
  constructor(shape, weights) {
    this.shape = shape;
    this.weights = weights;
    this.ids = []; // the tokens in the cache
    const { layers, dim, heads, kvHeads, headDim, ffn, context, vocab } = shape;
    this.keys = Array.from({ length: layers }, () => new Float32Array(context * kvHeads * headDim));
    this.values = Array.from({ length: layers }, () => new Float32Array(context * kvHeads * headDim));
    const sizes = { x: dim, normed: dim, q: heads * headDim, k: kvHeads * headDim, v: kvHeads * headDim };
    Object.assign(sizes, { mixed: heads * headDim, added: dim, gate: ffn, up: ffn });
    this.at = Object.fromEntries(Object.entries(sizes).map(([name, size]) => [name, new Float64Array(BLOCK * size)]));
    this.scores = new Float64Array(context);
    this.logits = new Float64Array(BLOCK * vocab);
    [this.cos, this.sin] = rotaryTable(shape);
  }

  // Read tokens after those in the cache, at most BLOCK of them; logits are those after the last, or with `all` after each.
  forward(ids, all = false) {
    const { dim, vocab, eps } = this.shape;
    const { x, normed } = this.at;
    const count = ids.length;
    const from = this.ids.length;
    ids.forEach((id, t) => x.set(this.weights.embedding.subarray(id * dim, (id + 1) * dim), t * dim));
    this.weights.layers.forEach((layer, number) => this.block(layer, number, from, count));
    this.ids.push(...ids);
    normalise(normed, x, this.weights.norm, count, dim, eps);
    const first = all ? 0 : count - 1;
    multiply(this.logits, this.weights.head, normed.subarray(first * dim, count * dim), vocab, dim, count - first);
    return this.logits.subarray(0, (count - first) * vocab);
  }

  block(layer, number, from, count) {
    const { dim, heads, kvHeads, headDim, ffn, eps } = this.shape;
    const { x, normed, q, k, v, mixed, added, gate, up } = this.at;
    const width = kvHeads * headDim;
    normalise(normed, x, layer.input_layernorm, count, dim, eps);
    multiply(q, layer.q_proj, normed, heads * headDim, dim, count, layer.q_bias);
    multiply(k, layer.k_proj, normed, width, dim, count, layer.k_bias);
    multiply(v, layer.v_proj, normed, width, dim, count, layer.v_bias);
    if (layer.q_norm) normalise(q, q, layer.q_norm, count * heads, headDim, eps);
    if (layer.k_norm) normalise(k, k, layer.k_norm, count * kvHeads, headDim, eps);
    this.rotate(q, heads, from, count);
    this.rotate(k, kvHeads, from, count);
    this.keys[number].set(k.subarray(0, count * width), from * width);
    this.values[number].set(v.subarray(0, count * width), from * width);
    for (let t = 0; t < count; t++) this.attend(number, from + t, t);
    multiply(added, layer.o_proj, mixed, dim, heads * headDim, count);
    for (let i = 0; i < count * dim; i++) x[i] += added[i];
    normalise(normed, x, layer.post_attention_layernorm, count, dim, eps);
    multiply(gate, layer.gate_proj, normed, ffn, dim, count);
    multiply(up, layer.up_proj, normed, ffn, dim, count);
    for (let i = 0; i < count * ffn; i++) gate[i] *= up[i] / (1 + Math.exp(-gate[i]));
    multiply(added, layer.down_proj, gate, dim, ffn, count);
    for (let i = 0; i < count * dim; i++) x[i] += added[i];
  }

  // Turn each pair of channels (i, i + E/2) by the angle of its position.
  rotate(x, heads, from, count) {
    const half = this.shape.headDim / 2;
    for (let t = 0; t < count; t++) {
      for (let h = 0; h < heads; h++) {
        const start = (t * heads + h) * 2 * half;
        for (let i = 0; i < half; i++) {
          const cos = this.cos[(from + t) * half + i];
          const sin = this.sin[(from + t) * half + i];
          const a = x[start + i];
          const b = x[start + half + i];
          x[start + i] = a * cos - b * sin;
          x[start + half + i] = b * cos + a * sin;
        }
      }
    }
  }

  // Mix the values of all positions up to `position` by the softmax of their scores, for the token `t` of the block.
  attend(number, position, t) {
    const { heads, kvHeads, headDim } = this.shape;
    const [keys, values, scores] = [this.keys[number], this.values[number], this.scores];
    const { q, mixed } = this.at;
    const [width, scale] = [kvHeads * headDim, 1 / Math.sqrt(headDim)];
    for (let h = 0; h < heads; h++) {
      const own = (t * heads + h) * headDim;
      const shared = Math.floor(h / (heads / kvHeads)) * headDim;
      let most = -Infinity;
      for (let s = 0; s <= position; s++) {
        let sum = 0;
        for (let i = 0, k = s * width + shared; i < headDim; i++) sum += q[own + i] * keys[k + i];
        scores[s] = sum * scale;
        if (scores[s] > most) most = scores[s];
      }
      let total = 0;
      for (let s = 0; s <= position; s++) total += scores[s] = Math.exp(scores[s] - most);
      mixed.fill(0, own, own + headDim);
      for (let s = 0; s <= position; s++) {
        const share = scores[s] / total;
        for (let i = 0, v = s * width + shared; i < headDim; i++) mixed[own + i] += share * values[v + i];
      }
    }
  }
}

// Cosines and sines of the angles of each position (context × E/2). Angles are float32, as they are in training.
function rotaryTable({ context, headDim, frequencies, linear }) {
  const half = headDim / 2;
  const [cos, sin] = [new Float64Array(context * half), new Float64Array(context * half)];
  for (let position = 0; position < context; position++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(Math.fround(position / linear) * Math.fround(frequencies[i]));
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  }
  return [cos, sin];
}

// RMSNorm of each of `count` rows of x.
function normalise(out, x, gain, count, width, eps) {
  for (let start = 0; start < count * width; start += width) {
    let sum = 0;
    for (let i = start; i < start + width; i++) sum += x[i] * x[i];
    const scale = 1 / Math.sqrt(sum / width + eps);
    for (let i = 0; i < width; i++) out[start + i] = x[start + i] * scale * gain[i];
  }
}

// The product of x (count × columns) and the transposed matrix (rows × columns), plus a bias where there is one.
function multiply(out, matrix, x, rows, columns, count, bias) {
  let t = 0;
  for (; t + 4 <= count; t += 4) multiplyFour(out, matrix, x, rows, columns, t);
  for (; t < count; t++) multiplyOne(out, matrix, x, rows, columns, t);
  if (bias) for (let i = 0; i < count * rows; i++) out[i] += bias[i % rows];
}

// One token: four rows at a time, which share its loads.
function multiplyOne(out, matrix, x, rows, columns, t) {
  const [from, to] = [t * columns, t * rows];
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    let [a, b, c, d] = [row * columns, (row + 1) * columns, (row + 2) * columns, (row + 3) * columns];
    let [s0, s1, s2, s3] = [0, 0, 0, 0];
    for (let i = from; i < from + columns; i++) {
      const value = x[i];
      s0 += matrix[a++] * value;
      s1 += matrix[b++] * value;
      s2 += matrix[c++] * value;
      s3 += matrix[d++] * value;
    }
    out[to + row] = s0;
    out[to + row + 1] = s1;
    out[to + row + 2] = s2;
    out[to + row + 3] = s3;
  }
  for (; row < rows; row++) {
    let sum = 0;
    for (let i = 0; i < columns; i++) sum += matrix[row * columns + i] * x[from + i];
    out[to + row] = sum;
  }
}

// Four tokens: each weight is loaded and converted once for all of them.
function multiplyFour(out, matrix, x, rows, columns, t) {
  const from = t * columns;
  for (let row = 0; row < rows; row++) {
    let [a, b, c, d] = [from, from + columns, from + 2 * columns, from + 3 * columns];
    let [s0, s1, s2, s3] = [0, 0, 0, 0];
    for (let i = row * columns; i < (row + 1) * columns; i++) {
      const weight = matrix[i];
      s0 += weight * x[a++];
      s1 += weight * x[b++];
      s2 += weight * x[c++];
      s3 += weight * x[d++];
    }
    out[t * rows + row] = s0;
    out[(t + 1) * rows + row] = s1;
    out[(t + 2) * rows + row] = s2;
    out[(t + 3) * rows + row] = s3;
  }
}
