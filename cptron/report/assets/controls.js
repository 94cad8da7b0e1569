// The bar above all charts, and the legend and the button of each.

const MANY = 8;

function makeToolbar(before) {
  const bar = html("div", { className: "tools" });
  bar.setAttribute("role", "toolbar");
  bar.setAttribute("aria-label", "All charts");
  choice(bar, "x axis", [["step", "step"], ["tokens", "tokens"], ["hours", "hours"]], () => view.x, setAxis);
  const label = html("label", { textContent: "smoothing " }, bar);
  const slider = html("input", { type: "range", min: 0, max: 20, step: 1, value: view.smoothing, id: "smoothing" }, label);
  const shown = html("output", { textContent: `${view.smoothing} %` }, label);
  slider.addEventListener("input", () => {
    view.smoothing = Number(slider.value);
    shown.textContent = view.smoothing ? `${view.smoothing} %` : "off";
    redrawAll();
  });
  const events = html("label", {}, bar);
  const box = html("input", { type: "checkbox", checked: view.events, id: "events" }, events);
  events.append("events");
  box.addEventListener("change", () => { view.events = box.checked; redrawAll(); });
  const zoom = html("fieldset", {}, bar);
  html("legend", { textContent: "zoom" }, zoom);
  const first = () => charts[0];
  button(zoom, "−", "Zoom out", () => zoomBy(first(), 2));
  button(zoom, "+", "Zoom in", () => zoomBy(first(), 0.5));
  button(zoom, "all", "Show all", () => setRange(null)).id = "reset";
  const theme = html("span", { className: "push" }, bar);
  choice(theme, "colours", [["", "auto"], ["light", "light"], ["dark", "dark"]], () => document.documentElement.dataset.theme || "", setTheme);
  makeKey(bar);
  before.before(bar);
}

/** What the colours of the marks mean, of those that there are. */
function makeKey(bar) {
  const kinds = Object.keys(report.kinds).filter((kind) => report.events.some((event) => event.kind === kind));
  if (!kinds.length) return;
  const key = html("div", { className: "key" }, bar);
  for (const kind of kinds) {
    const entry = html("span", {}, key);
    html("i", { className: `mark-${kind}` }, entry);
    entry.append(report.kinds[kind]);
  }
}

function button(parent, text, title, action) {
  const made = html("button", { type: "button", textContent: text, title }, parent);
  made.addEventListener("click", action);
  return made;
}

/** A row of buttons, one of which is pressed. */
function choice(parent, name, options, current, action) {
  const group = html("fieldset", {}, parent);
  html("legend", { textContent: name }, group);
  const buttons = options.map(([value, text]) => {
    const made = button(group, text, "", () => { action(value); update(); });
    made.value = value;
    return made;
  });
  const update = () => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.value === current())));
  update();
}

function setAxis(kind) {
  const moved = view.range && view.range.map((x) => convert(x, view.x, kind));
  view.range = moved && moved.every((x) => x !== null) && moved[0] < moved[1] ? moved : null;
  view.x = kind;
  redrawAll();
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

function makeLogButton(chart) {
  const made = button(chart.figure, "log", "Logarithmic y axis", () => {
    chart.isLog = !chart.isLog;
    made.setAttribute("aria-pressed", String(chart.isLog));
    chart.draw();
  });
  made.className = "log";
  made.setAttribute("aria-pressed", "false");
  made.disabled = !chart.lines.some((line) => line.y.some((value) => value > 0));
  return made;
}

/** A click shows or hides a line; with Shift or Alt it is shown alone. */
function makeLegend(chart) {
  const named = chart.lines.filter((line) => !line.faint);
  if (named.length < 2) return null;
  const legend = html("div", { className: "legend" }, chart.figure);
  const buttons = named.map((line) => {
    const made = button(legend, "", "Click: show or hide. Shift-click: only this one", (event) => {
      if (event.shiftKey || event.altKey) named.forEach((other) => { other.shown = other === line; });
      else line.shown = !line.shown;
      update();
    });
    html("i", { className: `k ${line.tone}` }, made);
    made.append(line.label);
    return made;
  });
  const update = (redraw = true) => {
    buttons.forEach((made, i) => made.setAttribute("aria-pressed", String(named[i].shown)));
    if (redraw) chart.draw();
  };
  if (named.length > MANY) {
    for (const [text, shown] of [["all", true], ["none", false]]) {
      button(legend, text, "", () => { named.forEach((line) => { line.shown = shown; }); update(); }).className = "all";
    }
  }
  update(false);
  return legend;
}
