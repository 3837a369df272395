// A server on the package ws, on a free port of loopback. It prints its port, then what happens, one JSON a line.
// It sends each message back as what it was; "end" and "die" end the connection, and "refuse" in a path does before.

import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const say = (what) => console.log(JSON.stringify(what));
const http = createServer();
const server = new WebSocketServer({ noServer: true, handleProtocols: (offered) => [...offered][0] });
http.on("upgrade", (request, socket, head) => {
  const { url, headers } = request;
  say({ path: url, protocol: headers["sec-websocket-protocol"] ?? null, origin: headers.origin ?? null });
  if (url.includes("refuse")) return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  server.handleUpgrade(request, socket, head, (connection) => {
    connection.on("message", (data, isBinary) => {
      say({ [isBinary ? "binary" : "text"]: data.length > 100 ? data.length : String(data) });
      if (String(data) === "end") return connection.close(1000);
      if (String(data) === "die") return connection.terminate();
      if (String(data) === "ping") return connection.ping("?");
      connection.send(data, { binary: isBinary });
    });
    connection.on("pong", (data) => say({ pong: String(data) }));
    connection.on("close", (code) => say({ closed: code }));
    connection.on("error", (error) => say({ error: error.message }));
  });
});
http.listen(0, "127.0.0.1", () => say({ port: http.address().port }));
