// What becomes of a figure before it is drawn: colours of the theme, small multiples, heat maps, marks.
"use strict";
const root = document.documentElement, places = [...document.querySelectorAll(".plot")];
const read = id => JSON.parse(document.getElementById(id).textContent);
const marks = read("marks"), colours = read("colours");
const dusk = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(pointer: coarse)").matches;
const shown = { theme: "auto", steps: null };  // steps: the range that all figures show, null for all

const dark = () => shown.theme === "dark" || (shown.theme === "auto" && dusk.matches);
const parts = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));

// A colour of the page as the browser resolves it in the theme of the moment.
function ink(name) {
  const probe = document.querySelector(".bar");
  probe.style.outlineColor = `var(${name})`;
  return getComputedStyle(probe).outlineColor;
}

// Colours of the palette in a text, as the theme has them.
function tinted(text) {
  if (!dark()) return text;
  for (const [light, night] of colours)
    text = text.replaceAll(light, night).replaceAll(`rgba(${parts(light)},`, `rgba(${parts(night)},`);
  return text;
}

function built(place) {
  const figure = JSON.parse(tinted(place.source)), { layout } = figure;
  if (place.full) delete layout.yaxis.range;
  if (place.scale) rescale(layout, place.scale);
  figure.origin = figure.data.map((_, i) => i);
  const title = layout.yaxis.title?.text;
  delete layout.yaxis.title;
  const base = dressed(layout, figure.data.some(trace => trace.type === "bar"));
  Object.assign(figure, { layout: base, cells: 1, rows: 1 });
  const width = place.clientWidth;
  if (layout.meta?.multiples) spread(figure, width);
  figure.data = figure.data.map(trace => trace.type === "heatmap" ? painted(trace, base) : trace);
  figure.data.forEach((trace, i) => { if (place.hidden_?.has(figure.origin[i])) trace.visible = false; });
  for (let n = 1; n <= figure.cells; n++) {
    const x = base["xaxis" + (n > 1 ? n : "")];
    if (place.steps && shown.steps) x.range = [...shown.steps];
    if (place.steps) base.shapes.push(...marks.map(mark => line(mark, n > 1 ? n : "")));
  }
  if (title) base.annotations.push({
    text: [title, ...figure.told ?? []].join(width < 500 ? "<br>" : "  "), xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom", align: "left",
    yshift: figure.cells > 1 ? 24 : 6, showarrow: false, font: { size: 11.5, color: ink("--soft") },
  });
  if (root.classList.contains("printing")) Object.assign(base, { width, height: place.clientHeight });
  base.margin.t = title ? (figure.cells > 1 ? 50 : 28) : 12;
  if (figure.told?.length && width < 500) base.margin.t += 14;
  if (figure.cells > 1) base.height = base.margin.t + base.margin.b + 128 * figure.rows;
  return figure;
}

// The look of every figure.
function dressed(given, bars) {
  const [soft, rule, grid, paper, strong] = ["--soft", "--rule", "--grid", "--paper", "--ink"].map(ink);
  const axis = { gridcolor: grid, zerolinecolor: rule, linecolor: rule, tickcolor: rule, automargin: true, exponentformat: "power" };
  return {
    ...given, showlegend: false, dragmode: touch || bars ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 40, r: 14, t: 12, b: 40 }, shapes: [...given.shapes ?? []], annotations: [...given.annotations ?? []],
    font: { family: getComputedStyle(document.querySelector(".bar")).fontFamily, size: 12, color: soft },
    hoverlabel: { font: { size: 12, color: strong }, bgcolor: paper, bordercolor: rule },
    xaxis: { showgrid: bars, zeroline: false, showline: true, ticks: "outside", ticklen: 4, nticks: 7, ...axis, ...given.xaxis,
      title: { ...given.xaxis.title, standoff: 6, font: { size: 12 } } },
    yaxis: { zeroline: true, zerolinewidth: 1, fixedrange: true, ...axis, ...given.yaxis },
  };
}

function rescale(layout, scale) {
  const { tickvals, ticktext, range, rangemode, ...rest } = layout.yaxis;
  if (scale !== (layout.yaxis.type ?? "linear")) layout.yaxis = scale === "log" ? { ...rest, type: "log" } : { ...rest, type: "linear", rangemode: "tozero" };
}

const line = (mark, n) => ({
  type: "line", layer: "below", xref: "x" + n, yref: `y${n} domain`, x0: mark.step, x1: mark.step, y0: 0, y1: 1, opacity: 0.55,
  line: { width: 1, color: ink(mark.kind === "spike" ? "--alarm" : "--soft"), dash: mark.kind === "spike" ? "solid" : "dot" },
});

function shape(count, width) {
  const columns = Math.max(1, Math.min(count, Math.floor(width / 190)));
  return { columns, rows: Math.ceil(count / columns) };
}

