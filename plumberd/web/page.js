/* The page at /-/: pick a service, talk to it, and read in plain words why it is not to be had. */

import { connect } from "./plumb.js";

const MOST_ENTRIES = 500; // of the log; older ones go
const SHOWN_BYTES = 4096; // of one message
const TOKEN_LENGTH = 43; // of those that `plumb token new` makes
const KEPT = "plumberd.token";

const REFUSALS = {
  denied: "You are not let in here.",
  unauthenticated: "This token is not known here.",
  "unknown-service": "There is no such service at the moment.",
  unreachable: "The service does not answer.",
  timeout: "The service took too long to answer.",
  "bad-request": "This name or token cannot be right.",
  busy: "There is too much going on at the moment. Try again in a minute.",
  "not-possible": "This cannot be done here.",
  hidden: "There is no connection.",
  slow: "Messages came faster than this page could take them.",
};

const HINTS = {
  denied: "No rule lets you in without a token, or there is no such service. Enter a token, or look at its spelling.",
  unauthenticated: "Is it complete? A new one is made with “plumb token new”.",
  hidden: "The daemon may be down, it may not let this page in, or a proxy stands between. A browser does not tell a page which.",
};

const ENDS = {
  1000: "The service has ended the connection.",
  1001: "The daemon is going down.",
  1002: "The connection broke the protocol.",
  1006: "The connection was cut.",
  1007: "Text was sent that is no UTF-8.",
  1008: "The rules do not allow this connection any more.",
  1009: "A message was too large.",
  1011: "The service ended in the middle of it.",
  1013: "There is too much going on at the moment.",
  4000: "Messages came faster than this page could take them.",
};

const $ = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const encoder = new TextEncoder();
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const counted = new Intl.NumberFormat();
const narrow = matchMedia("(max-width: 760px)");

let going = null; // of the connection or the try that there is: { abort, connection }
let log = [];
let drawing = false;

/* -- state and refusals ----------------------------------------------------------------------------- */

function show(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
  const open = state === "open";
  const free = state === "idle" || state === "refused";
  for (const id of ["token", "service", "again"]) $(id).disabled = !free;
  for (const one of [...document.querySelectorAll("[name=protocol], #services button")]) one.disabled = !free;
  for (const id of ["message", "send"]) $(id).disabled = !open;
  $("connect").textContent = free ? "Connect" : open ? "Disconnect" : "Stop";
  $("connect").classList.toggle("leave", !free);
}

function explain(error) {
  $("refusal").hidden = !error;
  if (!error) return;
  $("refusal-plain").textContent = REFUSALS[error.word] ?? "There is no connection.";
  // To who has no token, or a wrong one, the daemon gives no reason: then a hint is worth more than its sentence.
  const isHinted = ["unauthenticated", "hidden"].includes(error.word) || (error.word === "denied" && !$("token").value);
  $("refusal-reason").textContent = (!isHinted && error.reason) || HINTS[error.word] || "";
  $("refusal-word").textContent = error.word ?? "unknown";
  if (narrow.matches) $("refusal").scrollIntoView({ block: "center" });
}

const sentence = (code, reason) =>
  `${ENDS[code] ?? "The connection has ended."} (${code}${reason ? `, ${reason}` : ""})`;

/* -- services --------------------------------------------------------------------------------------- */

let asked = 0;

async function listServices() {
  const turn = ++asked;
  const token = $("token").value;
  let found = [];
  let note = "";
  let bad = false;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch("services", { headers, cache: "no-store", credentials: "omit" });
    const told = await answer.json().catch(() => ({}));
    found = (told.services ?? []).map(({ service }) => service);
    if (answer.status === 401 || told.error === "unauthenticated") [note, bad] = [REFUSALS.unauthenticated, true];
    else if (!answer.ok || told.ok === false) [note, bad] = [told.reason || "The services cannot be listed.", true];
    else if (!found.length) note = token ? "There is no service that this token opens." : "";
    else note = `${found.length === 1 ? "One service" : `${found.length} services`} to pick from.`;
  } catch {
    [note, bad] = ["The daemon does not answer.", true];
  }
  if (turn !== asked) return; // another token was entered meanwhile
  $("token-note").textContent = note;
  $("token-note").toggleAttribute("data-bad", bad);
  $("services").replaceChildren(...found.map(serviceButton));
  markService();
}

