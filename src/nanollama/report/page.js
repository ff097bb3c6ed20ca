// Draws the page's figures, when they come into view, in the colours of its theme, light or dark.
"use strict";
(() => {
  const style = () => getComputedStyle(document.documentElement);

  // "var(--c1)/0.2" -> "rgba(0, 105, 168, 0.2)": plotly knows no CSS variables
  const paint = (value) => {
    if (Array.isArray(value)) return value.map(paint);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, paint(v)]));
    const token = typeof value === "string" && value.match(/^var\((--[\w-]+)\)(?:\/([\d.]+))?$/);
    if (!token) return value;
    const hex = style().getPropertyValue(token[1]).trim();
    if (!token[2]) return hex;
    return `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(", ")}, ${token[2]})`;
  };

  const axis = {
    gridcolor: "var(--grid)", linecolor: "var(--faint)", tickcolor: "var(--faint)", zerolinecolor: "var(--rule)", zeroline: false,
    tickfont: { size: 12, color: "var(--muted)" }, title: { font: { size: 12.5, color: "var(--muted)" }, standoff: 10 },
    ticks: "", automargin: true, exponentformat: "power", minorloglabels: "none", hoverformat: ".4~g",
  };
  const template = () => paint({
    layout: {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 10, b: 8 }, showlegend: false,
      colorway: [1, 2, 3, 4, 5, 6, 7, 8].map((i) => `var(--c${i})`), hovermode: "closest", hoverdistance: 40, dragmode: "zoom",
      hoverlabel: { bgcolor: "var(--paper)", bordercolor: "var(--rule)", font: { size: 13, color: "var(--ink)" }, align: "left", namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--faint)", activecolor: "var(--ink)" },
      xaxis: { ...axis, showline: true, ticks: "outside", ticklen: 4, showgrid: false }, yaxis: axis,
    },
  });
  const options = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

  const draw = (plot) => {
    const figure = JSON.parse(plot.querySelector("script").textContent);
    const hidden = new Set([...buttons(plot)].filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => b.dataset.group));
    const data = figure.data.map((trace) => ({ ...paint(trace), visible: !hidden.has(group(trace)) && (trace.visible ?? true) }));
    plot.drawn = plot.drawn || plot.appendChild(document.createElement("div"));
    plot.drawn.style.height = "100%";
    Plotly.react(plot.drawn, data, { ...paint(figure.layout), template: template() }, options);
  };
  const buttons = (plot) => plot.closest("figure")?.querySelectorAll(".legend button") ?? [];
  const text = document.createElement("textarea"); // trace names arrive escaped, groups do not
  const group = (trace) => trace.legendgroup || ((text.innerHTML = trace.name ?? ""), text.value);

  const plots = [...document.querySelectorAll(".plot")];
  const redraw = (some) => some.filter((plot) => plot.drawn).forEach(draw);
  const observer = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && !entry.target.drawn) draw(entry.target);
  }), { rootMargin: "600px" });
  plots.forEach((plot) => observer.observe(plot));

  document.querySelectorAll(".legend button").forEach((button) => button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
    redraw([...button.closest("figure").querySelectorAll(".plot")]);
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(plots));
  addEventListener("beforeprint", () => plots.filter((plot) => !plot.closest("details:not([open])")).forEach(draw));
})();
