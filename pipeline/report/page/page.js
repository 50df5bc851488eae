"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const system = matchMedia("(prefers-color-scheme: dark)");
  const KEY = "repnets-report-colours";
  let chosen = null;
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // a page without storage follows the system
  }

  const isDark = () => (chosen ? chosen === "dark" : system.matches);

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  /** A custom property as a colour that SVG knows. */
  function colour(name) {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }

  function config(width) {
    const [ink, faint, line] = ["ink", "faint", "line"].map(colour);
    const narrow = width < 480;
    const text = { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 600 };
    return {
      background: null,
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: { ...text, gridColor: line, domainColor: faint, tickColor: faint, labelLimit: narrow ? 120 : 260, titleLimit: width - 20 },
      axisX: { labelOverlap: "greedy", tickCount: narrow ? 4 : 7, labelFlush: true, titleAnchor: "end" },
      axisY: { titleAngle: 0, titleAnchor: "start", titleAlign: "left", titleX: 0, titleY: -12 },
      axisBand: { grid: true },
      legend: { ...text, orient: "bottom", columns: narrow ? 1 : 3, labelLimit: 260, symbolStrokeWidth: 2, symbolBaseFillColor: faint, symbolBaseStrokeColor: faint, direction: "horizontal" },
      range: { category: [1, 2, 3, 4, 5, 6, 7, 8].map((place) => colour(`series-${place}`)) },
      title: { color: ink },
    };
  }

  const views = new Map();
  async function draw() {
    for (const place of document.querySelectorAll("[data-chart]")) {
      views.get(place)?.finalize();
      const made = await vegaEmbed(place, specs[place.dataset.chart], {
        config: config(place.clientWidth),
        renderer: "svg",
        actions: false,
        ast: true,
        mode: "vega-lite",
        tooltip: { theme: "custom" },
      });
      views.set(place, made);
    }
    root.dataset.drawn = String(views.size);
  }

  /** One drawing after the other; what was asked for meanwhile is done once, at the end. */
  let drawing = null;
  let again = false;
  async function redraw() {
    if (drawing) {
      again = true;
      return;
    }
    drawing = draw();
    await drawing;
    drawing = null;
    if (again) {
      again = false;
      await redraw();
    }
  }

  const button = document.getElementById("theme");
  button.hidden = false;
  function dress() {
    root.style.colorScheme = chosen ?? "";
    button.textContent = isDark() ? "Light colours" : "Dark colours";
    return redraw();
  }
  button.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    try {
      localStorage.setItem(KEY, chosen);
    } catch {
      // it holds until the page is closed
    }
    dress();
  });
  system.addEventListener("change", dress);

  for (const figure of document.querySelectorAll(".picture")) {
    const [controls, paper, image, told] = [".zoom", ".paper", "img", "output"].map((name) => figure.querySelector(name));
    let percent = 100;
    controls.hidden = false;
    const zoom = (change) => {
      percent = change === "fit" ? 100 : Math.min(800, Math.max(25, percent * (change === "in" ? 1.25 : 0.8)));
      image.style.width = `${percent}%`;
      told.textContent = `${Math.round(percent)} %`;
    };
    controls.addEventListener("click", (event) => {
      if (event.target.dataset.zoom) zoom(event.target.dataset.zoom);
    });
    paper.addEventListener("keydown", (event) => {
      const change = { "+": "in", "=": "in", "-": "out", 0: "fit" }[event.key];
      if (change && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        zoom(change);
      }
    });
  }

  dress();
})();
