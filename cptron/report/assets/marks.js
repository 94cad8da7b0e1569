// What happened, drawn into every chart: lines of faults and resumes, stretches that were repeated or are missing, feet of
// checkpoints.

const FEET = { save: 4, selected: 6 };

function drawEvents(chart, plot) {
  if (!view.events) return;
  for (const event of report.events) {
    const at = place(event);
    if (at === null) continue;
    if (event.until) drawStretch(chart, plot, event, at);
    else if (event.kind in FEET) drawFoot(chart, plot, event, at);
    else {
      const x = chart.x(at), bottom = chart.height - BOTTOM;
      svg("line", { class: `event ${event.kind}`, x1: x, x2: x, y1: TOP, y2: bottom }, plot);
    }
  }
}

function endOf(event) {
  return event.until[{ step: 0, tokens: 1, hours: 2 }[view.x]];
}

function drawStretch(chart, plot, event, at) {
  const end = endOf(event) ?? at;
  const x = chart.x(at), width = Math.max(2, chart.x(end) - x);
  svg("rect", { class: `stretch ${event.kind}`, x, width, y: TOP, height: chart.height - TOP - BOTTOM }, plot);
}

/** A triangle on the axis; the selected one is larger and has a line. */
function drawFoot(chart, plot, event, at) {
  const x = chart.x(at), y = chart.height - BOTTOM, size = FEET[event.kind];
  if (event.kind === "selected") svg("line", { class: "selected", x1: x, x2: x, y1: TOP, y2: y, stroke: "var(--good)" }, plot);
  svg("path", { class: event.kind, d: `M${x - size},${y}L${x + size},${y}L${x},${y - size * 1.7}Z` }, plot);
}

/** Events whose mark is within so many pixels of `px`. */
function eventsAt(chart, px) {
  if (!view.events) return [];
  return report.events.filter((event) => {
    const at = place(event);
    if (at === null) return false;
    const start = chart.x(at), end = event.until ? chart.x(endOf(event) ?? at) : start;
    return px >= start - 5 && px <= end + 5;
  });
}
