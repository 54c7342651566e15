// The conversation: turns of a question and an answer of each model that is asked.

import { answer, models } from "./api.js";
import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const KEPT = ["system", "temperature", "top_p", "max_tokens", "seed"];
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const turns = []; // {question, element, answers: [{model, text, ...}]}
let running = null; // an AbortController while answers come
let listed = null; // a promise: the models are there, or why they are not has been said

function settings() {
  const found = {};
  for (const name of NUMBERS) if ($(name).value !== "") found[name] = Number($(name).value);
  return found;
}

function asked() {
  return [$("model").value, $("beside").value].filter((name, at) => name || at === 0);
}

function messagesFor(column, before) {
  const found = $("system").value.trim() ? [{ role: "system", content: $("system").value.trim() }] : [];
  for (const turn of turns.slice(0, before)) {
    const said = turn.answers[column] ?? turn.answers[0];
    found.push({ role: "user", content: turn.question });
    if (said.text) found.push({ role: "assistant", content: said.text });
  }
  return found;
}

async function send(question) {
  const turn = { question, answers: [], element: document.createElement("section"), cards: document.createElement("div") };
  $("hint")?.remove();
  const said = document.createElement("p");
  said.className = "asked";
  said.textContent = question;
  turn.cards.className = "answers";
  turn.element.append(said, turn.cards);
  $("log").append(turn.element);
  turns.push(turn);
  await run(turn);
}

async function run(turn) {
  trouble("");
  running = new AbortController();
  busy(true);
  const names = asked();
  turn.element.className = names.length > 1 ? "pair" : "";
  turn.answers = names.map((model) => ({ model, text: "" }));
  turn.cards.replaceChildren(...turn.answers.map((one) => card(one, turn)));
  scroll(true);
  const at = turns.indexOf(turn);
  await Promise.all(turn.answers.map((one, column) => stream(one, [
    ...messagesFor(column, at), { role: "user", content: turn.question }])));
  running = null;
  busy(false);
}

async function stream(one, messages) {
  const begun = performance.now();
  let first = 0, drawn = false;
  const draw = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => { drawn = false; const low = atEnd(); render(one.said, one.text); if (low) scroll(true); });
  };
  try {
    for await (const event of answer({ model: one.model, messages, ...settings() }, $("key").value, running.signal)) {
      first ||= performance.now();
      if (event.text) { one.text += event.text; draw(); }
      if (event.reason === "length") one.note = "cut off: no more tokens";
      if (event.usage) one.usage = event.usage;
    }
  } catch (error) {
    if (error.name === "AbortError") one.note = "stopped";
    else { one.note = error.message; one.failed = true; if (error.status === 401) needKey(); }
  }
  const seconds = (performance.now() - begun) / 1000, rest = (performance.now() - first) / 1000;
  const tokens = one.usage?.completion_tokens;
  const facts = [tokens && `${tokens} tokens`, `${seconds.toFixed(1)} s`,
                 tokens > 1 && rest > 0 && `${((tokens - 1) / rest).toFixed(0)} tokens/s`, one.note];
  one.facts.textContent = facts.filter(Boolean).join(" · ");
  one.facts.classList.toggle("failed", Boolean(one.failed));
  one.said.classList.remove("waiting");
  render(one.said, one.text);
  for (const button of one.buttons) button.hidden = false;
  scroll(atEnd());
}

function card(one, turn) {
  const made = document.createElement("article");
  made.className = "answer";
  const title = document.createElement("h2");
  title.textContent = one.model;
  one.said = document.createElement("div");
  one.said.className = "said waiting";
  one.facts = document.createElement("span");
  one.buttons = [button("Copy", (b) => copy(one.text, b)), button("Retry", () => retry(turn))];
  for (const b of one.buttons) b.hidden = true;
  const footer = document.createElement("footer");
  footer.append(...one.buttons, one.facts);
  made.append(title, one.said, footer);
  return made;
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => act(made));
  return made;
}

async function retry(turn) {
  if (running) return;
  for (const later of turns.splice(turns.indexOf(turn) + 1)) later.element.remove();
  await run(turn);
}

async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // where the page is not of this machine and has no TLS
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = shown.textContent;
  shown.textContent = "Copied";
  setTimeout(() => { shown.textContent = before; }, 1200);
}

function atEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function scroll(wanted) {
  if (wanted) $("log").scrollTop = $("log").scrollHeight;
}

function busy(now) {
  $("send").hidden = now;
  $("stop").hidden = !now;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function needKey() {
  openSettings(true);
  $("key").focus();
  trouble("The server wants a key: it goes into the settings.");
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("options").setAttribute("aria-expanded", String(open));
}

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

async function fillModels() {
  try {
    const found = await models($("key").value);
    const before = [$("model").value, $("beside").value];
    const options = (list) => list.map((name) => new Option(name || "none", name));
    $("model").replaceChildren(...options(found));
    $("beside").replaceChildren(...options(["", ...found]));
    if (found.includes(before[0])) $("model").value = before[0];
    if (found.includes(before[1])) $("beside").value = before[1];
    trouble("");
  } catch (error) {
    if (error.status === 401) needKey(); else trouble(`The server does not answer: ${error.message}`);
  }
}

function theme() {
  const dark = document.documentElement.classList.contains("dark")
    || (!document.documentElement.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
  setTheme(dark ? "light" : "dark");
}

function setTheme(name) {
  if (!["light", "dark"].includes(name)) return;
  document.documentElement.classList.remove("light", "dark");
  document.documentElement.classList.add(name);
  localStorage.setItem("theme", name);
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  await listed; // who is quick asks before there is a model to ask
  const question = $("question").value.trim();
  if (!question || running || !$("model").value) return;
  $("question").value = "";
  grow();
  send(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
  if (event.key === "ArrowUp" && !$("question").value && turns.length) {
    event.preventDefault();
    $("question").value = turns.at(-1).question;
    grow();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
document.addEventListener("click", (event) => {
  const source = event.target.closest("button[data-copies]");
  if (source) copy(source.dataset.copies, source);
});
$("question").addEventListener("input", grow);
$("stop").addEventListener("click", () => { running?.abort(); $("question").focus(); });
$("new").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  $("log").replaceChildren();
  $("question").focus();
});
$("options").addEventListener("click", () => openSettings($("settings").hidden));
$("theme").addEventListener("click", theme);
addEventListener("focus", fillModels); // adapters may have come and gone meanwhile
$("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); listed = fillModels(); });
for (const name of KEPT) {
  $(name).value = localStorage.getItem(name) ?? "";
  $(name).addEventListener("change", () => localStorage.setItem(name, $(name).value));
}
$("key").value = sessionStorage.getItem("key") ?? "";
setTheme(localStorage.getItem("theme"));
listed = fillModels();
