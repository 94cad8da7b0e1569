// One chart: takes the place of the still picture of its figure and draws itself anew whenever something is asked for.

const MARKS_UP_TO = 60;
const LEFT = 56, RIGHT = 14, TOP = 12, BOTTOM = 38;

class Chart {
  constructor(figure, spec, number) {
    this.figure = figure;
    this.spec = spec;
    this.number = number;
    this.isLog = false;
    this.cursor = null;
    this.lines = spec.lines.map((line) => this.prepared(line));
    figure.querySelector("svg")?.remove();
    figure.querySelector(".legend")?.remove();
    const unit = figure.querySelector("figcaption small");
    if (unit) unit.textContent = spec.unit;
    this.legend = makeLegend(this);
    this.svg = svg("svg", { class: "live", tabindex: 0, role: "group" }, figure);
    this.svg.setAttribute("aria-label", `${spec.title}. Arrow keys read values, + and - zoom, 0 shows all.`);
    this.logButton = makeLogButton(this);
    this.readout = new Readout(this);
    new Zoom(this);
  }

  prepared(line) {
    const grid = report.grids[line.grid];
    const style = ["", " dash", " dot"][Math.floor(line.color / 8) % 3];
    return { ...line, grid, breaks: grid.breaks || [], shown: !line.off, tone: `s${line.color % 8}${style}` };
  }

  /** Lines in view. A line of the background goes with the one of its colour. */
  visible() {
    const hidden = new Set(this.lines.filter((l) => !l.faint && !l.shown).map((l) => l.color));
    return this.lines.filter((l) => (l.faint ? !hidden.has(l.color) : l.shown));
  }

  /** Points to average on either side: a part of all points of the line, none for few or sure ones. */
  half(line) {
    const isNoisy = this.spec.smooth && !line.faint && !line.dots && !line.interval;
    return isNoisy && line.y.length >= MARKS_UP_TO ? Math.round((line.y.length * view.smoothing) / 200) : 0;
  }

  draw() {
    this.width = Math.max(260, this.figure.clientWidth - 34);
    this.height = Math.round(Math.min(300, Math.max(220, this.width * 0.46)));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren();
    const lines = this.visible();
    for (const line of lines) {
      line.x = line.grid[view.x];
      line.drawn = smoothed(line.y, this.half(line), line.breaks);
    }
    const [xs, ys] = this.extents(lines);
    this.x = scale(...xs, LEFT, this.width - RIGHT);
    this.y = scale(...ys, this.height - BOTTOM, TOP, this.isLog);
    this.drawAxes();
    const clip = svg("clipPath", { id: `clip-${this.number}` }, svg("defs", {}, this.svg));
    svg("rect", { x: LEFT, y: TOP - 4, width: this.width - LEFT - RIGHT, height: this.height - TOP - BOTTOM + 8 }, clip);
    const plot = svg("g", { "clip-path": `url(#clip-${this.number})` }, this.svg);
    drawEvents(this, plot);
    for (const [value, text] of this.spec.levels) this.drawLevel(plot, value, text);
    for (const line of lines) this.drawLine(plot, line);
    this.over = svg("g", { class: "over" }, this.svg);
    this.readout.redraw();
  }

  extents(lines) {
    const xs = view.range || extent(lines.flatMap((l) => [extent(l.x)]).flat().filter((x) => x !== null));
    const [low, high] = xs || [0, 1];
    const inside = [];
    for (const line of lines) {
      const ends = this.isLog ? [line.drawn] : [line.drawn, line.y, line.low || [], line.high || []];
      line.x.forEach((x, i) => { if (x !== null && x >= low && x <= high) for (const values of ends) inside.push(values[i]); });
    }
    const kept = this.isLog ? inside.filter((v) => v > 0) : inside.concat(this.spec.levels.map(([v]) => v));
    const start = !view.range && low > 0 && low <= 0.1 * high ? 0 : low;
    return [[start, high > start ? high : start + 1], padded(extent(kept) || [0.1, 1], this.spec.zero, this.isLog)];
  }

