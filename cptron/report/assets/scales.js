// From values to places on the screen.

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes. */
function svg(name, attributes = {}, parent = null, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

/** An HTML element with properties. */
function html(name, properties = {}, parent = null) {
  const element = Object.assign(document.createElement(name), properties);
  if (parent) parent.append(element);
  return element;
}

/** A map from [low, high] to [start, end], linear or by logarithms, with its inverse. */
function scale(low, high, start, end, isLog = false) {
  const warp = isLog ? Math.log10 : (v) => v;
  const span = warp(high) - warp(low) || 1;
  const map = (value) => start + ((warp(value) - warp(low)) / span) * (end - start);
  map.invert = (at) => {
    const value = warp(low) + ((at - start) / (end - start)) * span;
    return isLog ? 10 ** value : value;
  };
  map.low = low;
  map.high = high;
  return map;
}

/** Low and high with room on both sides; a single value gets a range of its own. */
function padded([low, high], zero, isLog) {
  if (isLog) return low === high ? [low / 1.5, high * 1.5] : [low / 1.06, high * 1.06];
  if (zero) { low = Math.min(0, low); high = Math.max(0, high); }
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; return [low - pad, high + pad]; }
  const room = (high - low) * 0.05; // a sign that no value has is not shown
  const least = low >= 0 ? Math.max(0, low - room) : low - room;
  return [least, high <= 0 ? Math.min(0, high + room) : high + room];
}

/** Least and largest of what is finite; null without anything. */
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}
