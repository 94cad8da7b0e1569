// What a chart says under the pointer, or under the cursor that the arrow keys move: exact values, as the log has them.

const MOST_ROWS = 14;

class Readout {
  constructor(chart) {
    this.chart = chart;
    this.box = html("div", { className: "readout", hidden: true }, chart.figure);
    this.spoken = html("div", { className: "unseen" }, chart.figure);
    this.spoken.setAttribute("aria-live", "polite");
    chart.svg.addEventListener("pointermove", (event) => this.point(event));
    chart.svg.addEventListener("pointerdown", (event) => this.point(event));
    chart.svg.addEventListener("pointerleave", () => this.hide());
    chart.svg.addEventListener("keydown", (event) => this.key(event));
    chart.svg.addEventListener("blur", () => this.hide());
  }

  point(event) {
    const box = this.chart.svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * this.chart.width;
    const py = ((event.clientY - box.top) / box.height) * this.chart.height;
    if (px < LEFT - 4 || px > this.chart.width - RIGHT + 4) return this.hide();
    this.show(this.snapped(this.chart.x.invert(px)), py);
  }

  /** The nearest place at which a line in view has a point. */
  snapped(x) {
    let best = null;
    for (const line of this.chart.visible()) {
      const i = this.near(line, x);
      if (i !== null && (best === null || Math.abs(line.x[i] - x) < Math.abs(best - x))) best = line.x[i];
    }
    return best;
  }

  /** Index of the point of a line nearest to x that has a value, and lies in view; null without one. */
  near(line, x) {
    const middle = nearest(line.x, x), has = (i) => this.inView(line.x[i]) && (line.y[i] !== null || line.bad?.[i]);
    for (let away = 0; away < 50; away++) {
      const found = [middle - away, middle + away].filter((i) => i >= 0 && i < line.x.length && has(i));
      if (found.length) return found.reduce((a, b) => (Math.abs(line.x[b] - x) < Math.abs(line.x[a] - x) ? b : a));
    }
    return null;
  }

  inView(x) {
    return x !== null && x >= this.chart.x.low && x <= this.chart.x.high;
  }

  show(x, py = 0) {
    if (x === null) return this.hide();
    this.at = x;
    const rows = this.rows(x, py), events = eventsAt(this.chart, this.chart.x(x));
    this.fill(rows, events);
    for (const other of charts) other.readout.line(x, other === this.chart ? rows : []);
  }

  /** Points at x, or within half a step of it on the screen. */
  rows(x, py) {
    const rows = [];
    for (const line of this.chart.visible()) {
      const i = this.near(line, x);
      if (i === null || Math.abs(this.chart.x(line.x[i]) - this.chart.x(x)) > 3) continue;
      const away = line.drawn[i] === null ? Infinity : Math.abs(this.chart.y(line.drawn[i]) - py);
      rows.push({ line, i, away });
    }
    if (rows.length > MOST_ROWS) rows.sort((a, b) => a.away - b.away);
    return rows;
  }

  fill(rows, events) {
    const first = rows[0], where = first ? whereText(first.line.grid, first.i) : "";
    this.box.replaceChildren(html("b", { textContent: where }));
    const body = html("tbody", {}, html("table", {}, this.box));
    for (const row of rows.slice(0, MOST_ROWS)) this.row(body, row);
    if (rows.length > MOST_ROWS) html("div", { textContent: `${rows.length - MOST_ROWS} more` }, this.box);
    for (const event of events.slice(0, 4)) {
      const line = html("div", {}, this.box);
      html("i", { className: `mark-${event.kind}` }, line);
      line.append(report.runs.length > 1 ? `${report.runs[event.run]}: ${event.text}` : event.text);
    }
    this.box.hidden = false;
    this.put();
  }

