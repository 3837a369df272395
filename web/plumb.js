/*
 * Services behind a plumberd, for pages and for programs that have a WebSocket:
 *     import { connect } from "/-/plumb.js";
 *     for await (const message of await connect("/pong", { token, text: true })) console.log(message);
 */

/** What may wait for a reader (a browser cannot stop reading), and what may be unwritten when send() resolves. */
export const [QUEUE_MESSAGES, QUEUE_BYTES, SEND_BYTES] = [1024, 16 * 1024 * 1024, 1024 * 1024];

const [EXPLAIN_SECONDS, SETTLED_SECONDS] = [10, 10]; // a connection that lasted the latter begins the back-off anew
const BACK_OFF = { firstSeconds: 0.5, mostSeconds: 30, tries: Infinity, afterEnd: false };
// What will not change by asking again; but for a service that was there already: it may have been started anew.
const FINAL = ["denied", "unauthenticated", "unknown-service", "bad-request", "not-possible", "slow"];
const FINAL_CODES = [1002, 1003, 1007, 1008, 1009, 1010];
const PASSING = { true: ["unknown-service"], false: ["unknown-service", "denied"] }; // by: has a token

const NoSocket = function () { throw new Error("no WebSocket here: pass { WebSocket } of the package ws") };
/** Why there is no connection: a word for programs, a reason for people; `code` is the close code, if it was open. */
export class PlumbError extends Error {
  constructor(word, reason, code) {
    super(`${word}: ${reason}`);
    Object.assign(this, { name: "PlumbError", word, reason, code });
  }
}

/** Connect to the service that `url` names; an http(s) address or a path will do. */
export async function connect(url, options = {}) {
  options.signal?.throwIfAborted();
  return new Promise((opened, failed) => new Connection(absolute(url), options, opened, failed));
}

class Connection {
  #url;
  #options;
  #backOff;
  #socket = null;
  #closing = null; // the code and reason of our own close
  #ended = false;
  #known = false; // it was open once
  #error = null; // why it ended, if not in order
  #told = false; // the reader was told of it
  #queue = [];
  #queuedBytes = 0;
  #readers = []; // wake-ups of those that wait for a message
  #waiting = []; // for another state
  #tellClosed;