function serviceButton(name) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.disabled = $("service").disabled;
  button.addEventListener("click", () => {
    $("service").value = name;
    markService();
  });
  return button;
}

function markService() {
  for (const button of $("services").children)
    button.setAttribute("aria-pressed", String(button.textContent === $("service").value));
}

/* -- the token -------------------------------------------------------------------------------------- */

function keepToken() {
  try {
    if ($("keep").checked && $("token").value) sessionStorage.setItem(KEPT, $("token").value);
    else sessionStorage.removeItem(KEPT);
  } catch {
    $("keep").checked = false; // this browser keeps nothing
  }
}

function restoreToken() {
  try {
    const token = sessionStorage.getItem(KEPT);
    if (token) [$("token").value, $("keep").checked] = [token, true];
  } catch {
    return;
  }
}

function tokenChanged() {
  $("token").value = $("token").value.trim();
  keepToken();
  listServices();
}

/* -- the connection --------------------------------------------------------------------------------- */

async function start(name) {
  const abort = new AbortController();
  const mine = (going = { abort, connection: null });
  const onState = (state, detail) => going === mine && changed(name, state, detail);
  explain(null);
  try {
    const connection = await connect(new URL(`../${encodeURIComponent(name)}`, location.href), {
      token: $("token").value || undefined,
      protocol: chosen("protocol"),
      signal: abort.signal,
      reconnect: $("again").checked && { afterEnd: true },
      onState,
    });
    mine.connection = connection;
    for await (const message of connection)
      note({ kind: "received", data: typeof message === "string" ? encoder.encode(message) : message });
  } catch (error) {
    if (!abort.signal.aborted && error.code === undefined) refused(name, error);
  }
  if (going === mine) going = null;
}

function changed(name, state, { seconds, error, code, reason }) {
  if (state === "connecting") show(state, `connecting to ${name}`);
  if (state === "open") {
    show(state, `connected to ${name}`);
    explain(null);
    note({ kind: "event", text: `Connected to ${name}.` });
    $("message").focus({ preventScroll: !narrow.matches });
  }
  if (state === "waiting") {
    const again = `Trying again in ${Math.max(1, Math.round(seconds))} s.`;
    show(state, "connecting again");
    if (error && error.code === undefined) explain(error);
    note({ kind: "event", text: `${error ? (ENDS[error.code] ?? REFUSALS[error.word]) : ENDS[1000]} ${again}`, bad: true });
  }
  if (state === "closed") ended(error, code, reason);
}

function ended(error, code, reason) {
  const own = going?.abort.signal.aborted;
  going = null;
  if (own) {
    show("idle", "not connected");
    note({ kind: "event", text: "You have disconnected." });
  } else if (error?.code === undefined && error) {
    show("refused", error.word === "hidden" ? "no connection" : "refused");
  } else {
    show(error ? "refused" : "idle", error ? "connection lost" : "ended by the service");
    note({ kind: "event", text: sentence(code, reason), bad: Boolean(error) });
  }
}

function refused(name, error) {
  explain(error);
  note({ kind: "event", text: `No connection to ${name}: ${error.word ?? error.message}.`, bad: true });
}

async function send() {
  const text = $("message").value;
  const data = chosen("entry") === "hex" ? fromHex(text) : encoder.encode(text);
  if (!data) return say("Hex is pairs of 0-9 and a-f; blanks between them are fine.", true);
  if (!going?.connection) return;
  say("");
  $("message").value = "";
  grow();
  note({ kind: "sent", data });
  try {
    await going.connection.send(chosen("entry") === "hex" ? data : text);
  } catch (error) {
    say(`It was not sent: ${error.reason ?? error.message}.`, true);
  }
}

