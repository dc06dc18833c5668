// Small live charts of the last two minutes.

import uPlot from "./vendor/uplot/uPlot.esm.js";

const KEPT = 120;
const HEIGHT_PX = 42;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Chart {
  /** `series`: [{colour: CSS variable, width, dash}], `least`: the top of the axis is never below. */
  constructor(series, least) {
    this.series = series;
    this.least = least;
    this.element = document.createElement("div");
    this.element.className = "chart";
    this.element.setAttribute("aria-hidden", "true"); // the number beside it says it in words
    this.rows = [[], ...series.map(() => [])];
    this.plot = null;
    new ResizeObserver(() => this.#fit()).observe(this.element);
  }

  add(values) {
    this.rows[0].push(Date.now() / 1000);
    values.forEach((value, index) => this.rows[index + 1].push(value ?? null));
    for (const row of this.rows) if (row.length > KEPT) row.shift();
    this.draw();
  }

  draw() {
    if (!this.element.clientWidth) return;
    if (!this.plot) this.#make();
    this.plot.setData(this.rows);
  }

  /** After the colours changed. */
  repaint() {
    this.plot?.destroy();
    this.plot = null;
    this.draw();
  }

  #fit() {
    if (!this.plot) this.draw();
    else this.plot.setSize({ width: this.element.clientWidth, height: HEIGHT_PX });
  }

  #make() {
    const grid = { stroke: colour("--line"), width: 1 };
    const options = {
      width: this.element.clientWidth,
      height: HEIGHT_PX,
      cursor: { show: false },
      legend: { show: false },
      padding: [7, 2, 7, 0],
      scales: {
        x: { time: false, range: (_, low, high) => [Math.max(low ?? 0, (high ?? 0) - KEPT), (high ?? 0) || 1] },
        y: { range: (_, low, high) => [0, Math.max(this.least, (high ?? 0) * 1.1)] },
      },
      axes: [
        { show: false },
        {
          size: 34,
          gap: 4,
          stroke: colour("--muted"),
          font: "11px system-ui, sans-serif",
          grid,
          ticks: { show: false },
          splits: (_u, _i, low, high) => [low, high].map((value) => Math.round(value)),
        },
      ],
      series: [
        {},
        ...this.series.map((one) => ({
          stroke: colour(one.colour),
          width: one.width ?? 1.5,
          dash: one.dash,
          points: { show: false },
        })),
      ],
    };
    this.plot = new uPlot(options, this.rows, this.element);
  }
}