  constructor(url, options, opened, failed) {
    this.#url = url;
    this.#options = { protocol: "ipc", WebSocket: globalThis.WebSocket ?? NoSocket, ...options };
    this.#backOff = options.reconnect ? { ...BACK_OFF, ...options.reconnect } : { ...BACK_OFF, tries: 0 };
    this.closed = new Promise((resolve) => (this.#tellClosed = resolve));
    const abort = () => this.close();
    options.signal?.addEventListener("abort", abort, { once: true });
    this.closed.then(() => options.signal?.removeEventListener("abort", abort));
    this.#live(() => opened(this)).then((error) => failed(options.signal?.aborted ? options.signal.reason : error));
  }

  /** Resolves when little of what was sent still waits here; while there is no connection it waits for the next. */
  async send(data) {
    if (typeof data !== "string" && !(data instanceof ArrayBuffer) && !ArrayBuffer.isView(data))
      throw new TypeError("wanted a string, an ArrayBuffer or a view of one");
    while (this.#socket?.readyState !== 1) {
      if (this.#ended || this.#closing) throw this.#error ?? new PlumbError("lost", "the connection has ended");
      await new Promise((changed) => this.#waiting.push(changed));
    }
    const socket = this.#socket;
    socket.send(data);
    for (let ms = 1; socket.bufferedAmount > SEND_BYTES; ms = Math.min(2 * ms, 50)) {
      await new Promise((resolve) => setTimeout(resolve, ms));
      if (socket.readyState !== 1) throw new PlumbError("lost", "the connection ended before all was written");
    }
  }

  /** The next message; those that wait may be read after the end too. */
  async next() {
    if (this.#queue.length) {
      const value = this.#queue.shift();
      this.#queuedBytes -= sizeOf(value);
      return { value, done: false };
    }
    if (!this.#ended) return new Promise((resolve) => this.#readers.push(resolve)).then(() => this.next());
    if (this.#told || !this.#error) return { value: undefined, done: true };
    this.#told = true;
    throw this.#error;
  }

  [Symbol.asyncIterator] = () => this;

  close(code = 1000, reason = "") {
    this.#socket?.close(code, reason);
    this.#closing ??= [code, reason];
    this.#changed();
    return this.closed;
  }

  /** Open one socket after another, until one was the last; return why it was. */
  async #live(opened) {
    for (let failures = 0; ; failures++) {
      this.#tell("connecting");
      const end = await this.#open(opened);
      if (end.seconds > SETTLED_SECONDS) failures = 0;
      let error = end.error;
      if (!error && end.seconds === null && !this.#closing) error = await explain(this.#url, this.#options);
      else if (!error && end.code !== 1000)
        error = new PlumbError("lost", end.reason || `the connection ended with code ${end.code}`, end.code);
      const passing = this.#known && PASSING[!!this.#options.token].includes(error?.word);
      const final = error ? FINAL.includes(error.word) || FINAL_CODES.includes(error.code) : !this.#backOff.afterEnd;
      if (!this.#closing && (passing || !final) && failures < this.#backOff.tries) {
        const most = Math.min(this.#backOff.firstSeconds * 2 ** failures, this.#backOff.mostSeconds);
        const seconds = most * (0.5 + Math.random() / 2);
        this.#tell("waiting", { seconds, error });
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, seconds * 1000);
          this.#waiting.push(() => resolve(clearTimeout(timer)));
        });
        if (!this.#closing) continue;
      }
      const how = { code: end.code, reason: end.reason, clean: end.clean };
      this.#ended = true;
      this.#error = this.#closing ? null : error;
      for (const wake of this.#readers.splice(0)) wake();
      this.#tell("closed", { ...how, error: this.#error });
      this.#tellClosed(how);
      return this.#error ?? new PlumbError("lost", "it was closed before it was open", end.code);
    }
  }

  /** Open one socket; return when it has ended, and how. */
  #open(opened) {
    const { token, protocol, WebSocket: Socket, text } = this.#options;
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let [since, error] = [null, null];
    return new Promise((ended) => {
      const socket = new Socket(this.#url, [protocol, ...(token ? [`plumb.token.${token}`] : [])]);
      socket.binaryType = "arraybuffer";
      socket.addEventListener("error", () => {}); // the close behind it tells as much
      socket.addEventListener("close", ({ code, reason, wasClean: clean }) =>
        ended({ code, reason, clean, error, seconds: since && (Date.now() - since) / 1000 }),
      );
      socket.addEventListener("open", () => {
        since = Date.now();
        this.#known = true;
        opened();
        this.#tell("open");
      });
      socket.addEventListener("message", ({ data }) => {
        if (typeof data !== "string") data = new Uint8Array(data);
        if (text && typeof data !== "string") data = decoder.decode(data, { stream: protocol === "raw" });
        if (!error && this.#take(data)) return;
        error ??= new PlumbError("slow", "messages came faster than they were read", 4000);
        socket.close(4000, "too slow");
      });
      this.#socket = socket;
    }).catch(({ message }) => {
      error = new PlumbError("bad-request", message); // an address or a token that can be none
      return { code: 1006, reason: "", clean: false, error, seconds: null };
    });
  }

  /** Let a message wait for its reader; return false where too much waits. */
  #take(message) {
    const bytes = this.#queuedBytes + sizeOf(message);
    if (this.#queue.length && (this.#queue.length >= QUEUE_MESSAGES || bytes > QUEUE_BYTES)) return false;
    this.#queuedBytes = bytes;
    this.#queue.push(message);
    this.#readers.shift()?.();
    return true;
  }

  #tell(state, detail = {}) {
    this.state = state;
    this.#changed();
    queueMicrotask(() => this.#options.onState?.(state, detail)); // what it throws is not ours
  }

  #changed() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** Ask the daemon why: a browser tells a page nothing about a WebSocket that did not open. */
async function explain(url, { token, fetch = globalThis.fetch }) {
  const [, base, name] = /^(.*\/)([^/]*)$/.exec(url.pathname);
  const asked = new URL(`${url.protocol === "wss:" ? "https:" : "http:"}//${url.host}${base}-/services/${name}`);
  const hidden = `no connection to ${url.host}, and a browser does not say why: it may be down, or refuse this page`;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const signal = AbortSignal.timeout(EXPLAIN_SECONDS * 1000);
    const answer = await fetch(asked, { headers, signal, cache: "no-store", credentials: "omit" });
    const { ok, error, reason } = await answer.json();
    if (ok) return new PlumbError("unreachable", "it may be used, and the connection failed all the same");
    return new PlumbError(error ?? "hidden", reason ?? (error ? "no reason is given to callers without a token" : hidden));
  } catch {
    return new PlumbError("hidden", hidden);
  }
}
const absolute = (url) => new URL(new URL(url, globalThis.location?.href).href.replace(/^http/, "ws"));
const sizeOf = (message) => message.byteLength ?? message.length * 2;
