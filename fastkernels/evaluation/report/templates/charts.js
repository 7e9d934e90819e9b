// Draws the charts once the text is there, and again in the colours of the theme when that changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, line, ground] = ["--ink", "--line", "--ground"].map((name) => style.getPropertyValue(name).trim());
    return { ink, line, ground };
  };
  const coloured = (layout) => {
    const { ink, line, ground } = theme();
    const axis = { color: ink, gridcolor: line, linecolor: line };
    const family = getComputedStyle(document.body).fontFamily;
    return {
      ...layout,
      font: { color: ink, family, size: 12 },
      hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: ink, family, size: 12 } },
      xaxis: { ...layout.xaxis, ...axis },
      yaxis: { ...layout.yaxis, ...axis },
    };
  };
  const draw = (plot) => {
    const figure = figures[plot.dataset.figure];
    return Plotly.react(plot, figure.data, coloured(figure.layout), { displayModeBar: false, responsive: true });
  };
  // What is folded is drawn when it is opened, or printed.
  const shown = () => plots.filter((plot) => !plot.closest("details.fold:not([open])"));
  const drawShown = () => Promise.all(shown().map(draw));
  drawShown().then(() => document.documentElement.classList.add("drawn"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawShown);
  matchMedia("print").addEventListener("change", drawShown);
  document.querySelectorAll("details.fold").forEach((d) =>
    d.addEventListener("toggle", () => d.open && d.querySelectorAll(".plot").forEach(draw)),
  );
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details.fold").forEach((d) => (d.open = true));
    plots.forEach(draw);
  });
})();
