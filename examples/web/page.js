// Shows what the demo tells (a stream of JSON events), and asks it to say, press, kill and start.
// All that comes from chats and rows is put into the page as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

/** Return a new element; its children are elements, or strings, which become text. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

async function ask(what, asked = {}) {
  const headers = { "Content-Type": "application/json" };
  try {
    await fetch(what, { method: "POST", headers, body: JSON.stringify(asked) });
  } catch {
    // The demo has ended: the stream says so.
  }
}

const say = (text) => ask("say", { text });

// --- The chat -----------------------------------------------------------------------------------

let entries = [];
let bot = { state: "dead" };

const SPEAKERS = { said: "You: ", answer: "Bot: ", "pop-up": "Bot, in a pop-up: " };

function entryElement(entry) {
  if (entry.kind === "note") return make("p", `note ${entry.mood}`, entry.text);
  const line = make("div", `line ${entry.kind}`);
  const who = make("span", "unseen", SPEAKERS[entry.kind] ?? "You press ");
  const bubble = make("p", "bubble", who, entry.text);
  if ("taken" in entry) bubble.append(" ", tick(entry));
  line.append(bubble);
  if (entry.buttons?.length) {
    const keyboard = make("div", "keyboard");
    for (const button of entry.buttons) {
      const key = make("button", "", button);
      key.type = "button";
      key.addEventListener("click", () => ask("press", { message_id: entry.message_id, button }));
      keyboard.append(key);
    }
    line.append(keyboard);
  }
  return line;
}

function tick(entry) {
  if (!entry.taken) return make("span", "tick", "waits");
  const mark = make("span", "", "✓");
  mark.setAttribute("aria-hidden", "true");
  return make("span", "tick taken", mark, make("span", "unseen", "taken"));
}

function showEntry(entry) {
  const messages = $("messages");
  const old = messages.children[entry.id];
  entries[entry.id] = entry;
  if (old) {
    // Of an entry that is there, only whether the bot has taken it changes.
    if ("taken" in entry) old.querySelector(".tick").replaceWith(tick(entry));
  } else {
    messages.append(entryElement(entry));
    messages.scrollTop = messages.scrollHeight;
  }
  showGuide();
}

function showBot(now) {
  bot = now;
  const process = bot.pid ? `, process ${bot.pid}` : "";
  const words = { dead: "dead: no process", starting: `starting${process}`, running: `running${process}` };
  $("bot-state").textContent = words[bot.state];
  $("chat").dataset.bot = bot.state;
  // Not `disabled`: that would take the focus away from who has just pressed it.
  $("kill").setAttribute("aria-disabled", String(!bot.pid));
  $("start").setAttribute("aria-disabled", String(bot.state !== "dead"));
  $("text").placeholder = bot.state === "dead" ? "Telegram keeps what you say now" : "Message";
  showGuide();
}

// --- A document as lines, and what has changed in it --------------------------------------------

const WIDTH = 66; // characters of a value that stays on one line
const SHOWN = 3; // of the items of a list before a change

const isObject = (value) => typeof value === "object" && value !== null;
const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function inline(value) {
  if (Array.isArray(value)) return `[${value.map(inline).join(", ")}]`;
  if (!isObject(value)) return JSON.stringify(value);
  const members = Object.entries(value).map(([key, part]) => `${JSON.stringify(key)}: ${inline(part)}`);
  return `{${members.join(", ")}}`;
}

/** A line is its sign ("+", "-" or " "), how deep it is, and its text. */
function* lines(sign, depth, name, value, end) {
  const text = inline(value);
  if (!isObject(value) || text.length + name.length <= WIDTH) {
    yield [sign, depth, name + text + end];
    return;
  }
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  yield [sign, depth, name + open];
  const members = membersOf(value);
  const hidden = sign === " " && Array.isArray(value) ? Math.max(members.length - SHOWN, 0) : 0;
  if (hidden > 1) yield [sign, depth + 1, `… ${hidden} more`];
  for (const [index, [key, part]] of members.entries()) {
    if (hidden > 1 && index < hidden) continue;
    yield* lines(sign, depth + 1, key, part, index < members.length - 1 ? "," : "");
  }
  yield [sign, depth, close + end];
}

function membersOf(value) {
  if (Array.isArray(value)) return value.map((part) => ["", part]);
  return Object.entries(value).map(([key, part]) => [`${JSON.stringify(key)}: `, part]);
}

