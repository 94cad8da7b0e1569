// Numbers as people read them: round ticks, their labels, compact and exact values.

const UNITS = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** Three digits and a unit: 812, 12.3k, 1.24M. */
function compact(value) {
  const size = Math.abs(value);
  for (const [scale, unit] of UNITS) {
    if (size >= scale * 0.9995) return trimmed((value / scale).toPrecision(3)) + unit;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace("e-0", "e-");
  return Number.isInteger(value) ? String(value) : trimmed(value.toPrecision(4));
}

function trimmed(text) {
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}

/** As the log has it; whole numbers from 10,000 on with separators. */
function exact(value) {
  return Number.isInteger(value) && Math.abs(value) >= 1e4 ? value.toLocaleString("en-US") : String(value);
}

/** About `count` round numbers that lie within low and high. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Powers of ten, with 2 and 5 between them where there are few. */
function logTicks(low, high) {
  const found = [];
  const decades = Math.log10(high / low);
  const parts = decades < 1.2 ? [1, 1.5, 2, 3, 4, 5, 7] : decades < 3 ? [1, 2, 5] : [1];
  const stride = Math.max(1, Math.ceil(decades / 8));
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    if (parts.length === 1 && p % stride) continue;
    for (const part of parts) {
      const value = Number((part * 10 ** p).toPrecision(6));
      if (value >= low * 0.9999 && value <= high * 1.0001) found.push(value);
    }
  }
  return found.length ? found : [low, high];
}

/** Labels of evenly spaced ticks: one unit, and the digits that tell them apart. */
function tickLabels(values) {
  if (values.length < 2) return values.map(compact);
  const largest = Math.max(...values.map(Math.abs));
  if (largest < 1e-2) return values.map((v) => (v ? trimmed(v.toPrecision(3)).replace("e-0", "e-") : "0"));
  const [scale, unit] = UNITS.find(([s]) => largest >= Math.max(s, 1e4)) || [1, ""];
  const step = (values[1] - values[0]) / scale;
  let digits = 0;
  while (digits < 9 && Math.abs(step - Number(step.toFixed(digits))) > 1e-6 * step) digits++;
  return values.map((v) => (v ? (v / scale).toFixed(digits) + unit : "0"));
}
