// Puts it together: every figure that has numbers becomes a chart.

const charts = [];

function redrawAll() {
  for (const chart of charts) chart.draw();
}

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const number = Number(figure.dataset.chart);
  charts.push(new Chart(figure, report.charts[number], number));
}
if (charts.length) {
  makeToolbar(document.querySelector("section"));
  redrawAll();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(redrawAll); }
  });
  addEventListener("beforeprint", redrawAll);
}
document.documentElement.dataset.ready = String(charts.length);
