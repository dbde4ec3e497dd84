"use strict";
// The page's one script: curves drawn as SVG from the numbers in #data, and a slider over the samples. It fetches nothing.

const at = (id) => document.getElementById(id);
const runs = JSON.parse(at("data").textContent);
const svg = document.querySelector("#chart svg"), tip = at("tip");

// What is shown: the axes, the runs that are hidden, the window that was zoomed into ({x: [low, high], y: [low, high] or
// null}), and whether y follows the smooth curve alone, without its steep beginning.
const state = { x: "tokens", y: "loss", hidden: new Set(), zoom: null, close: false };

// ---- numbers as people read them ----

const whole = (value) => Math.round(value).toLocaleString("en");
const digits = (value, step) => value.toFixed(Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9))));

function count(value, figures = 3) {
  for (const [size, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (value >= size) return Number((value / size).toPrecision(figures)) + suffix;
  return String(Math.round(value));
}

function time(seconds) {
  if (!seconds) return "0";
  if (seconds < 60) return `${Number(seconds.toFixed(seconds < 10 ? 1 : 0))}s`;
  const long = seconds < 172800 ? ["h", "m", 60, 60] : ["d", "h", 3600, 24];
  const [big, small, unit, of] = seconds < 3599.5 ? ["m", "s", 1, 60] : long;
  const units = Math.round(seconds / unit), rest = units % of;
  return `${Math.floor(units / of)}${big}` + (rest ? ` ${String(rest).padStart(2, "0")}${small}` : "");
}

function power(value) {
  if (!value) return "0";
  const [digit, exponent] = value.toExponential(2).split("e");
  return `${Number(digit)} × 10${[...String(Number(exponent))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`;
}

const ROUND = [1, 2, 5, 10];
const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const X = {
  step: { label: "optimizer steps", show: whole, full: (value) => `step ${whole(value)}` },
  tokens: { label: "training tokens", show: count, full: (value) => `${value < 1e5 ? whole(value) : count(value, 4)} tokens` },
  seconds: { label: "training time", show: time, full: (value) => `${time(value)} of training` },
  flops: { label: "training FLOPs", show: power, full: (value) => `${power(value)} FLOPs` },
};
const Y = {
  loss: { label: "cross-entropy, nats per token", unit: "nats per token", train: true },
  bits_per_byte: { label: "validation, bits per byte", unit: "bits per byte", train: false },
};

function ticks(low, high, most, clock) {
  const rough = (high - low) / most || 1, size = 10 ** Math.floor(Math.log10(rough));
  const round = ROUND.find((each) => each * size >= rough * (1 - 1e-9)) * size;
  const step = (clock && rough > 0.5 && CLOCK.find((each) => each >= rough)) || round;
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return { step, at: Array.from({ length: Math.max(0, last - first + 1) }, (_, n) => (first + n) * step) };
}

// ---- drawing ----

function make(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

const shown = () => runs.filter((run, number) => !state.hidden.has(number));
const each = () => shown().every((run) => run.whole); // whether no curve had to be thinned, so that single steps can be read
const heldColour = (run) => (runs.length > 1 ? run.colour : "#D55E00");

/** The places of a sorted list that lie in a window, and one more on either side. */
function within(values, [low, high]) {
  let from = values.findIndex((value) => value >= low), to = values.findLastIndex((value) => value <= high);
  if (from < 0) from = values.length;
  return [Math.max(0, from - 1), Math.min(values.length, to + 2)];
}

function bounds() {
  const xs = shown().flatMap((run) => run.train[state.x].slice(-1)), x = state.zoom?.x ?? [0, Math.max(...xs, 0) || 1];
  if (state.zoom?.y) return { x, y: state.zoom.y };
  const window = state.close ? [x[0] + 0.05 * (x[1] - x[0]), x[1]] : x;
  let low = Infinity, high = -Infinity;
  const take = (part, name) => {
    const [from, to] = within(part[state.x], window);
    for (const value of part[name].slice(from, to)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  };
  for (const run of shown()) {
    if (Y[state.y].train) take(run.train, state.close ? "smooth" : "loss");
    take(run.validation, state.y);
  }
  if (low > high) [low, high] = [0, 1];
  const margin = (high - low || 1) * 0.05;
  return { x, y: [low - margin, high + margin] };
}

let view; // the scales of what is drawn now: from values to pixels and back

function draw() {
  const box = svg.getBoundingClientRect(), { x, y } = bounds();
  const edge = { left: 44, right: box.width - 46, top: 24, bottom: box.height - 42 };
  const across = (value) => edge.left + ((value - x[0]) / (x[1] - x[0])) * (edge.right - edge.left);
  const down = (value) => edge.bottom - ((value - y[0]) / (y[1] - y[0])) * (edge.bottom - edge.top);
  const value = (pixel) => x[0] + ((pixel - edge.left) / (edge.right - edge.left)) * (x[1] - x[0]);
  const height = (pixel) => y[0] + ((edge.bottom - pixel) / (edge.bottom - edge.top)) * (y[1] - y[0]);
  view = { edge, across, down, value, height, x, y };
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  drawAxes();
  const { left, right, top, bottom } = edge;
  const inside = make("clipPath", { id: "inside" }, svg);
  make("rect", { x: left, y: top - 8, width: right - left + 7, height: bottom - top + 8 }, inside);
  const plot = make("g", { "clip-path": "url(#inside)" }, svg);
  for (const run of shown()) drawRun(run, make("g", { style: `--hue: ${run.colour}` }, plot));
  drawEnds();
  make("g", { id: "mark" }, svg);
  at("whole").hidden = !state.zoom;
  drawKey();
  if (!tip.hidden) point(clamp(read, ...x));
}

function drawAxes() {
  const { edge, across, down, x, y } = view, width = edge.right - edge.left;
  const rows = ticks(...y, Math.max(3, (edge.bottom - edge.top) / 60));
  const columns = ticks(...x, width / 90, state.x === "seconds");
  for (const value of rows.at) {
    make("line", { class: "grid", x1: edge.left, x2: edge.right, y1: down(value), y2: down(value) }, svg);
    const place = { class: "y tick", x: edge.left - 8, y: down(value) + 4, "text-anchor": "end" };
    make("text", place, svg, digits(value, rows.step));
  }
  for (const value of columns.at) {
    make("line", { class: "grid", x1: across(value), x2: across(value), y1: edge.bottom, y2: edge.bottom + 5 }, svg);
    const place = { class: "x tick", x: across(value), y: edge.bottom + 19, "text-anchor": "middle" };
    make("text", place, svg, X[state.x].show(value));
  }
  make("text", { class: "x label", x: edge.right, y: edge.bottom + 37, "text-anchor": "end" }, svg, X[state.x].label);
  make("text", { class: "y label", x: 4, y: 10 }, svg, Y[state.y].label);
}

function line(part, name, kind, parent) {
  const [from, to] = within(part[state.x], view.x);
  const points = part[name].slice(from, to).map((value, n) => {
    return `${view.across(part[state.x][from + n]).toFixed(1)},${view.down(value).toFixed(1)}`;
  });
  if (points.length) make("path", { class: points.length > 1500 ? `${kind} dense` : kind, d: `M${points.join("L")}` }, parent);
}

function drawRun(run, parent) {
  const { edge, across, down } = view;
  if (Y[state.y].train) {
    line(run.train, "loss", "raw", parent);
    line(run.train, "smooth", "smooth", parent);
  }
  const held = make("g", { style: `--hue: ${heldColour(run)}` }, parent);
  line(run.validation, state.y, "held", held);
  const dots = run.validation[state.x], size = dots.length > 60 ? { class: "dot small", r: 1.6 } : { class: "dot", r: 4 };
  dots.forEach((x, n) => make("circle", { ...size, cx: across(x), cy: down(run.validation[state.y][n]) }, held));
  for (const x of run.resumed[state.x])
    make("line", { class: "resumed", x1: across(x), x2: across(x), y1: edge.top, y2: edge.bottom }, parent);
  if (Y[state.y].train)
    run.spikes[state.x].forEach((x, n) => {
      make("path", { class: "jump", d: `M${across(x)},${down(run.spikes.loss[n]) - 1}l-5,-8h10z` }, parent);
    });
}

/** The last validation of each run in figures beside its end, pushed apart where they would overlap. */
function drawEnds() {
  const { edge, across, down, x, y } = view, ends = [];
  for (const run of shown()) {
    const value = run.validation[state.y].at(-1), place = run.validation[state.x].at(-1);
    if (value !== undefined && place <= x[1] && place >= x[0] && value >= y[0] && value <= y[1])
      ends.push({ x: across(place) + 9, y: down(value) + 4, text: value.toFixed(2), colour: heldColour(run) });
  }
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, n) => {
    if (n) end.y = Math.max(end.y, ends[n - 1].y + 14);
    const parent = make("g", { style: `--hue: ${end.colour}` }, svg);
    make("text", { class: "end", x: Math.min(end.x, edge.right + 9), y: end.y }, parent, end.text);
  });
}

function drawKey() {
  const train = Y[state.y].train, any = (kind) => shown().some((run) => run[kind].step.length);
  const faint = each() ? "each step" : "lows and highs of neighbouring steps";
  const words = train ? ["solid: train, smoothed", `faint: ${faint}`] : [];
  if (any("validation")) words.push("dashed: validation");
  if (any("resumed")) words.push("dotted: resumed");
  if (train && any("spikes")) words.push("▼ the loss jumped");
  at("key").textContent = `${words.join(" · ")}. Drag to zoom, double click to see the whole run.`;
}

// ---- reading values ----

function nearest(values, x) {
  const after = values.findIndex((value) => value >= x);
  if (after < 0) return values.length - 1;
  return after && x - values[after - 1] < values[after] - x ? after - 1 : after;
}

function cells(parent, kind, texts) {
  const row = parent.appendChild(document.createElement("tr"));
  texts.forEach((text, n) => (row.appendChild(document.createElement(n ? kind : "th")).textContent = text));
  return row;
}

function point(x) {
  const { edge, across, down } = view, axis = X[state.x], train = Y[state.y].train, mark = at("mark");
  const number = (value) => (value === undefined ? "–" : value.toFixed(3));
  mark.replaceChildren();
  make("line", { class: "cross", x1: across(x), x2: across(x), y1: edge.top, y2: edge.bottom }, mark);
  const table = document.createElement("table"), body = document.createElement("tbody");
  cells(table.createTHead(), "th", ["", ...(train ? ["train", "this step"].slice(0, each() ? 2 : 1) : []), "last validation"]);
  table.append(body);
  for (const run of shown()) {
    const place = nearest(run.train[state.x], x), held = run.validation[state.x].findLastIndex((value) => value <= x);
    const over = x > run.train[state.x].at(-1) * 1.01, read = (name) => number(over ? undefined : run.train[name][place]);
    const texts = train ? ["smooth", "loss"].slice(0, each() ? 2 : 1).map(read) : [];
    const row = cells(body, "td", [run.name, ...texts, number(run.validation[state.y][held])]);
    row.style.setProperty("--hue", run.colour);
    row.firstChild.prepend(document.createElement("i"));
    const dot = make("g", { style: `--hue: ${run.colour}` }, mark);
    if (train && !over)
      make("circle", { class: "dot", cx: across(run.train[state.x][place]), cy: down(run.train.smooth[place]), r: 4.5 }, dot);
  }
  const [head, unit] = [document.createElement("p"), document.createElement("p")];
  [head.textContent, unit.textContent, unit.className] = [axis.full(x), Y[state.y].unit, "unit"];
  tip.replaceChildren(head, table, unit);
  tip.hidden = false;
  const left = across(x) + 16, room = svg.clientWidth - tip.offsetWidth;
  tip.style.left = `${left > room ? Math.max(0, Math.min(room, across(x) - 16 - tip.offsetWidth)) : left}px`;
}

function leave() {
  tip.hidden = true;
  at("mark")?.replaceChildren();
}

// ---- hands ----

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
let pulled = null, read = null; // where a drag began, in pixels; the x that is read now

function place(event) {
  const box = svg.getBoundingClientRect(), { edge } = view;
  return [clamp(event.clientX - box.left, edge.left, edge.right), clamp(event.clientY - box.top, edge.top, edge.bottom)];
}

/** The window a drag spans: of x alone, unless it is a box. */
function pull(from, to) {
  const { edge } = view, flat = Math.abs(from[1] - to[1]) < 30;
  const [left, right] = [from[0], to[0]].sort((a, b) => a - b), [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
  return { left, right, top: flat ? edge.top : top, bottom: flat ? edge.bottom : bottom, flat };
}

function zoom(to) {
  state.zoom = to;
  leave();
  draw();
}

svg.addEventListener("pointerdown", (event) => {
  if (event.button === 0 && event.pointerType !== "touch") pulled = place(event);
});
svg.addEventListener("pointermove", (event) => {
  const here = place(event);
  point((read = view.value(here[0])));
  if (!pulled || Math.abs(here[0] - pulled[0]) < 6) return;
  const { left, right, top, bottom } = pull(pulled, here);
  make("rect", { class: "pull", x: left, y: top, width: right - left, height: bottom - top }, at("mark"));
});
window.addEventListener("pointerup", (event) => {
  const from = pulled, to = from && place(event);
  pulled = null;
  if (!from || Math.abs(to[0] - from[0]) < 6) return;
  const { left, right, top, bottom, flat } = pull(from, to);
  zoom({ x: [view.value(left), view.value(right)], y: flat ? null : [view.height(bottom), view.height(top)] });
});
svg.addEventListener("pointerleave", leave);
svg.addEventListener("blur", leave);
svg.addEventListener("dblclick", () => zoom(null));
svg.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key], [low, high] = view.x;
  if (event.key === "Escape") zoom(null);
  if (!step) return;
  event.preventDefault();
  point((read = clamp((read ?? low) + step * (high - low), low, high)));
});
at("whole").addEventListener("click", () => zoom(null));
at("close").addEventListener("click", () => {
  state.close = !state.close;
  at("close").setAttribute("aria-pressed", state.close);
  draw();
});

