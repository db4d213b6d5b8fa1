"use strict";

// What the status pages of all programs share. Values reach the page as text only (textContent, append of strings):
// what a topic or an error message contains never becomes markup.

/** Pause between an answer and the next request. */
const PAUSE_MS = 2000;
/** A request that takes longer counts as no answer. */
const TIMEOUT_MS = 5000;
const MAX_CHANGES = 50;

const find = (id) => document.getElementById(id);

/** A new element. Children are elements, or text. */
function element(tag, ...children) {
  const created = document.createElement(tag);
  created.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return created;
}

/** Shows a text. Unchanged text is left alone, so that screen readers announce changes only. */
function show(id, text) {
  const target = find(id);
  if (target.textContent !== String(text)) target.textContent = text;
}

/** Shows a text, or nothing at all where there is none. */
function showIf(id, text) {
  find(id).hidden = !text;
  show(id, text ?? "");
}

/**
 * Fills the body of a table. A cell is a text, or {text, level}; the first one of a row is its heading. A table without
 * rows gives way to the text that says so. Unchanged rows are left alone, so that a reader can select text in them.
 */
function fill(id, rows) {
  const content = JSON.stringify(rows);
  const table = find(id);
  if (table.dataset.content === content) return;
  table.dataset.content = content;
  table.hidden = rows.length === 0;
  find(`${id}-none`).hidden = rows.length > 0;
  table.tBodies[0].replaceChildren(...rows.map((row) => element("tr", ...row.map(cell))));
}

function cell(content, index) {
  const created = element(index ? "td" : "th", content.text ?? content);
  if (index === 0) created.scope = "row";
  if (content.level) created.className = content.level;
  return created;
}

const count = (number) => new Intl.NumberFormat("en").format(number);

/** With three digits: 12.3 MiB. */
function bytes(number) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? number : number.toPrecision(number < 1000 ? 3 : 4)} ${units[unit]}`;
}

/** With the two largest units: 3 h 12 min. */
function duration(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** The form that logs use, with the zone. */
const time = (when) => `${new Date(when).toISOString().slice(0, 19).replace("T", " ")} UTC`;

/** Adds a line to the changes, newest first. */
function changed(text) {
  const list = find("changes");
  list.prepend(element("li", element("time", time(Date.now())), ` ${text}`));
  while (list.children.length > MAX_CHANGES) list.lastChild.remove();
  find("changes-none").hidden = true;
}

/** Reports in the list of changes which of the named values differ from those of the last call. */
const noteChanges = (() => {
  let before = new Map();
  return (values) => {
    const now = new Map(values.map(([name, value]) => [name, String(value)]));
    for (const [name, value] of now) {
      if (before.has(name) && before.get(name) !== value) changed(`${name}: ${before.get(name)} → ${value}`);
    }
    before = now;
  };
})();

async function read(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!response.ok) throw new Error(`${path}: status ${response.status}`);
  return response;
}

/** What was shown last must not look like the present state. */
function onSilence(program, answered) {
  changed(`the ${program} does not answer`);
  const last = answered ? `The page shows its last answer, of ${time(answered)}. ` : "";
  show("silence-text", `The ${program} does not answer. ${last}Check that the process runs and, if you forwarded its port, `
    + "that kubectl port-forward still does.");
  find("silence").hidden = false;
  if (answered) show("headline", `Last known: ${find("headline").textContent}`);
  find("state").dataset.level = "unknown";
  document.title = `No answer: ${program}`;
}

/** Asks and draws until the page is closed, and says so while `program` does not answer. */
async function watch(program, ask, draw) {
  let answered = null;
  let silent = false;
  for (;;) {
    const answer = await ask().catch((error) => {
      if (!silent) onSilence(program, answered);
      silent = true;
      showIf("cause", error.message);
    });
    if (answer) {
      if (silent) changed(`the ${program} answers again`);
      silent = false;
      answered = Date.now();
      find("silence").hidden = true;
      show("updated", time(answered));
      draw(answer);
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

/** Starts the page. A fault of the page must not look like a current status. */
function start(program, ask, draw) {
  watch(program, ask, draw).catch((error) => {
    show("silence-text", `This page cannot show what the ${program} answers: ${error.message}. Reload it, or read /status.`);
    find("silence").hidden = false;
  });
}