  drawAxes() {
    const axes = svg("g", { class: "axes" }, this.svg);
    const ys = this.isLog ? logTicks(this.y.low, this.y.high) : ticks(this.y.low, this.y.high, 5);
    const names = this.isLog ? ys.map(compact) : tickLabels(ys);
    ys.forEach((value, i) => {
      const y = this.y(value);
      svg("line", { class: value === 0 ? "zero" : "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }, axes);
      svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, axes, names[i]);
    });
    const xs = ticks(this.x.low, this.x.high, Math.max(2, Math.floor((this.width - LEFT) / 90)));
    const labels = tickLabels(xs), bottom = this.height - BOTTOM;
    xs.forEach((value, i) => {
      svg("line", { class: "zero", x1: this.x(value), x2: this.x(value), y1: bottom, y2: bottom + 4 }, axes);
      svg("text", { x: this.x(value), y: bottom + 17, "text-anchor": "middle" }, axes, labels[i]);
    });
    svg("line", { class: "zero", x1: LEFT, x2: this.width - RIGHT, y1: bottom, y2: bottom }, axes);
    svg("text", { x: (LEFT + this.width - RIGHT) / 2, y: this.height - 4, "text-anchor": "middle" }, axes, AXES[view.x]);
  }

  drawLevel(plot, value, text) {
    const y = this.y(value);
    svg("line", { class: "level", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }, plot);
    svg("text", { class: "tag", x: this.width - RIGHT - 4, y: y - 4, "text-anchor": "end" }, plot, text);
  }

  drawLine(plot, line) {
    const half = this.half(line);
    if (line.low && (line.interval || half === 0)) svg("path", { class: `extent ${line.tone}`, d: this.area(line) }, plot);
    if (half > 0) {
      if (line.low) svg("path", { class: `extent ${line.tone}`, d: this.area(line) }, plot);
      else svg("path", { class: `raw ${line.tone}`, d: this.path(line, line.y) }, plot);
    }
    const drawn = svg("path", { class: `line ${line.tone}${line.faint ? " faint" : ""}`, d: this.path(line, line.drawn) }, plot);
    drawn.dataset.label = line.label;
    drawn.dataset.points = line.y.filter((v) => v !== null).length;
    if (line.dots || line.x.filter((x) => x !== null && x >= this.x.low && x <= this.x.high).length <= 30) this.drawDots(plot, line);
    for (const place of Object.keys(line.bad || {})) this.drawBad(plot, line.x[place]);
  }

  /** Over points without a value, but not over gaps of the log. */
  path(line, values) {
    const parts = [];
    let pen = false, nextBreak = 0;
    for (let i = 0; i < values.length; i++) {
      while (nextBreak < line.breaks.length && line.breaks[nextBreak] <= i) { pen = false; nextBreak++; }
      if (!this.hasPlace(line.x[i], values[i])) continue;
      parts.push(`${pen ? "L" : "M"}${this.x(line.x[i]).toFixed(1)},${this.y(values[i]).toFixed(1)}`);
      pen = true;
    }
    return parts.join("");
  }

  hasPlace(x, y) {
    return x !== null && y !== null && (!this.isLog || y > 0);
  }

  area(line) {
    const parts = [], starts = [0, ...line.breaks, line.y.length];
    for (let part = 0; part + 1 < starts.length; part++) {
      const upper = [], lower = [];
      for (let i = starts[part]; i < starts[part + 1]; i++) {
        if (!this.hasPlace(line.x[i], line.low[i]) || line.high[i] === null) continue;
        upper.push(`${this.x(line.x[i]).toFixed(1)},${this.y(line.high[i]).toFixed(1)}`);
        lower.unshift(`${this.x(line.x[i]).toFixed(1)},${this.y(line.low[i]).toFixed(1)}`);
      }
      if (upper.length) parts.push(`M${upper.concat(lower).join("L")}Z`);
    }
    return parts.join("");
  }

  drawDots(plot, line) {
    line.drawn.forEach((y, i) => {
      if (!this.hasPlace(line.x[i], y)) return;
      svg("circle", { class: line.tone, cx: this.x(line.x[i]), cy: this.y(y), r: 2.6 }, plot);
    });
  }

  /** A cross at the foot, where a value was not finite. */
  drawBad(plot, at) {
    if (at === null || at === undefined) return;
    const x = this.x(at), y = this.height - BOTTOM - 7;
    svg("path", { class: "bad", d: `M${x - 4},${y - 4}L${x + 4},${y + 4}M${x - 4},${y + 4}L${x + 4},${y - 4}` }, plot);
  }
}
