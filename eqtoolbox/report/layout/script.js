"use strict";
const narrow = matchMedia("(max-width: 860px)"), dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
if (narrow.matches) document.querySelectorAll("details").forEach(d => { d.open = false; });

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  const layout = {
    "font.color": colour("--soft"), "hoverlabel.bgcolor": colour("--paper"),
    "hoverlabel.bordercolor": colour("--rule"), "hoverlabel.font.color": colour("--ink"),
  };
  for (const axis of ["xaxis", "yaxis"]) {
    layout[axis + ".gridcolor"] = colour("--grid");
    layout[axis + ".zerolinecolor"] = colour("--rule");
    layout[axis + ".linecolor"] = layout[axis + ".tickcolor"] = colour("--rule");
  }
  return layout;
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
    const top = falling ? down(y[j]) : h - down(y[j + 1]), bottom = falling ? down(y[j + 1]) : h - down(y[j]);
    pen.fillRect(across(x[i]), top, across(x[i + 1]) - across(x[i]), bottom - top);
  }));
  layout.images = [{
    source: canvas.toDataURL(), xref: "x", yref: "y", x: x[0], y: falling ? y[0] : y.at(-1), sizing: "stretch",
    sizex: x.at(-1) - x[0], sizey: Math.abs(y.at(-1) - y[0]), layer: "below",
  }];
  layout.xaxis.range = [x[0], x.at(-1)];
  layout.yaxis = { ...layout.yaxis, autorange: false, range: falling ? [y.at(-1), y[0]] : [y[0], y.at(-1)] };
  const { colorscale, colorbar } = map;
  return {
    type: "scatter", mode: "markers", x: [null], y: [null], hoverinfo: "skip",
    marker: { colorscale, colorbar, cmin: map.zmin, cmax: map.zmax, color: [map.zmin], showscale: true },
  };
}

function between(scale, share) {
  const at = Math.min(Math.max(share, 0), 1);
  const i = Math.max(1, scale.findIndex(([stop]) => stop >= at)), [[a, from], [b, to]] = [scale[i - 1], scale[i]];
  const parts = colour => colour[0] === "#" ? [1, 3, 5].map(k => parseInt(colour.slice(k, k + 2), 16)).concat(1) : colour.match(/[\d.]+/g).map(Number);
  const [f, t] = [parts(from), parts(to)];
  return `rgba(${f.map((v, k) => v + (t[k] - v) * (at - a) / (b - a)).join(",")})`;
}

async function draw(place) {
  const figure = JSON.parse(document.getElementById(place.id + "-figure").textContent);
  figure.data.forEach((trace, i) => { if (trace.type === "heatmap") figure.data[i] = painted(trace, figure.layout); });
  const given = figure.layout, bars = figure.data.some(trace => trace.type === "bar");
  const layout = {
    ...given, showlegend: false, dragmode: touch ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 40, r: 14, t: 10, b: 40 },
    font: { family: getComputedStyle(document.querySelector(".small")).fontFamily, size: 12 },
    hoverlabel: { font: { size: 12 } },
    xaxis: { showgrid: bars, zeroline: false, showline: true, ticks: "outside", ticklen: 4, nticks: 7, ...given.xaxis },
    yaxis: { zeroline: true, zerolinewidth: 1, ...given.yaxis },
  };
  layout.xaxis.title = { ...layout.xaxis.title, standoff: 6, font: { size: 12 } };
  await Plotly.newPlot(place, figure.data, layout, { responsive: true, displayModeBar: false });
  await Plotly.relayout(place, theme());
}

const places = [...document.querySelectorAll(".plot")];
Promise.all(places.map(draw)).then(() => { document.documentElement.dataset.drawn = places.length; });
dark.addEventListener("change", () => places.forEach(place => Plotly.relayout(place, theme())));
document.querySelectorAll(".key").forEach(key => key.addEventListener("click", () => {
  const shown = key.getAttribute("aria-pressed") !== "true";
  key.setAttribute("aria-pressed", shown);
  Plotly.restyle(key.dataset.plot, { visible: shown }, key.dataset.traces.split(" ").map(Number));
}));
