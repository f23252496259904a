"use strict";
// A line chart in plain SVG: a shared time axis, values labelled at the line's end, a cursor that shows all values.
const SVG = "http://www.w3.org/2000/svg";

function make(parent, tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Round steps for an axis from low to high, about `n` of them.
function ticks(low, high, n) {
  const raw = (high - low) / n;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = size * [1, 2, 2.5, 5, 10].find((m) => m * size >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return found;
}

class Chart {
  // lines: [{key, name, cls}] ; options: format(value), floor (lowest top of the scale), zero (start at 0), mark (a line drawn at a value)
  constructor(place, lines, options) {
    this.place = place;
    this.lines = lines;
    this.options = options;
    this.columns = null;
    this.cursor = null;
    if (lines.length > 1) this.legend();
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    place.append(this.tip);
    this.svg = make(place, "svg", { role: "img" });
    this.svg.addEventListener("pointermove", (event) => { this.cursor = event.offsetX; this.draw(); });
    this.svg.addEventListener("pointerleave", () => { this.cursor = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(place);
  }

  legend() {
    const legend = document.createElement("p");
    legend.className = "legend";
    for (const line of this.lines) {
      const entry = document.createElement("span");
      entry.className = line.cls;
      entry.textContent = line.name;
      legend.append(entry);
    }
    this.place.previousElementSibling.append(legend);
  }

  // A chart without a point is not there: the page says in words what is awaited.
  show(columns) {
    this.columns = columns;
    this.place.parentElement.hidden = !this.lines.some((line) => columns[line.key].some((v) => v !== null));
    this.draw();
  }

  draw() {
    const { svg, options, columns } = this;
    const width = this.place.clientWidth, height = this.place.clientHeight;
    if (!columns || !width) return; // or it is hidden
    const time = columns.event_ms, begins = time.findIndex((_, i) => this.lines.some((line) => columns[line.key][i] !== null));
    const known = this.lines.flatMap((line) => columns[line.key].filter((v) => v !== null));
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", this.describe(columns));

    const left = 46, right = 62, top = 8, bottom = 22;
    let low = options.zero ? 0 : Math.min(...known), high = Math.max(...known);
    if (options.mark !== undefined) { low = Math.min(low, options.mark); high = Math.max(high, options.mark); }
    const least = options.least || Math.abs(high) * 0.02 || 1;
    if (high - low < least) { const add = (least - (high - low)) / 2; high += add; if (!options.zero) low -= add; }
    const room = (high - low) * 0.06;
    high += room;
    if (!options.zero) low -= room;
    const first = time[begins], last = Math.max(time[time.length - 1], first + 1);
    const x = (t) => left + ((t - first) / (last - first)) * (width - left - right);
    const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);

    for (const at of ticks(low, high, height > 220 ? 6 : 3)) {
      make(svg, "line", { class: "rule", x1: left, x2: width - right, y1: y(at), y2: y(at) });
      make(svg, "text", { x: left - 8, y: y(at) + 4, "text-anchor": "end" }, options.format(at));
    }
    const span = last - first;
    const minute = 60000, steps = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080].map((m) => m * minute);
    const step = steps.find((s) => span / s <= (width - left - right) / 70) || steps[steps.length - 1];
    const offset = clockOf.offset; // round hours of the clock that is shown
    for (let t = Math.ceil((first + offset) / step) * step - offset; t <= last; t += step) {
      make(svg, "text", { x: x(t), y: height - 4, "text-anchor": "middle" }, clockOf(t));
    }
    if (options.mark !== undefined) make(svg, "line", { class: "mark", x1: left, x2: width - right, y1: y(options.mark), y2: y(options.mark) });

    const ends = [];
    for (const line of this.lines) {
      const values = columns[line.key];
      let path = "", gap = true;
      values.forEach((v, i) => {
        if (v === null) { gap = true; return; }
        path += `${gap ? "M" : "L"}${x(time[i]).toFixed(1)} ${y(v).toFixed(1)}`;
        gap = false;
      });
      make(svg, "path", { class: line.cls, d: path });
      const at = values.findLastIndex((v) => v !== null);
      if (at >= 0) ends.push({ line, at: y(values[at]), value: values[at], x: x(time[at]) });
    }
    this.label(ends, top, height - bottom);
    this.read(x, y, left, width - right, top, height - bottom);
  }

  // Values at the lines' ends, pushed apart so that none covers another.
  label(ends, top, bottom) {
    ends.sort((a, b) => a.at - b.at);
    ends.forEach((end, i) => { end.text = i ? Math.max(end.at, ends[i - 1].text + 14) : end.at; });
    const over = ends.length ? ends[ends.length - 1].text - bottom : 0;
    for (const end of ends) {
      make(this.svg, "circle", { class: end.line.cls, cx: end.x, cy: end.at, r: 3.5 });
      make(this.svg, "text", { class: `end ${end.line.cls}`, x: end.x + 8, y: end.text - Math.max(over, 0) + 4 }, this.options.format(end.value));
    }
  }

  read(x, y, left, right, top, bottom) {
    const time = this.columns.event_ms;
    this.tip.hidden = this.cursor === null || this.cursor < left - 10 || this.cursor > right + 10;
    if (this.tip.hidden) return;
    let at = 0;
    time.forEach((t, i) => { if (Math.abs(x(t) - this.cursor) < Math.abs(x(time[at]) - this.cursor)) at = i; });
    make(this.svg, "line", { class: "cursor", x1: x(time[at]), x2: x(time[at]), y1: top, y2: bottom });
    this.tip.replaceChildren(clockOf(time[at], true));
    for (const line of this.lines) {
      const value = this.columns[line.key][at];
      if (value === null) continue;
      make(this.svg, "circle", { class: line.cls, cx: x(time[at]), cy: y(value), r: 3.5 });
      const row = document.createElement("div"), strong = document.createElement("b");
      strong.textContent = this.options.format(value, true);
      row.append(`${line.name} `, strong);
      this.tip.append(row);
    }
    const beyond = x(time[at]) > (left + right) / 2;
    this.tip.style.left = beyond ? "" : `${x(time[at]) + 12}px`;
    this.tip.style.right = beyond ? `${this.place.clientWidth - x(time[at]) + 12}px` : "";
    this.tip.style.top = `${top}px`;
  }

  describe(columns) {
    const said = this.lines.map((line) => {
      const value = columns[line.key].findLast((v) => v !== null);
      return `${line.name} ${value === undefined ? "unknown" : this.options.format(value, true)}`;
    });
    return `Line chart, newest values: ${said.join(", ")}`;
  }
}

function clockOf(ms, seconds) {
  const day = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
  const at = new Date(ms + clockOf.offset);
  const time = at.toISOString().slice(11, seconds ? 19 : 16);
  return seconds ? `${day[at.getUTCDay()]} ${time}` : time;
}
clockOf.offset = 0; // ms: of the clock that is shown, to UTC