for (const axis of ["x", "y"]) {
  const buttons = document.querySelectorAll(`[data-${axis}]`);
  for (const button of buttons)
    button.addEventListener("click", () => {
      [state[axis], read] = [button.dataset[axis], null];
      for (const each of buttons) each.setAttribute("aria-pressed", each === button);
      zoom(null);
    });
}

if (runs.length > 1)
  runs.forEach((run, number) => {
    const button = at("legend").appendChild(document.createElement("button"));
    button.append(document.createElement("i"), run.name);
    button.style.setProperty("--hue", run.colour);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!state.hidden.delete(number)) state.hidden.add(number);
      button.setAttribute("aria-pressed", !state.hidden.has(number));
      leave();
      draw();
    });
  });

new ResizeObserver(() => draw()).observe(svg);
draw();

// ---- samples: the lists are whole in the page; the slider shows what stood last at its step ----

const samples = at("samples");
if (samples) {
  const bar = samples.querySelector(".slide"), range = bar.querySelector("input"), all = at("all"), play = at("play");
  const found = [...samples.querySelectorAll("li")].map((item) => Number(item.dataset.step));
  const steps = [...new Set(found)].sort((a, b) => a - b);
  const show = () => {
    bar.querySelector("output").textContent = `step ${whole(steps[range.value])}`;
    for (const list of samples.querySelectorAll("ol")) {
      const now = [...list.children].findLastIndex((item) => Number(item.dataset.step) <= steps[range.value]);
      [...list.children].forEach((item, n) => item.classList.toggle("now", n === now));
    }
  };
  let playing = 0;
  const stop = () => {
    playing = clearInterval(playing);
    play.textContent = "play";
  };
  play.addEventListener("click", () => {
    if (playing) return stop();
    if (range.value === range.max) range.value = 0;
    play.textContent = "pause";
    playing = setInterval(() => {
      range.value = Number(range.value) + 1;
      show();
      if (range.value === range.max) stop();
    }, 700);
    show();
  });
  range.addEventListener("input", () => {
    stop();
    show();
  });
  all.addEventListener("click", () => {
    const whole = samples.classList.toggle("sliding");
    all.setAttribute("aria-pressed", !whole);
  });
  samples.classList.add("sliding");
  [bar.hidden, range.max] = [steps.length < 2, steps.length - 1];
  range.value = range.max;
  show();
}
