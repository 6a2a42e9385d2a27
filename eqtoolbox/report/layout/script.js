// What a reader does: scroll, point, zoom, change theme and scale, take numbers and pictures along, print.
let linking = false;
const visible = new Set(), stale = new Set();

function draw(place) {
  const first = !place.figure, figure = place.figure = built(place);
  Plotly.react(place, figure.data, figure.layout, { responsive: true, displayModeBar: false, doubleClick: false });
  if (!first) return;
  place.on("plotly_relayout", change => {
    const key = Object.keys(change).find(name => /^xaxis\d*\.range\[0\]$/.test(name));
    if (key && place.steps && !linking) zoom([change[key], change[key.replace("[0]", "[1]")]]);
  });
  place.on("plotly_doubleclick", () => {
    if (shown.steps) return zoom(null);
    place.full = !place.full;
    draw(place);
  });
  root.dataset.drawn = places.filter(p => p.figure).length;
}
function drawAll() {
  places.forEach(place => { if (!place.figure || stale.delete(place)) draw(place); });
}
const redraw = () => places.forEach(place => { if (visible.has(place)) draw(place); else if (place.figure) stale.add(place); });

const watcher = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) => {
  if (!isIntersecting) return visible.delete(target);
  visible.add(target);
  if (!target.figure || stale.delete(target)) draw(target);
}), { rootMargin: "240px" });

// One range of steps for all figures.
function zoom(steps) {
  shown.steps = steps;
  document.getElementById("all-steps").hidden = !steps;
  linking = true;
  redraw();
  linking = false;
}
document.getElementById("all-steps").addEventListener("click", () => zoom(null));

// One cursor for all figures: a line at the step that the mouse points to.
const pointed = document.getElementById("pointed");
const axes = place => Array.from({ length: place.figure.cells }, (_, i) => ["xaxis", "yaxis"].map(name => place._fullLayout[name + (i ? i + 1 : "")]));
function point(place, event) {
  const box = place.getBoundingClientRect(), [left, top] = [event.clientX - box.left, event.clientY - box.top];
  const inside = (axis, at) => at >= axis._offset && at <= axis._offset + axis._length;
  const pair = axes(place).find(([x, y]) => inside(x, left) && inside(y, top));
  const step = pair ? pair[0].p2d(left - pair[0]._offset) : null;
  visible.forEach(other => { if (other.steps) cursor(other, step); });
  const near = pair && marks.find(mark => Math.abs(pair[0].d2p(mark.step) - pair[0].d2p(step)) < 4);
  pointed.textContent = near ? `step ${near.step}: ${near.text}` : pair ? `step ${Math.round(step)}` : "";
  if (place.map) place.note.textContent = pair ? cell(place.map, step, pair[1].p2d(top - pair[1]._offset)) : "";
}
function cursor(place, step) {
  if (!place.figure) return;
  axes(place).forEach(([x, y], i) => {
    const rod = place.rods[i] ??= place.parentElement.appendChild(Object.assign(document.createElement("div"), { className: "rod" }));
    const at = step === null ? NaN : x.d2p(step);
    rod.hidden = !(at >= 0 && at <= x._length);
    Object.assign(rod.style, { left: `${place.offsetLeft + x._offset + at}px`, top: `${place.offsetTop + y._offset}px`, height: `${y._length}px` });
  });
}
function cell(map, step, height) {
  const near = (values, at) => values.reduce((best, v, i) => Math.abs(v - at) < Math.abs(values[best] - at) ? i : best, 0);
  const [i, j] = [near(map.x, step), near(map.y, height)], value = map.z[j][i];
  if (value === null) return "";
  const said = map.hovertemplate.includes("10^") ? `share 10^${value.toFixed(1)}` : `unit ${map.y[j]}: ${+value.toPrecision(3)} %`;
  return `step ${map.x[i]}, ${said}`;
}

