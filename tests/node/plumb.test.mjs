// plumberd/web/plumb.js against a server of the package ws: run by tests/process/test_web_package.py.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { getEventListeners, once } from "node:events";
import { test } from "node:test";
import WebSocket, { WebSocketServer } from "ws";
import { connect, PlumbError, QUEUE_BYTES, QUEUE_MESSAGES, SEND_BYTES } from "../../plumberd/web/plumb.js";

const bytes = (text) => new TextEncoder().encode(text);
const QUICK = { firstSeconds: 0.01, mostSeconds: 0.02 };

/** Run a server for one test. `refusals` has what /-/services tells, one answer each time. */
async function serve(t, serving = () => {}, refusals = []) {
  const asked = [];
  const http = createServer((request, response) => {
    asked.push([request.url, request.headers.authorization]);
    const told = refusals.length > 1 ? refusals.shift() : refusals[0];
    if (told === undefined) return response.writeHead(404).end("not found");
    response.setHeader("Content-Type", "application/json");
    response.end(JSON.stringify(told));
  });
  const sockets = new WebSocketServer({ noServer: true, handleProtocols: (offered) => [...offered][0] });
  const offers = [];
  http.on("upgrade", (request, socket, head) => {
    offers.push(request.headers["sec-websocket-protocol"]);
    if (refusals.length && !(refusals[0].ok && refusals.shift()))
      return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    sockets.handleUpgrade(request, socket, head, serving);
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  t.after(() => {
    for (const socket of sockets.clients) socket.terminate();
    http.closeAllConnections();
    http.close();
  });
  return { url: `ws://127.0.0.1:${http.address().port}/pong`, asked, offers };
}

const echo = (socket) => socket.on("message", (data, binary) => socket.send(data, { binary }));

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  assert.fail("nothing was thrown");
}

test("text and bytes come back as what they were", async (t) => {
  const { url, offers } = await serve(t, echo);
  const pong = await connect(url, { WebSocket });
  for (const [sent, got] of [
    ["grüße", "grüße"],
    [bytes("\0\xff"), bytes("\0\xff")],
    [bytes("buffer").buffer, bytes("buffer")],
    [new DataView(bytes("xviewx").buffer, 1, 4), bytes("view")],
    ["", ""],
  ]) {
    await pong.send(sent);
    assert.deepEqual(await pong.next(), { value: got, done: false });
  }
  await assert.rejects(pong.send(7), TypeError);
  assert.deepEqual(await pong.close(), { code: 1000, reason: "", clean: true });
  assert.deepEqual(offers, ["ipc"]);
});

test("with text, bytes are decoded, and a raw stream's characters may be cut anywhere", async (t) => {
  const { url } = await serve(t, echo);
  const whole = await connect(url, { WebSocket, text: true });
  await whole.send(bytes("\ufeffä"));
  assert.equal((await whole.next()).value, "\ufeffä");
  await whole.close();
  const raw = await connect(url, { WebSocket, text: true, protocol: "raw" });
  for (const part of [bytes("ä").subarray(0, 1), bytes("ä").subarray(1)]) await raw.send(part);
  assert.equal((await raw.next()).value + (await raw.next()).value, "ä");
  await raw.close();
});

test("the token is offered as a subprotocol, and one that cannot be is a bad request", async (t) => {
  const { url, offers } = await serve(t, echo);
  await (await connect(url, { WebSocket, token: "a-B_9", protocol: "raw" })).close();
  assert.deepEqual(offers, ["raw,plumb.token.a-B_9"]);
  assert.equal((await refusal(connect(url, { WebSocket, token: "a b" }))).word, "bad-request");
});

test("http addresses are those of WebSockets", async (t) => {
  const { url } = await serve(t, echo);
  await (await connect(new URL(url.replace("ws:", "http:")), { WebSocket })).close();
});

test("iteration ends with the service, after everything that it has sent", async (t) => {
  const { url } = await serve(t, (socket) => {
    for (const text of ["one", "two"]) socket.send(text);
    socket.close(1000, "done");
  });
  const pong = await connect(url, { WebSocket });
  assert.deepEqual(await pong.closed, { code: 1000, reason: "done", clean: true });
  const got = [];
  for await (const message of pong) got.push(message);
  assert.deepEqual(got, ["one", "two"]);
  assert.equal((await refusal(pong.send("late"))).word, "lost");
});

test("an end that is not in order is an error, once", async (t) => {
  const { url } = await serve(t, (socket) => socket.close(1011, "gone"));
  const pong = await connect(url, { WebSocket });
  const error = await refusal(pong.next());
  assert.deepEqual([error.name, error.word, error.reason, error.code], ["PlumbError", "lost", "gone", 1011]);
  assert.deepEqual(await pong.next(), { value: undefined, done: true });
});

test("several readers take turns", async (t) => {
  const { url } = await serve(t, echo);
  const pong = await connect(url, { WebSocket });
  const readers = [pong.next(), pong.next(), pong.next()];
  for (const text of ["a", "b"]) await pong.send(text);
  assert.deepEqual((await Promise.all(readers.slice(0, 2))).map(({ value }) => value).sort(), ["a", "b"]);
  await pong.close();
  assert.equal((await readers[2]).done, true);
});

test("who reads too slowly is told, and has what was within the limits", async (t) => {
  for (const [size, most] of [
    [10, QUEUE_MESSAGES],
    [1 << 20, QUEUE_BYTES >> 20],
  ]) {
    const { url } = await serve(t, (socket) => {
      for (let count = 0; count < most + 5; count++) socket.send(Buffer.alloc(size));
    });
    const pong = await connect(url, { WebSocket, reconnect: QUICK });
    assert.equal((await pong.closed).code, 4000);
    let count = 0;
    const error = await refusal(
      (async () => {
        for await (const _ of pong) count++;
      })(),
    );
    assert.deepEqual([count, error.word], [most, "slow"]);
  }
});

test("one message may be larger than all that may wait", async (t) => {
  const { url } = await serve(t, (socket) => socket.send(Buffer.alloc(QUEUE_BYTES + 1)));
  const pong = await connect(url, { WebSocket });
  assert.equal((await pong.next()).value.length, QUEUE_BYTES + 1);
  await pong.close();
});

test("send waits until little is still to be written", async (t) => {
  let far;
  const { url } = await serve(t, (socket) => (far = socket));
  const pong = await connect(url, { WebSocket });
  far._socket.pause();
  let sent = false;
  const sending = pong.send(Buffer.alloc(32 * SEND_BYTES)).then(() => (sent = true));
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(sent, false);
  far._socket.resume();
  await sending;
  await pong.close();
});

test("a send that can no more be written is rejected", async (t) => {
  let far;
  const { url } = await serve(t, (socket) => (far = socket));
  const pong = await connect(url, { WebSocket });
  far._socket.pause();
  const sending = refusal(pong.send(Buffer.alloc(32 * SEND_BYTES)));
  far._socket.destroy();
  assert.equal((await sending).word, "lost");
});

test("a refusal has the daemon's word and reason, which is asked with the token", async (t) => {
  const told = { service: "pong", ok: false, error: "denied", reason: "rule 1 denies it" };
  const { url, asked } = await serve(t, echo, [told]);
  const error = await refusal(connect(url, { WebSocket, token: "secret" }));
  assert.ok(error instanceof PlumbError && error instanceof Error);
  assert.deepEqual([error.word, error.reason, error.code], ["denied", "rule 1 denies it", undefined]);
  assert.deepEqual(asked, [["/-/services/pong", "Bearer secret"]]);
  assert.ok(!String(error.stack).includes("secret"));
});

test("a path before the service's name stays before the question about it", async (t) => {
  const { url, asked } = await serve(t, echo, [{ ok: false, error: "denied" }]);
  await refusal(connect(url.replace("/pong", "/a/pong"), { WebSocket }));
  assert.deepEqual(asked, [["/a/-/services/pong", undefined]]);
});

test("where nobody can be asked, it says that the browser hides why", async (t) => {
  assert.equal((await refusal(connect("ws://127.0.0.1:1/pong", { WebSocket }))).word, "hidden");
  const http = createServer((request, response) => response.writeHead(404).end("not found"));
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  t.after(() => (http.closeAllConnections(), http.close()));
  const error = await refusal(connect(`ws://127.0.0.1:${http.address().port}/pong`, { WebSocket }));
  assert.equal(error.word, "hidden");
  assert.match(error.reason, /does not say why/);
});

test("what may be used and still fails is unreachable", async (t) => {
  const { url } = await serve(t, echo, [{ ok: false }, { ok: true }]);
  assert.equal((await refusal(connect(url, { WebSocket }))).word, "hidden");
  assert.equal((await refusal(connect(url, { WebSocket, protocol: "" }))).word, "bad-request");
});

test("a lost connection is made again, and send waits for it", async (t) => {
  let connections = 0;
  const { url } = await serve(t, (socket) => {
    if (++connections === 1) return setImmediate(() => socket.terminate());
    echo(socket);
  });
  const states = [];
  const onState = (state, { seconds }) => states.push(seconds === undefined ? state : [state, seconds]);
  const pong = await connect(url, { WebSocket, reconnect: QUICK, onState });
  while (pong.state !== "waiting") await new Promise(setImmediate);
  await pong.send("again");
  assert.equal((await pong.next()).value, "again");
  await pong.close();
  await new Promise(setImmediate);
  const [[word, seconds]] = states.splice(2, 1);
  assert.ok(word === "waiting" && seconds >= 0.005 && seconds <= 0.01, String(seconds));
  assert.deepEqual(states, ["connecting", "open", "connecting", "open", "closed"]);
});

test("the time between tries doubles up to its limit", async (t) => {
  const waits = [];
  const onState = (state, { seconds }) => state === "waiting" && waits.push(seconds);
  const reconnect = { firstSeconds: 0.01, mostSeconds: 0.04, tries: 4 };
  assert.equal((await refusal(connect("ws://127.0.0.1:1/pong", { WebSocket, reconnect, onState }))).word, "hidden");
  assert.equal(waits.length, 4);
  for (const [i, most] of [0.01, 0.02, 0.04, 0.04].entries())
    assert.ok(waits[i] >= most / 2 && waits[i] <= most, `${i}: ${waits[i]}`);
});

test("refusals that pass are tried again, others are not", async (t) => {
  const told = (error) => ({ ok: false, error, reason: "because" });
  for (const error of ["denied", "unauthenticated", "unknown-service", "bad-request", "not-possible"]) {
    const { url, offers } = await serve(t, echo, [told(error)]);
    assert.equal((await refusal(connect(url, { WebSocket, reconnect: QUICK }))).word, error);
    assert.equal(offers.length, 1, error);
  }
  for (const error of ["busy", "timeout", "unreachable"]) {
    const { url, offers } = await serve(t, echo, [told(error), { ok: true }]);
    await (await connect(url, { WebSocket, reconnect: QUICK })).close();
    assert.equal(offers.length, 2, error);
  }
});

test("a service that was there may be started anew", async (t) => {
  const gone = { ok: false, error: "unknown-service", reason: "it is not there" };
  const cut = (socket) => setImmediate(() => socket.terminate());
  const { url, offers } = await serve(t, cut, [{ ok: true }, gone, gone, { ok: true }]);
  const pong = await connect(url, { WebSocket, reconnect: { ...QUICK, tries: 20 } });
  while (offers.length < 4) await new Promise(setImmediate);
  await pong.close();
});

test("ends that would come again are final", async (t) => {
  for (const code of [1002, 1003, 1007, 1008, 1009]) {
    const { url, offers } = await serve(t, (socket) => socket.close(code));
    const pong = await connect(url, { WebSocket, reconnect: QUICK });
    assert.equal((await pong.closed).code, code);
    assert.equal(offers.length, 1);
  }
});

test("the service's own end is the end, unless it is asked otherwise", async (t) => {
  const { url, offers } = await serve(t, (socket) => socket.close(1000));
  await (await connect(url, { WebSocket, reconnect: QUICK })).closed;
  assert.equal(offers.length, 1);
  const pong = await connect(url, { WebSocket, reconnect: { ...QUICK, afterEnd: true } });
  while (offers.length < 4) await new Promise(setImmediate);
  await pong.close();
});

test("a signal ends a try, a wait, and a connection", async (t) => {
  const { url } = await serve(t, echo);
  await assert.rejects(connect(url, { WebSocket, signal: AbortSignal.abort() }), { name: "AbortError" });
  const trying = new AbortController();
  const failing = connect("ws://127.0.0.1:1/pong", {
    WebSocket,
    signal: trying.signal,
    reconnect: { firstSeconds: 60, mostSeconds: 60 },
    onState: (state) => state === "waiting" && trying.abort(),
  });
  await assert.rejects(failing, { name: "AbortError" });
  const open = new AbortController();
  const first = await connect(url, { WebSocket, signal: open.signal });
  await first.close();
  assert.equal(getEventListeners(open.signal, "abort").length, 0); // what is over is not kept
  const pong = await connect(url, { WebSocket, signal: open.signal });
  open.abort();
  assert.equal((await pong.closed).code, 1000);
  assert.equal((await pong.next()).done, true);
});

test("without a WebSocket it says what to pass", async (t) => {
  const kept = globalThis.WebSocket;
  t.after(() => (globalThis.WebSocket = kept));
  globalThis.WebSocket = undefined;
  await assert.rejects(connect("ws://127.0.0.1:1/pong"), { word: "bad-request", message: /package ws/ });
});
