// The numbers of the page, and what the reader has asked to see of them.

const report = JSON.parse(document.getElementById("report-data").textContent);
const AXES = { step: "step", tokens: "tokens trained on", hours: "hours of training steps" };

/** Shared by all charts. `range` is [low, high] of the x axis, or null for all of it; `smoothing` is a part of the run. */
const view = { x: "step", range: null, smoothing: 4, events: report.runs.length === 1 };

/** Where an event or a point lies, by the present x axis; null where that is not known. */
const place = (thing) => thing[view.x];

/** Mean of each value's neighbours, `half` on either side, not over gaps; points without a value stay so. */
function smoothed(values, half, breaks) {
  if (half < 1) return values;
  const starts = [0, ...breaks, values.length];
  const found = new Array(values.length).fill(null);
  for (let part = 0; part + 1 < starts.length; part++) smoothPart(values, found, starts[part], starts[part + 1], half);
  return found;
}

function smoothPart(values, found, start, stop, half) {
  const there = [];
  for (let i = start; i < stop; i++) if (values[i] !== null) there.push(i);
  const sums = [0];
  for (const i of there) sums.push(sums[sums.length - 1] + values[i]);
  there.forEach((i, n) => {
    const from = Math.max(0, n - half), to = Math.min(there.length, n + half + 1);
    found[i] = (sums[to] - sums[from]) / (to - from);
  });
}

/** Index of the sorted, possibly null-ended `xs` nearest to `x`. */
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high > 0 && xs[high] === null) high--;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

/** The same place on another axis, by the longest grid of the first chart. */
function convert(x, from, to) {
  const grid = report.grids.reduce((a, b) => (b.step.length > a.step.length ? b : a));
  const found = grid[to][nearest(grid[from], x)];
  return found === null || found === undefined ? null : found;
}