// The numbers of a figure, as drawn.
function table({ data, layout }) {
  const map = data.find(trace => trace.type === "heatmap");
  if (map) return [["step", "row", "value"], ...map.z.flatMap((row, j) => row.map((value, i) => [map.x[i], map.y[j], value]))];
  const lines = data.filter(trace => trace.hoverinfo !== "skip" && trace.yaxis !== "y2" || trace.type === "bar");
  const lying = layout.yaxis.type === "category" || lines.some(trace => trace.orientation === "h"), [key, value] = lying ? ["y", "x"] : ["x", "y"];
  const known = lines.map(trace => new Map(trace[key].map((at, i) => [at, trace[value][i]])));
  const keys = [...new Set(lines.flatMap(trace => trace[key]))];
  if (!lying) keys.sort((a, b) => a - b);
  const head = [lying ? "name" : layout.xaxis.title.text, ...lines.map(trace => trace.name ?? layout.xaxis.title.text)];
  return [head, ...keys.map(at => [at, ...known.map(column => column.get(at) ?? "")])];
}
const csv = rows => rows.map(row => row.map(v => /[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v ?? "").join(",")).join("\n") + "\n";
function save(name, text) {
  const link = document.createElement("a"), address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  Object.assign(link, { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
async function picture(place) {
  if (!place.figure) draw(place);
  const { data, layout } = place.figure, text = place.getAttribute("aria-label"), t = layout.margin.t + 34;
  const titled = { ...layout, paper_bgcolor: ink("--paper"), margin: { ...layout.margin, t }, title: { text, x: 0.02, y: 0.97, font: { size: 15, color: ink("--ink") } } };
  const [width, height] = [place.clientWidth, place.clientHeight + 34];
  await Plotly.downloadImage({ data, layout: { ...titled, width, height } }, { format: "png", width, height, scale: 2, filename: `${document.title.split(" · ")[0]}-${place.id}` });
}

function tool(place, label, title, act) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: label, title });
  button.setAttribute("aria-label", `${label}: ${title}, ${place.getAttribute("aria-label")}`);
  button.addEventListener("click", () => act(button));
  place.closest("figure").querySelector(".tools").append(button);
}
places.forEach(place => {
  place.source = document.getElementById(place.id + "-figure").textContent;
  const figure = JSON.parse(place.source), { data, layout } = figure, lines = data.filter(trace => trace.yaxis !== "y2");
  Object.assign(place, { rods: [], hidden_: new Set(), steps: layout.xaxis.title?.text === "step", map: data.find(trace => trace.type === "heatmap") });
  if (layout.height) place.style.height = `${layout.height}px`;
  if (layout.meta?.multiples) {
    place.classList.add("multiples");
    place.style.minHeight = `${90 + 128 * shape(layout.meta.multiples.length, place.clientWidth).rows}px`;
  }
  if (place.map) place.parentElement.append(place.note = Object.assign(document.createElement("p"), { className: "small note" }));
  const logarithmic = layout.yaxis.type === "log";
  const positive = lines.every(trace => trace.type === "scatter" && !trace.stackgroup && trace.y.every(y => y === null || y > 0));
  if (place.steps && (logarithmic || positive)) tool(place, "log", "Logarithmic axis", button => {
    place.scale = button.getAttribute("aria-pressed") === "true" ? "linear" : "log";
    button.setAttribute("aria-pressed", place.scale === "log");
    draw(place);
  });
  place.closest("figure").querySelector(".tools button")?.setAttribute("aria-pressed", logarithmic);
  tool(place, "CSV", "Download the numbers", () => save(`${place.id}.csv`, csv(table(figure))));
  tool(place, "PNG", "Download a picture", () => picture(place));
  if (place.steps) {
    place.addEventListener("mousemove", event => place.figure && requestAnimationFrame(() => point(place, event)));
    place.addEventListener("mouseleave", () => {
      pointed.textContent = "";
      visible.forEach(other => other.steps && cursor(other, null));
    });
  }
  watcher.observe(place);
});

const near = place => { const { top, bottom } = place.getBoundingClientRect(); return bottom > -240 && top < innerHeight + 240; };
addEventListener("load", () => setTimeout(() => places.forEach(place => { if (!place.figure && near(place)) draw(place); })));

document.querySelectorAll(".key").forEach(key => key.addEventListener("click", () => {
  const place = document.getElementById(key.dataset.plot), on = key.getAttribute("aria-pressed") !== "true";
  key.setAttribute("aria-pressed", on);
  key.dataset.traces.split(" ").forEach(i => place.hidden_[on ? "delete" : "add"](Number(i)));
  draw(place);
}));

function themed() {
  root.style.colorScheme = shown.theme === "auto" ? "light dark" : shown.theme;
  document.getElementById("theme").textContent = `Theme: ${shown.theme}`;
  document.querySelectorAll(".key svg").forEach(svg => svg.setAttribute("stroke", tinted(svg.dataset.stroke ??= svg.getAttribute("stroke"))));
  redraw();
}
document.getElementById("theme").addEventListener("click", () => {
  shown.theme = { auto: "light", light: "dark", dark: "auto" }[shown.theme];
  themed();
});
dusk.addEventListener("change", themed);
themed();

let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width && !root.classList.contains("printing")) places.forEach(place => { if (place.figure && place.classList.contains("multiples")) draw(place); });
  width = innerWidth;
});

// Paper is light, has its own width, and shows everything.
let before = null;
addEventListener("beforeprint", () => {
  before = { theme: shown.theme, closed: [...document.querySelectorAll("details.group:not([open])")] };
  before.closed.forEach(details => { details.open = true; });
  root.classList.add("printing");
  shown.theme = "light";
  themed();
  places.forEach(draw);
});
addEventListener("afterprint", () => {
  before.closed.forEach(details => { details.open = false; });
  root.classList.remove("printing");
  shown.theme = before.theme;
  themed();
  places.forEach(draw);
});