function* diff(depth, name, before, after, end) {
  if (isSame(before, after)) {
    yield* lines(" ", depth, name, after, end);
  } else if (Array.isArray(before) && Array.isArray(after)) {
    yield [" ", depth, `${name}[`];
    yield* diffOfLists(depth + 1, before, after);
    yield [" ", depth, `]${end}`];
  } else if (isObject(before) && isObject(after) && !Array.isArray(before) && !Array.isArray(after)) {
    yield [" ", depth, `${name}{`];
    yield* diffOfObjects(depth + 1, before, after);
    yield [" ", depth, `}${end}`];
  } else {
    yield* lines("-", depth, name, before, end);
    yield* lines("+", depth, name, after, end);
  }
}

function* diffOfObjects(depth, before, after) {
  for (const key of Object.keys(before)) {
    if (!Object.hasOwn(after, key)) yield* lines("-", depth, `${JSON.stringify(key)}: `, before[key], ",");
  }
  const keys = Object.keys(after);
  for (const [index, key] of keys.entries()) {
    const name = `${JSON.stringify(key)}: `;
    const end = index < keys.length - 1 ? "," : "";
    if (Object.hasOwn(before, key)) yield* diff(depth, name, before[key], after[key], end);
    else yield* lines("+", depth, name, after[key], end);
  }
}

/** What both have at the beginning and at the end has stayed; what is between them has not. */
function* diffOfLists(depth, before, after) {
  const shorter = Math.min(before.length, after.length);
  let head = 0;
  while (head < shorter && isSame(before[head], after[head])) head++;
  let tail = 0;
  while (tail < shorter - head && isSame(before.at(-1 - tail), after.at(-1 - tail))) tail++;
  const end = (index) => (index < after.length - 1 ? "," : "");
  const hidden = head > SHOWN ? head - 1 : 0;
  if (hidden) yield [" ", depth, `… ${hidden} more`];
  for (let i = hidden; i < head; i++) yield* lines(" ", depth, "", after[i], end(i));
  for (let i = head; i < before.length - tail; i++) yield* lines("-", depth, "", before[i], ",");
  for (let i = head; i < after.length - tail; i++) yield* lines("+", depth, "", after[i], end(i));
  for (let i = after.length - tail; i < after.length; i++) yield* lines(" ", depth, "", after[i], end(i));
}

// --- The rows -----------------------------------------------------------------------------------

let rows = new Map(); // key -> what the row was when it was last seen