// Many lines: each in a small figure of its own, all on the same axes, named where it is drawn.
function spread(figure, width) {
  const { layout, data } = figure, cells = layout.meta.multiples, [strong, soft] = [ink("--ink"), ink("--soft")];
  const { columns, rows } = shape(cells.length, width);
  const { xaxis, yaxis } = layout, every = Math.ceil((yaxis.tickvals?.length ?? 0) / 4);
  if (every > 1) for (const list of ["tickvals", "ticktext"]) yaxis[list] = yaxis[list].filter((_, i) => i % every === 0);
  const named = new Set(cells.flatMap(([, own]) => own)), drawn = [], origin = [];
  delete layout.yaxis2;
  figure.told = layout.annotations.splice(0).map(told => told.text);
  const [wide, high] = [0.035, 46 / (128 * rows)];  // gaps, of the width and of the height
  cells.forEach(([label, own], i) => {
    const n = i ? i + 1 : "", column = i % columns, row = Math.floor(i / columns), last = i + columns >= cells.length;
    const names = own.map(k => data[k].meta).filter(Boolean);
    data.forEach((trace, k) => {
      const alone = named.has(k) ? own.includes(k) : trace.yaxis !== "y2" && (!trace.meta || names.includes(trace.meta));
      const pen = named.has(k) ? { ...trace.line, dash: "solid" } : trace.line;
      if (alone) { drawn.push({ ...trace, line: pen, xaxis: "x" + n, yaxis: "y" + n }); origin.push(k); }
      if (trace.yaxis === "y2") layout.shapes.push(...trace.x.map(x => ({
        type: "line", xref: "x" + n, yref: `y${n} domain`, x0: x, x1: x, y0: 0, y1: 0.06, line: { width: 1.2, color: soft },
      })));
    });
    const left = column * (1 + wide) / columns, top = 1 - row * (1 + high) / rows;
    layout["xaxis" + n] = {
      ...xaxis, domain: [left, left + (1 + wide) / columns - wide], anchor: "y" + n, nticks: 4, showticklabels: last,
      title: last ? xaxis.title : { text: "" }, ...i && { matches: "x" },
    };
    layout["yaxis" + n] = {
      ...yaxis, domain: [Math.max(0, top - (1 + high) / rows + high), top], anchor: "x" + n, showticklabels: column === 0, nticks: 4, ...i && { matches: "y" },
    };
    layout.annotations.push({
      text: label, xref: `x${n} domain`, yref: `y${n} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false,
      font: { size: 12, color: strong },
    });
  });
  layout.yaxis.range ??= around(drawn.flatMap(trace => trace.y), yaxis.type === "log");
  Object.assign(figure, { data: drawn, origin, cells: cells.length, rows });
}

function around(heights, log) {
  const at = heights.filter(y => y !== null && (!log || y > 0)).map(y => log ? Math.log10(y) : y).concat(log ? [] : 0);
  const [low, high] = [Math.min(...at), Math.max(...at)], room = 0.06 * (high - low || 1);
  return [low - (log || low < 0 ? room : 0), high + room];
}

// The library draws no heat maps: a picture stands for the cells, an unseen point for their scale.
function painted(map, layout) {
  const edges = at => [...at.map((a, i) => i ? (at[i - 1] + a) / 2 : a - (at[1] - a || 1) / 2), at.at(-1) + (at.at(-1) - at.at(-2) || 1) / 2];
  const x = edges(map.x), y = edges(map.y), canvas = document.createElement("canvas");
  const [w, h] = [canvas.width, canvas.height] = [1200, Math.max(600, 8 * map.y.length)];
  const across = a => Math.round(w * (a - x[0]) / (x.at(-1) - x[0]));
  const down = a => Math.round(h * (a - y[0]) / (y.at(-1) - y[0]));
  const pen = canvas.getContext("2d"), falling = layout.yaxis.autorange === "reversed";
  map.z.forEach((row, j) => row.forEach((value, i) => {
    if (value === null) return;
    pen.fillStyle = between(map.colorscale, (value - map.zmin) / (map.zmax - map.zmin));
    const [top, bottom] = falling ? [down(y[j]), down(y[j + 1])] : [h - down(y[j + 1]), h - down(y[j])];
    pen.fillRect(across(x[i]), top, across(x[i + 1]) - across(x[i]), bottom - top);
  }));
  layout.images = [{
    source: canvas.toDataURL(), xref: "x", yref: "y", x: x[0], y: falling ? y[0] : y.at(-1), sizing: "stretch",
    sizex: x.at(-1) - x[0], sizey: y.at(-1) - y[0], layer: "below",
  }];
  layout.xaxis.range = [x[0], x.at(-1)];
  Object.assign(layout.yaxis, { autorange: false, range: falling ? [y.at(-1), y[0]] : [y[0], y.at(-1)] });
  const { colorscale, colorbar } = map;
  return {
    type: "scatter", mode: "markers", x: [null], y: [null], hoverinfo: "skip",
    marker: { colorscale, colorbar, cmin: map.zmin, cmax: map.zmax, color: [map.zmin], showscale: true },
  };
}

function between(scale, share) {
  const at = Math.min(Math.max(share, 0), 1), i = Math.max(1, scale.findIndex(([stop]) => stop >= at));
  const [[a, from], [b, to]] = [scale[i - 1], scale[i]];
  const [f, t] = [from, to].map(colour => colour[0] === "#" ? [...parts(colour), 1] : colour.match(/[\d.]+/g).map(Number));
  return `rgba(${f.map((v, k) => v + (t[k] - v) * (at - a) / (b - a)).join(",")})`;
}
