// Shows the values under the pointer on line charts. Everything else on the page stands without a script.
"use strict";
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const card = svg.closest(".card");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  card.append(tip);
  const pointer = document.createElementNS("http://www.w3.org/2000/svg", "line");
  pointer.setAttribute("class", "pointer");
  svg.append(pointer);

  const shown = (value) => (chart.x.log ? Math.log10(value) : value);
  const toValue = (place) => {
    const part = (place - chart.x.start) / (chart.x.end - chart.x.start);
    const value = shown(chart.x.low) + part * (shown(chart.x.high) - shown(chart.x.low));
    return chart.x.log ? 10 ** value : value;
  };
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best), points[0]);
  const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (place < chart.x.start || place > chart.x.end) return hide();
    const x = toValue(place);
    tip.replaceChildren();
    const head = document.createElement("div");
    head.textContent = `${chart.xLabel}: ${number(x)}`;
    tip.append(head);
    for (const line of chart.series.filter((one) => one.points.length)) {
      const row = document.createElement("div");
      const dot = document.createElement("i");
      dot.className = `dot ${line.colour}`;
      const value = document.createElement("b");
      value.textContent = number(nearest(line.points, x)[1]);
      row.append(dot, `${line.name} `, value);
      tip.append(row);
    }
    for (const [name, at] of [["x1", place], ["x2", place], ["y1", 16], ["y2", svg.viewBox.baseVal.height - 34]])
      pointer.setAttribute(name, at);
    pointer.style.display = "";
    tip.hidden = false;
    const within = card.getBoundingClientRect();
    const left = event.clientX - within.left + 14;
    tip.style.left = `${Math.min(left, within.width - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY - within.top + 14}px`;
  });
  const hide = () => {
    tip.hidden = true;
    pointer.style.display = "none";
  };
  svg.addEventListener("mouseleave", hide);
}