const MEANINGS = [
  [/^chat\//, "chat_data: what the handlers keep of this chat"],
  [/^user\//, "user_data: what the handlers keep of you"],
  [/^bot$/, "bot_data: what the handlers keep for everybody"],
  [/^conversation\//, "the step that a conversation waits at"],
  [/^callback\//, "the buttons under a message, and the objects that they stand for"],
];

function rowElement(row, before, isChanged) {
  const item = make("li", isChanged ? "row changed" : "row");
  item.dataset.key = row.key;
  const head = make("div", "head", make("h3", "", row.key));
  if (isChanged) head.append(make("span", "badge", row.gone ? "deleted" : before ? "changed" : "new"));
  const facts = make("p", "facts");
  if (row.gone) item.classList.add("gone");
  else facts.append(`version ${row.version} · ${new Date(row.updated_at).toLocaleTimeString("en-GB")}`);
  const meaning = MEANINGS.find(([pattern]) => pattern.test(row.key))?.[1] ?? "";
  head.append(facts);
  item.append(head, make("p", "meaning", meaning), json(row, before, isChanged));
  return item;
}

function json(row, before, isChanged) {
  const block = make("pre", "");
  const found = !isChanged
    ? lines(" ", 0, "", row.value, "")
    : row.gone
      ? lines("-", 0, "", before.value, "")
      : before
        ? diff(0, "", before.value, row.value, "")
        : lines("+", 0, "", row.value, "");
  const tags = { "+": "ins", "-": "del", " ": "span" };
  for (const [sign, depth, text] of found) {
    const line = make(tags[sign], "", make("span", "sign", sign), text);
    line.style.setProperty("--depth", depth);
    block.append(line);
  }
  return block;
}

/** Show all rows; those in `changed` with what has changed, until others do. */
function showRows(changed) {
  const before = rows;
  rows = new Map(before);
  for (const row of changed) {
    if (row.gone) rows.delete(row.key);
    else rows.set(row.key, row);
  }
  const now = new Map(changed.map((row) => [row.key, row]));
  const keys = [...new Set([...rows.keys(), ...now.keys()])].sort();
  const items = keys.map((key) => rowElement(now.get(key) ?? rows.get(key), before.get(key), now.has(key)));
  $("rows").replaceChildren(...items);
  $("written-text").textContent = now.size ? written(changed, before) : `${count(rows.size)} so far.`;
  const first = items.find((item) => item.classList.contains("changed"));
  if (first) $("scroll").scrollTop = first.offsetTop - 8;
}

const count = (number) => (number === 1 ? "1 row" : `${number || "No"} rows`);

function written(changed, before) {
  const what = (row) => (row.gone ? " (deleted)" : before.has(row.key) ? "" : " (new)");
  const short = (key) => (key.length > 30 ? `${key.slice(0, 17)}…` : key);
  const names = changed.map((row) => short(row.key) + what(row));
  return `Just written, ${count(changed.length)}: ${names.join(", ")}`;
}

// --- The minute ---------------------------------------------------------------------------------

const starts = (kind, text) => (entry) => entry.kind === kind && entry.text.startsWith(text);

const STEPS = [
  {
    title: "Say something",
    look: "Left, a bot in a process of its own. Right, the rows of its file. Say something to it.",
    button: "Say “hello, bot”",
    act: () => say("hello, bot"),
    isDone: starts("answer", "Noted"),
  },
  {
    title: "Begin a conversation",
    look: "Your text is in a row of the chat, and was on the disk before the answer came. Now a conversation.",
    button: "Send /introduce",
    act: () => say("/introduce"),
    isDone: starts("answer", "What is your name?"),
  },
  {
    title: "Answer its question",
    look: "The bot waits for a name, and that is a row too: a conversation at the step NAME.",
    button: "Say “Ada”",
    act: () => say("Ada"),
    isDone: starts("answer", "And where do you live"),
  },
  {
    title: "Kill it",
    look: "The text, the name and the next step were written together. In the middle of it all: kill the bot.",
    button: "Kill it with SIGKILL",
    act: () => ask("kill"),
    isDone: (entry) => entry.mood === "killed",
  },
  {
    title: "Talk to nobody",
    look: "It could not save anything more, and did not have to: the rows are all there. Answer it anyway.",
    button: "Say “London”",
    act: () => say("London"),
    isDone: (entry) => entry.kind === "said",
  },
  {
    title: "Start it again",
    look: "Your answer waits, as it would at Telegram. Start a new process, with the same file.",
    button: "Start the bot",
    act: () => ask("start"),
    isDone: starts("answer", "Nice to meet you"),
  },
];

const THE_END =
  "It went on where it was, and nothing was lost. Try what you like: /count makes buttons that outlive the bot, too.";

/** Tell from the chat how far the minute is: whoever types instead of pressing gets on as well. */
function stepsDone() {
  let done = 0;
  for (const entry of entries) {
    const isOver = starts("answer", "Nice to meet you")(entry) || starts("answer", "Never mind")(entry);
    if (done < STEPS.length && STEPS[done].isDone(entry)) done++;
    else if (isOver && done > 1 && done < STEPS.length) done = 1; // the conversation has ended early
  }
  return done;
}

let next = null; // what the button of the minute does

function showGuide() {
  const done = stepsDone();
  const items = STEPS.map((step, index) => {
    const item = make("li", index < done ? "done" : "", step.title);
    if (index < done) item.append(make("span", "unseen", ", done"));
    if (index === done) item.setAttribute("aria-current", "step");
    return item;
  });
  $("steps").replaceChildren(...items);
  const isOver = done === STEPS.length;
  $("guide").classList.toggle("over", isOver);
  const needsBot = bot.state === "dead" && done < 3;
  const step = isOver
    ? { look: THE_END, button: "Send /count", act: () => say("/count") }
    : needsBot
      ? { look: "The bot is dead. Start it.", button: "Start the bot", act: () => ask("start") }
      : STEPS[done];
  $("look").textContent = step.look;
  $("next").textContent = step.button;
  next = step.act;
}

// --- What is pressed, and what is told ----------------------------------------------------------

$("next").addEventListener("click", () => next?.());
for (const name of ["kill", "start"]) {
  $(name).addEventListener("click", () => {
    if ($(name).getAttribute("aria-disabled") !== "true") ask(name);
  });
}
for (const button of $("commands").children) {
  button.addEventListener("click", () => say(button.textContent));
}
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  say(text);
});

let run = null;

function showAll(all) {
  if (all.run !== run) {
    run = all.run;
    entries = [];
    $("messages").replaceChildren();
  }
  $("ended").textContent = "";
  rows = new Map();
  for (const row of all.rows) rows.set(row.key, row);
  showRows([]);
  for (const entry of all.entries) showEntry(entry);
  showBot(all.bot);
  // What was there when the page came is not news: it is not read out.
  setTimeout(() => $("messages").setAttribute("aria-busy", "false"));
}

const stream = new EventSource("events");
stream.addEventListener("message", ({ data }) => {
  const event = JSON.parse(data);
  if (event.what === "all") showAll(event);
  else if (event.what === "entry") showEntry(event.entry);
  else if (event.what === "rows") showRows(event.changed);
  else showBot(event.bot);
});
stream.addEventListener("error", () => {
  $("ended").textContent = "The demo has ended. Type make demo-web to see it again.";
});
