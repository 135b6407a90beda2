// Charts in SVG. All of a page share their steps: what one points at, all show.

const OUTCOMES = ["correct", "partial", "wrong", "unparseable", "timeout", "crash", "infra"];
const UNITS = { share: "", s: "seconds", ms: "milliseconds", "\u00b5s": "microseconds" };
const HEIGHT = 168, LEFT = 44, RIGHT = 10, TOP = 8, BOTTOM = 20;

// Times in what they are best read in, for a whole chart.
function readable(spec) {
  const most = spec.series.reduce((high, series) => series.values.reduce((a, b) => Math.max(a, b), high), 0);
  if (spec.unit !== "s" || most >= 0.5 || most === 0) return;
  const [unit, factor] = most >= 5e-4 ? ["ms", 1e3] : ["\u00b5s", 1e6];
  spec.unit = unit;
  for (const series of spec.series) series.values = series.values.map((value) => value * factor);
}

function shown(value, unit) {
  if (value === null || value === undefined) return "-";
  if (unit === "share") return trimmed(value * 100, 3) + " %";
  const number = trimmed(value, 3);
  return unit ? `${number} ${unit}` : number;
}

function trimmed(value, digits) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e7) return value.toExponential(1);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

// About so many round numbers between two values.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0);
  return found;
}

// With as many digits as tell a tick from the next.
function tickLabel(value, apart) {
  const digits = Math.max(0, Math.ceil(-Math.log10(apart) - 1e-9) + (String(apart).includes("25") ? 1 : 0));
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) ? value.toExponential(1) : value.toLocaleString("en", { maximumFractionDigits: digits });
}

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
}

// An exponential mean, without the pull towards its first value.
function smoothed(values, weight) {
  let total = 0, mass = 0;
  return values.map((value) => {
    total = weight * total + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return total / mass;
  });
}

// Points that are closer than a pixel become one: their mean, and how far they reach.
function thinned(series, most) {
  const { steps, values, low, high } = series;
  if (steps.length <= most) return { steps, values, low, high };
  const thin = { steps: [], values: [], low: [], high: [] };
  for (let i = 0; i < most; i++) {
    const from = Math.floor((i * steps.length) / most), to = Math.floor(((i + 1) * steps.length) / most);
    const part = values.slice(from, to), lows = (low || values).slice(from, to), highs = (high || values).slice(from, to);
    thin.steps.push(steps[(from + to - 1) >> 1]);
    thin.values.push(part.reduce((sum, value) => sum + value, 0) / part.length);
    thin.low.push(Math.min(...lows.map((value, j) => value ?? part[j])));
    thin.high.push(Math.max(...highs.map((value, j) => value ?? part[j])));
  }
  return thin;
}

// What the charts of a page have in common: the range of steps, the step that is pointed at, how much is smoothed.
class Board {
  constructor(sections, open) {
    this.charts = [];
    this.open = open;
    this.smooth = 0;
    const all = sections.flatMap((section) => section.charts.flatMap((chart) => chart.series.map((series) => series.steps)));
    this.steps = [...new Set(all.flat())].sort((a, b) => a - b);
    this.first = this.steps[0] ?? 0;
    this.last = this.steps.at(-1) ?? 0;
    this.step = null;
    this.watcher = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.chart.fit()));
  }

  add(spec) {
    const chart = new Chart(spec, this);
    this.charts.push(chart);
    this.watcher.observe(chart.figure);
    return chart.figure;
  }

  point(step) {
    this.step = step;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.charts.forEach((chart) => chart.point()));
  }

  move(by) {
    const at = this.step === null ? this.steps.length - 1 : nearest(this.steps, this.step);
    this.point(this.steps[Math.min(this.steps.length - 1, Math.max(0, at + by))]);
  }

  setSmooth(weight) {
    this.smooth = weight;
    this.charts.forEach((chart) => chart.draw());
  }
}

