// A client on the package ws: node client.mjs URL PROTOCOL [TOKEN]. It prints what happens, one JSON a line.

import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import WebSocket from "ws";

const [url, protocol, token] = process.argv.slice(2);
const say = (what) => console.log(JSON.stringify(what));
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const socket = new WebSocket(url, [protocol], { headers, perMessageDeflate: true });

socket.on("unexpected-response", (request, response) => {
  say({ status: response.statusCode, challenge: response.headers["www-authenticate"] ?? null });
  request.destroy();
});
socket.on("error", () => {});
socket.on("close", (code, reason) => say({ closed: code, reason: String(reason) }));
socket.on("open", async () => {
  const ask = async (data, options) => {
    socket.send(data, options);
    return (await once(socket, "message"))[0];
  };
  say({ protocol: socket.protocol, extensions: socket.extensions });
  say({ text: String(await ask("grüße")) });
  say({ bytes: [...(await ask(Buffer.from([0, 255])))] });
  socket.send("in ", { fin: false });
  say({ fragments: String(await ask("pieces", { fin: true })) });
  const large = randomBytes(3 << 20);
  const digest = (data) => createHash("sha256").update(data).digest("hex");
  say({ large: digest(await ask(large)) === digest(large) });
  socket.ping("are you there?");
  say({ pong: String((await once(socket, "pong"))[0]) });
  socket.close(1000, "enough");
});
