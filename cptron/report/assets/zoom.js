// Which part of the x axis is seen: drawn with the pointer, or set with keys and buttons; the same in all charts.

class Zoom {
  constructor(chart) {
    this.chart = chart;
    this.from = null;
    const node = chart.svg;
    node.addEventListener("pointerdown", (event) => this.start(event));
    node.addEventListener("pointermove", (event) => this.drag(event));
    node.addEventListener("pointerup", (event) => this.end(event));
    node.addEventListener("pointercancel", () => this.cancel());
    node.addEventListener("dblclick", () => setRange(null));
    node.addEventListener("keydown", (event) => this.key(event));
  }

  px(event) {
    const box = this.chart.svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * this.chart.width;
    return Math.min(this.chart.width - RIGHT, Math.max(LEFT, px));
  }

  /** A finger scrolls and reads; it is the mouse that draws a range. */
  start(event) {
    if (event.pointerType === "touch" || event.button !== 0) return;
    this.from = this.px(event);
    this.chart.svg.setPointerCapture(event.pointerId);
  }

  drag(event) {
    if (this.from === null) return;
    const at = this.px(event), { over, height } = this.chart;
    over.querySelector(".brush")?.remove();
    const x = Math.min(at, this.from), width = Math.abs(at - this.from);
    svg("rect", { class: "brush", x, width, y: TOP, height: height - TOP - BOTTOM }, over);
  }

  end(event) {
    if (this.from === null) return;
    const ends = [this.from, this.px(event)].sort((a, b) => a - b);
    this.cancel();
    if (ends[1] - ends[0] > 6) setRange(ends.map((px) => this.chart.x.invert(px)));
  }

  cancel() {
    this.from = null;
    this.chart.over.querySelector(".brush")?.remove();
  }

  key(event) {
    if (event.key === "+" || event.key === "=") zoomBy(this.chart, 0.5);
    else if (event.key === "-") zoomBy(this.chart, 2);
    else if (event.key === "0") setRange(null);
    else return;
    event.preventDefault();
  }
}

/** Show a part of the x axis in all charts; null: all of it. */
function setRange(range) {
  view.range = range;
  redrawAll();
}

/** A part that is `factor` times as wide, around the cursor or the middle; all of it where that would be wider. */
function zoomBy(chart, factor) {
  const { low, high } = chart.x;
  const middle = chart.readout.at ?? (low + high) / 2;
  const range = [middle - (middle - low) * factor, middle + (high - middle) * factor];
  const whole = wholeRange();
  setRange(range[1] - range[0] >= whole[1] - whole[0] ? null : range);
}

/** From the first to the last place of any grid. */
function wholeRange() {
  const ends = report.grids.map((grid) => extent(grid[view.x])).filter((found) => found);
  return [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))];
}
