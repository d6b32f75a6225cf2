// A Node server that can be replaced while it serves:
//
//     panzer -w 4 -l 127.0.0.1:8000 -- node node_app.js
//
'use strict';

const http = require('node:http');
const net = require('node:net');

const GRACE = 5000; // milliseconds that a connection may be silent once this worker is to stop

const { PANZER_WORKER_ID: worker = '-', PANZER_GENERATION: generation = '-' } = process.env;
let stopping = false;

const server = http.createServer((request, response) => {
  const text = `worker ${worker} of generation ${generation}, pid ${process.pid}\n`;
  const headers = { 'Content-Type': 'text/plain', 'Content-Length': text.length };
  // The client then opens a new connection, which another worker accepts.
  if (stopping) headers.Connection = 'close';
  response.writeHead(200, headers).end(text);
});

process.on('SIGTERM', () => {
  stopping = true;
  // This stops accepting only. The server's own close() would also close idle connections, on which the next request may
  // already be under way.
  net.Server.prototype.close.call(server);
  setTimeout(() => server.closeIdleConnections(), GRACE).unref();
});

// Panzer hands its sockets over from descriptor 3 on.
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : { port: Number(process.env.PORT ?? 8000) });