  /** Beside the cursor where there is room in the window, on a narrow screen above the plot. */
  put() {
    const plot = this.chart.svg.getBoundingClientRect(), frame = this.chart.figure.getBoundingClientRect();
    const at = plot.left + (this.chart.x(this.at) / this.chart.width) * plot.width;
    const { offsetWidth: width, offsetHeight: height } = this.box, room = document.documentElement.clientWidth - 8;
    const isNarrow = frame.width < 480;
    const left = at + 14 + width <= room ? at + 14 : at - 14 - width;
    this.box.style.left = `${Math.max(8, isNarrow ? Math.min(at - width / 2, room - width) : left) - frame.left}px`;
    this.box.style.top = `${isNarrow ? plot.top - frame.top - height - 2 : plot.top - frame.top + 12}px`;
  }

  row(body, { line, i }) {
    const row = html("tr", {}, body), name = html("td", { className: "name" }, row);
    html("i", { className: `k ${line.tone}` }, name);
    name.append(line.label);
    html("td", { className: "value", textContent: line.bad?.[i] && line.y[i] === null ? line.bad[i] : exact(line.y[i]) }, row);
    html("td", { textContent: aside(this.chart, line, i) }, row);
  }

  /** The cursor of this chart, with a dot at every value that is read. */
  line(x, rows) {
    this.lineX = x;
    const { over, height } = this.chart;
    over.querySelectorAll(".cursor, .read").forEach((old) => old.remove());
    if (x === null || !this.inView(x)) return;
    const at = this.chart.x(x);
    svg("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: height - BOTTOM }, over);
    for (const { line, i } of rows) {
      if (!this.chart.hasPlace(line.x[i], line.drawn[i])) continue;
      svg("circle", { class: `read ${line.tone}`, cx: this.chart.x(line.x[i]), cy: this.chart.y(line.drawn[i]), r: 4 }, over);
    }
  }

  hide() {
    this.box.hidden = true;
    this.at = null;
    for (const other of charts) other.readout.line(null, []);
  }

  redraw() {
    this.box.hidden = true;
    this.line(this.lineX ?? null, []);
  }

  key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (event.key in moves) this.move(moves[event.key] * (event.shiftKey ? 10 : 1));
    else if (event.key === "Home") this.show(this.snapped(this.chart.x.low));
    else if (event.key === "End") this.show(this.snapped(this.chart.x.high));
    else if (event.key === "Escape") this.hide();
    else return;
    event.preventDefault();
    if (!this.box.hidden) this.spoken.textContent = this.box.innerText.replace(/\s+/g, " ");
  }

  /** To the next place with a point, so many points on. */
  move(count) {
    const lines = this.chart.visible().filter((line) => !line.faint);
    const places = [...new Set(lines.flatMap((line) => line.x.filter((x, i) => this.inView(x) && line.y[i] !== null)))];
    places.sort((a, b) => a - b);
    if (!places.length) return;
    const now = this.at === null || this.at === undefined ? -1 : nearest(places, this.at);
    this.show(places[Math.min(places.length - 1, Math.max(0, now + count))]);
  }
}

/** "step 120, 30.7k tokens, 0.12 h", and how many steps a point stands for. */
function whereText(grid, i) {
  const parts = [`step ${exact(grid.step[i])}`];
  if (grid.tokens[i] !== null) parts.push(`${compact(grid.tokens[i])} tokens`);
  if (grid.hours[i] !== null) parts.push(`${grid.hours[i].toFixed(grid.hours[i] < 10 ? 3 : 1)} h`);
  if (grid.count && grid.count[i] > 1) parts.push(`mean of ${grid.count[i]} steps`);
  return parts.join(" · ");
}

/** Extremes or interval of a point, and what the smoothed line has there. */
function aside(chart, line, i) {
  const parts = [];
  if (line.low && line.low[i] !== null && line.high[i] !== null && line.low[i] !== line.high[i]) {
    parts.push(line.interval ? `[${compact(line.low[i])}, ${compact(line.high[i])}]` : `${exact(line.low[i])} to ${exact(line.high[i])}`);
  }
  if (line.bad?.[i] && line.y[i] !== null) parts.push(line.bad[i]);
  if (chart.half(line) > 0 && line.drawn[i] !== null) parts.push(`smoothed ${compact(line.drawn[i])}`);
  return parts.join(", ");
}
