"use strict";
// Looks every two seconds whether a run was written, and exchanges what changed and nothing else.
const PAUSE = 2000, LEAST = 5000;
const index = document.getElementById("index"), frame = document.getElementById("frame");

function ago(seconds) {
  seconds = Math.max(0, seconds);
  for (const [size, one, unit] of [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"]])
    if (seconds < size) return `${Math.floor(seconds / one)} ${unit}`;
  const days = Math.floor(seconds / 86400);
  return days === 1 ? "1 day" : `${days} days`;
}

function clock() {
  for (const place of document.querySelectorAll("[data-written]")) {
    const age = Date.now() / 1000 - place.dataset.written, word = place.querySelector(".live-pulse");
    place.querySelector(".live-age").textContent = `${ago(age)} ago`;
    const pulse = place.dataset.finished === "1" ? "finished" : age > place.dataset.patience ? "silent" : "running";
    word.textContent = pulse;
    word.className = `live-pulse ${pulse}`;
  }
}

async function versions() {
  const answer = await fetch("/versions", { cache: "no-cache" });  // unchanged, it comes as 304
  return answer.ok ? answer.json() : null;
}

async function fresh(path) {
  const answer = await fetch(path, { cache: "no-cache" });
  return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
}

// The index: rows.
const body = index && index.querySelector("tbody");
let order = null;

function rows() { return body ? [...body.rows] : []; }

function filter() {
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows()) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every(word => text.includes(word));
  }
  const all = rows().length, shown = rows().filter(row => !row.hidden).length;
  document.getElementById("count").textContent = `${shown < all ? `${shown} of ` : ""}${all} ${all === 1 ? "run" : "runs"}`;
}

function choice() {
  document.getElementById("compare").disabled = rows().filter(row => row.querySelector("input").checked).length < 2;
}

function sort() {
  if (!order) return;
  const value = row => row.cells[order.column].dataset.sort ?? row.cells[order.column].textContent;
  const compare = (a, b) => a !== "" && b !== "" && isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b, undefined, { numeric: true });
  body.append(...rows().sort((a, b) => order.sign * compare(value(a), value(b))));
}

async function reindex(known) {
  const mine = new Map(rows().map(row => [row.dataset.key, row]));
  const same = mine.size === Object.keys(known).length && [...mine].every(([key, row]) => known[key] === row.dataset.version);
  if (same) return;
  const next = await fresh("/"), list = next && next.querySelector("tbody");
  if (!next) return;
  if (!list || !body) { location.reload(); return; }  // the first run, or the last one gone
  let before = null;
  for (const row of [...list.rows]) {
    const old = mine.get(row.dataset.key);
    mine.delete(row.dataset.key);
    let here = old;
    if (!old || old.dataset.version !== row.dataset.version) {
      here = document.adoptNode(row);
      if (old) { here.querySelector("input").checked = old.querySelector("input").checked; old.replaceWith(here); }
    }
    if (!old && !order) before ? before.after(here) : body.prepend(here);
    else if (!old) body.append(here);
    before = here;
  }
  for (const gone of mine.values()) gone.remove();
  sort(); filter(); choice(); clock();
}

// A frame: the page of one run or of several, exchanged for a new one at the same place when that
// is drawn, and no more often than the browser can do with ease.
let drawn = frame && files(), due = 0, loading = false;

function parts() { return [...frame.querySelectorAll("[data-key]")]; }

function files() { return parts().map(part => part.dataset.version.split("-")[0]).join(); }

async function reframe(known) {
  if (parts().some(part => known[part.dataset.key] !== part.dataset.version)) {
    const next = await fresh(location.href);
    if (!next) return;  // a run is gone: what was read of it stays
    frame.querySelector(".live-bar").replaceWith(document.adoptNode(next.querySelector(".live-bar")));
    clock();
  }
  const now = files(), old = frame.querySelector("iframe"), began = Date.now();
  if (now === drawn || loading || began < due) return;
  const next = old.cloneNode();
  loading = true;
  next.className = "live-next";
  next.style.height = `${old.clientHeight}px`;
  next.addEventListener("load", () => setTimeout(() => {
    const from = old.contentWindow, to = next.contentWindow;
    const folds = from.document.querySelectorAll("details"), anew = to.document.querySelectorAll("details");
    if (folds.length === anew.length) folds.forEach((fold, i) => { anew[i].open = fold.open; });
    to.scrollTo({ left: from.scrollX, top: from.scrollY, behavior: "instant" });
    next.className = next.style.height = "";
    old.remove();
    [drawn, loading, due] = [now, false, Date.now() + Math.max(LEAST, 10 * (Date.now() - began))];
  }, 300));
  old.after(next);
}

async function poll() {
  try {
    const known = document.hidden ? null : await versions();
    if (known && index) await reindex(known);
    if (known && frame) await reframe(known);
    document.body.classList.remove("lost");
  } catch { document.body.classList.add("lost"); }  // the server has ended
  setTimeout(poll, PAUSE);
}

if (body) {
  document.getElementById("filter").addEventListener("input", filter);
  body.addEventListener("change", choice);
  index.querySelectorAll(".live-sort").forEach(button => button.addEventListener("click", () => {
    const head = button.parentElement, up = head.getAttribute("aria-sort") === "ascending";
    index.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "descending" : "ascending");
    order = { column: head.cellIndex, sign: up ? -1 : 1 };
    sort();
  }));
  filter(); choice();
}
if (index || frame) { clock(); setInterval(clock, 1000); setTimeout(poll, PAUSE); }