class Chart {
  constructor(spec, board) {
    this.spec = spec;
    this.board = board;
    readable(spec);
    const isOutcomes = spec.series.every((series) => OUTCOMES.includes(series.name));
    if (isOutcomes) spec.series.sort((a, b) => OUTCOMES.indexOf(a.name) - OUTCOMES.indexOf(b.name));
    spec.series.forEach((series, i) => (series.tone = isOutcomes ? `var(--${series.name})` : `var(--c${(series.color ?? i) % 8})`));
    if (spec.kind === "stack") this.stacked();
    this.drawing = svg("svg", { role: "img", tabindex: 0, "aria-label": this.described(), height: HEIGHT });
    this.values = spec.series.map(() => el("b"));
    this.at = el("span", { class: "at" });
    this.better = { higher: "\u2191 better", lower: "\u2193 better" }[spec.better] ?? "";
    const legend = spec.series.map((series, i) =>
      el("li", { title: series.meaning },
        el("i", { class: "swatch" }), el("span", {}, ...visible(series.name || "value")), this.values[i]));
    this.figure = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, ...visible(spec.title)), this.at),
      el("p", { class: "about" }, [UNITS[spec.unit] ?? spec.unit, spec.about].filter(Boolean).join("; ")),
      this.drawing, el("ul", { class: "legend" }, ...legend));
    this.figure.querySelectorAll(".swatch").forEach((swatch, i) => (swatch.style.background = spec.series[i].tone));
    this.figure.chart = this;
    this.listen();
  }

  described() {
    const lines = this.spec.series.filter((series) => series.steps.length).map((series) => {
      const ends = [0, series.steps.length - 1].map((i) => `${shown(series.values[i], this.spec.unit)} at step ${series.steps[i]}`);
      return `${series.name || "value"}: from ${ends.join(" to ")}`;
    });
    return `${this.spec.title}. ${lines.join("; ")}. ${this.spec.better ? `The ${this.spec.better} the better.` : ""}`;
  }

  // Bottoms and tops of the layers, all on the same steps.
  stacked() {
    const steps = [...new Set(this.spec.series.flatMap((series) => series.steps))].sort((a, b) => a - b);
    let below = steps.map(() => 0);
    for (const series of this.spec.series) {
      const known = new Map(series.steps.map((step, i) => [step, series.values[i]]));
      const own = steps.map((step) => known.get(step) ?? 0);
      Object.assign(series, { steps, values: own, low: below, high: below.map((base, i) => base + own[i]) });
      below = series.high;
    }
  }

  listen() {
    const stepAt = (event) => {
      const box = this.drawing.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
      const { steps, first, last } = this.board;
      return steps[nearest(steps, first + share * (last - first))];
    };
    this.drawing.addEventListener("pointermove", (event) => this.board.point(stepAt(event)));
    this.drawing.addEventListener("pointerleave", () => this.board.point(null));
    this.drawing.addEventListener("blur", () => this.board.point(null));
    this.drawing.addEventListener("click", (event) => this.board.open(stepAt(event)));
    this.drawing.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
      if (event.key in moves) this.board.move(moves[event.key]);
      else if (event.key === "Enter" && this.board.step !== null) this.board.open(this.board.step);
      else return;
      event.preventDefault();
    });
  }

  fit() {
    const width = this.figure.clientWidth;
    if (width && width !== this.width) this.draw();
  }

  range() {
    const { series, top } = this.spec;
    const values = series.flatMap((one) => [...one.values, ...(one.low || []), ...(one.high || [])]).filter((value) => value !== null);
    let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (top !== null && low >= 0 && high <= top + 1e-9) return [0, top];
    if (low > 0 && low < high * 0.6) low = 0;
    if (high === low) [low, high] = low === 0 ? [0, 1] : [Math.min(0, low * 2), Math.max(0, high * 2)];
    const least = Math.abs(high) * 2e-4; // or the labels of an axis could not tell its ends apart
    if (high - low < least) [low, high] = [low - least / 2, high + least / 2];
    return [low, high + (high - low) * 0.04];
  }

  draw() {
    this.width = this.figure.clientWidth;
    if (!this.width) return;
    const style = getComputedStyle(this.figure);
    const width = this.width - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const { first, last } = this.board, [low, high] = this.range();
    this.x = (step) => LEFT + (last === first ? 0.5 : (step - first) / (last - first)) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.cross = svg("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.drawing.replaceChildren(...this.axes(low, high, width), ...this.spec.series.flatMap((series) => this.line(series, width)), this.cross);
    this.point();
  }

  axes(low, high, width) {
    const values = ticks(low, high, 4), isShare = this.spec.unit === "share", factor = isShare ? 100 : 1;
    const apart = values.length > 1 ? (values[1] - values[0]) * factor : 1;
    const label = (value) => tickLabel(value * factor, apart) + (isShare ? "%" : "");
    const rows = values.flatMap((value) => [
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.y(value), y2: this.y(value) }),
      svg("text", { x: LEFT - 6, y: this.y(value) + 3.5, "text-anchor": "end" }, label(value)),
    ]);
    const { first, last } = this.board;
    const places = last === first ? [first] : ticks(first, last, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger);
    const columns = places.map((step) => svg("text", { x: this.x(step), y: HEIGHT - 5, "text-anchor": "middle" }, String(step)));
    return [...rows, ...columns];
  }

  line(series, width) {
    const isStack = this.spec.kind === "stack", weight = isStack || series.steps.length < 5 ? 0 : this.board.smooth;
    const thin = thinned(series, Math.max(50, Math.floor((width - LEFT - RIGHT) / 1.5)));
    const points = (steps, values) => steps.map((step, i) => `${this.x(step).toFixed(1)},${this.y(values[i]).toFixed(1)}`);
    const paint = (node, name) => ((node.style[name] = series.tone), node);
    const nodes = [];
    if (thin.low) {
      const known = thin.steps.map((_, i) => i).filter((i) => thin.low[i] !== null);
      const edge = (values) => points(known.map((i) => thin.steps[i]), known.map((i) => values[i]));
      const area = [...edge(thin.high), ...edge(thin.low).reverse()].join(" ");
      nodes.push(paint(svg("polygon", { class: isStack ? "layer" : "band", points: area }), "fill"));
    }
    if (isStack && thin.steps.length > 1) return nodes;
    const path = (values, name) => paint(svg("polyline", { class: name, points: points(thin.steps, values).join(" ") }), "stroke");
    if (weight) nodes.push(path(thin.values, "line raw"), path(smoothed(thin.values, weight), "line"));
    else nodes.push(path(isStack ? thin.high : thin.values, "line"));
    if (thin.steps.length <= 24)
      nodes.push(...thin.steps.map((step, i) =>
        paint(svg("circle", { cx: this.x(step), cy: this.y(isStack ? thin.high[i] : thin.values[i]), r: 2.6 }), "fill")));
    return nodes;
  }

  // Show the values at the step that is pointed at, or the last ones.
  point() {
    if (!this.cross) return;
    const { step } = this.board, { unit, kind } = this.spec;
    this.cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    this.at.textContent = step === null ? this.better : `step ${step}`;
    this.at.title = step === null && this.spec.better ? `the ${this.spec.better} the better` : "";
    if (step !== null) ["x1", "x2"].forEach((name) => this.cross.setAttribute(name, this.x(step)));
    this.spec.series.forEach((series, i) => {
      const at = step === null ? series.steps.length - 1 : nearest(series.steps, step);
      const band = kind !== "stack" && series.low?.[at] != null ? ` [${trimmedPair(series.low[at], series.high[at], unit)}]` : "";
      this.values[i].textContent = at < 0 ? "-" : shown(series.values[at], unit) + band;
    });
  }
}

function trimmedPair(low, high, unit) {
  const factor = unit === "share" ? 100 : 1;
  return `${trimmed(low * factor, 3)}, ${trimmed(high * factor, 3)}`;
}
