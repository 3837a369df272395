// A relay on Node's ws, as good as it gets: what webipcd is compared with.
//
//     node relay.mjs PORT PATH       WebSockets at PORT of 127.0.0.1, to the UNIX socket PATH
//
// Messages' bytes go to the service, and what it sends comes back as binary messages. Either side waits for the other.
// With bufferutil, which ws uses by itself where it is installed, it masks in C.

import { createRequire } from "node:module";
import { connect } from "node:net";

const { WebSocketServer } = createRequire(new URL("../tests/node/", import.meta.url))("ws");

const [port, path] = process.argv.slice(2);
const MOST_UNSENT = 1024 * 1024;
const MOST_MESSAGE = 16 * 1024 * 1024;

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(port),
  backlog: 4096,
  perMessageDeflate: false,
  maxPayload: MOST_MESSAGE,
  skipUTF8Validation: true,
  clientTracking: false,
  handleProtocols: (offered) => offered.values().next().value,
});

server.on("connection", (socket) => {
  const service = connect(path);
  socket.on("message", (data) => {
    if (!service.write(data)) socket.pause();
  });
  service.on("drain", () => socket.resume());
  service.on("data", (data) => {
    socket.send(data, sent);
    if (socket.bufferedAmount > MOST_UNSENT) service.pause();
  });
  const sent = () => {
    if (service.isPaused() && socket.bufferedAmount <= MOST_UNSENT) service.resume();
  };
  service.on("end", () => socket.close(1000));
  service.on("error", () => socket.close(1011));
  socket.on("error", () => service.destroy());
  socket.on("close", () => service.destroy());
});