function say(text, bad = false) {
  $("message-note").textContent = text || "Enter sends, Shift and Enter begin a line.";
  $("message-note").toggleAttribute("data-bad", bad);
}

/* -- the log: data becomes text nodes, never markup -------------------------------------------------- */

function note(entry) {
  log.push({ ...entry, when: new Date() });
  if (log.length > MOST_ENTRIES) log.shift();
  if (drawing) return;
  drawing = true;
  setTimeout(draw, 30);
}

function draw() {
  drawing = false;
  const scroll = $("scroll");
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  const fresh = log.filter((entry) => !entry.item);
  for (const entry of fresh) $("log").append((entry.item = item(entry)));
  while ($("log").childElementCount > log.length) $("log").firstElementChild.remove();
  $("empty").hidden = log.length > 0;
  if (atEnd || fresh.some((entry) => entry.kind === "sent")) scroll.scrollTop = scroll.scrollHeight;
}

function redraw() {
  $("log").replaceChildren();
  for (const entry of log) entry.item = null;
  draw();
}

function item({ kind, text, data, when, bad }) {
  const li = element("li", kind);
  const time = element("time", "", clock.format(when));
  time.dateTime = when.toISOString();
  if (kind === "event") {
    li.toggleAttribute("data-bad", Boolean(bad));
    li.append(time, ` · ${text}`);
    return li;
  }
  const meta = element("div", "meta");
  const size = `${counted.format(data.length)} ${data.length === 1 ? "byte" : "bytes"}`;
  meta.append(element("span", "", kind === "sent" ? "↑ sent" : "↓ received"), time, element("span", "", size));
  const shown = data.subarray(0, SHOWN_BYTES);
  const plain = chosen("view") === "text" ? asText(shown, data.length > SHOWN_BYTES) : null;
  li.append(meta, element("pre", plain === null ? "hex" : "", plain ?? toHex(shown)));
  if (data.length > SHOWN_BYTES)
    li.append(element("p", "note", `… and ${counted.format(data.length - SHOWN_BYTES)} more bytes`));
  return li;
}

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

/** Text that is none is shown as hex; a character that the cut went through is left out. */
function asText(data, cut) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data, { stream: cut });
    return /[\0-\x08\x0e-\x1f]/.test(text) ? null : text;
  } catch {
    return null;
  }
}

function toHex(data) {
  const wide = narrow.matches ? 8 : 16;
  const lines = [];
  for (let at = 0; at < data.length; at += wide) {
    const row = [...data.subarray(at, at + wide)];
    const pairs = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const plain = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${pairs.padEnd(3 * wide - 1)}  ${plain}`);
  }
  return lines.join("\n");
}

function fromHex(text) {
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-f]/i.test(digits)) return null;
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

function grow() {
  const area = $("message");
  area.rows = Math.min(6, area.value.split("\n").length);
}

/* -- what a person does ------------------------------------------------------------------------------ */

$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!going) return start($("service").value);
  going.abort.abort();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("message").addEventListener("input", grow);
$("token").addEventListener("change", tokenChanged);
$("token").addEventListener("input", () => $("token").value.trim().length === TOKEN_LENGTH && tokenChanged());
$("keep").addEventListener("change", keepToken);
$("reveal").addEventListener("click", () => {
  const shown = $("token").type === "password";
  $("token").type = shown ? "text" : "password";
  $("reveal").textContent = shown ? "Hide" : "Show";
  $("reveal").setAttribute("aria-pressed", String(shown));
});
$("service").addEventListener("input", markService);
$("clear").addEventListener("click", () => {
  log = [];
  draw();
});
for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", redraw);
narrow.addEventListener("change", redraw);

$("host").textContent = location.host;
restoreToken();
show("idle", "not connected");
listServices();
