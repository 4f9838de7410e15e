// Names the LLM calls of a Node.js service for nexent-observer (docs/hooks.md). Build announce.c first; copy both files into a service.
//
//     import { install, endpoint } from "./hooks.mjs";
//     install();
//     await endpoint("POST /agent/run", async () => { await fetch("https://...") });
//
// The endpoint travels with AsyncLocalStorage, so requests that run side by side on the one thread are told apart. It is announced right
// before the write of TLS that carries a request, from `https` and from `fetch`.
// HTTP/2 writes below JavaScript, and connections without TLS are not wrapped here: their calls stay without a name, they get no wrong one.

import { AsyncLocalStorage } from "node:async_hooks";
import { randomBytes } from "node:crypto";
import { subscribe } from "node:diagnostics_channel";
import { Agent, ClientRequest } from "node:http";
import { createRequire } from "node:module";
import { TLSSocket } from "node:tls";

const native = createRequire(import.meta.url)(process.env.NEXENT_OBSERVER_ADDON ?? "./announce.node");
const current = new AsyncLocalStorage();
// By the request of `https` or `fetch`: the span in which it was made. When it is written may be another's turn.
const made = new WeakMap();
// On a connection of `fetch`: the span of the request that it carries. One of `https` knows its request.
const SPAN = Symbol("nexent-observer.span");
const NO_SPAN = JSON.stringify({ v: 1, k: "write" });

/** Whether the observer listens to this process now. */
export const listening = native.listening;

/** Runs `work` as the endpoint `name`, until it returns or what it returns settles. */
export function endpoint(name, work) {
  if (!native.listening()) return work();
  const parent = current.getStore();
  const s = randomBytes(8).toString("hex");
  const t = parent?.t ?? randomBytes(16).toString("hex");
  // The whole message must fit into 1024 bytes, and be UTF-8 (half a pair of surrogates is not).
  const n = Array.from(Buffer.from(String(name)).toString()).slice(0, 128).join("");
  const span = { s, t, write: JSON.stringify({ v: 1, k: "write", s, t, n }) };
  native.announce(JSON.stringify({ v: 1, k: "begin", s, t, n, o: "endpoint", p: parent?.s }));
  const end = (error) => {
    const e = error === undefined ? undefined : String(error?.name ?? typeof error);
    native.announce(JSON.stringify({ v: 1, k: "end", s, e }));
  };
  try {
    const result = current.run(span, work);
    if (typeof result?.then !== "function") {
      end();
      return result;
    }
    return result.then(
      (value) => (end(), value),
      (error) => {
        end(error ?? "rejected");
        throw error;
      },
    );
  } catch (error) {
    end(error ?? "thrown");
    throw error;
  }
}

// Passes a write on once it will reach TLS at once. Before the handshake is over Node keeps what is written and encrypts it later, from
// native code: what was announced would stand before another connection's write.
function whenSecure(socket, failed, write) {
  if (!socket.connecting && socket._secureEstablished) return write();
  const closed = () => {
    socket.off("secure", secure);
    failed(Object.assign(new Error("closed before the connection was secure"), { code: "ERR_SOCKET_CLOSED_BEFORE_CONNECTION" }));
  };
  const secure = () => {
    socket.off("close", closed);
    // Not inside the event: it is emitted out of the middle of a read of TLS.
    process.nextTick(() => (socket.destroyed ? failed(new Error("closed")) : write()));
  };
  socket.once("secure", secure);
  socket.once("close", closed);
}

let installed = false;

/** Begins to announce writes. Once per process. */
export function install() {
  if (installed) return;
  installed = true;
  // Both are called while a request is made; without an agent, or with one of its own making, the second alone.
  for (const [owner, method] of [[Agent.prototype, "addRequest"], [ClientRequest.prototype, "onSocket"]]) {
    const original = owner[method];
    owner[method] = function (...args) {
      const request = this instanceof ClientRequest ? this : args[0];
      if (!made.has(request)) made.set(request, current.getStore());
      return original.apply(this, args);
    };
  }
  subscribe("undici:request:create", ({ request }) => made.set(request, current.getStore()));
  subscribe("undici:client:sendHeaders", ({ request, socket }) => {
    socket[SPAN] = made.get(request);
  });

  const { _write, _writev } = TLSSocket.prototype;
  const isClient = (socket) => !socket._tlsOptions?.isServer;
  // Every write, not only the first of a request: the observer may have come in between.
  const announce = (socket) => {
    const span = socket._httpMessage ? made.get(socket._httpMessage) : socket[SPAN];
    if (native.listening()) native.announce(span?.write ?? NO_SPAN);
  };
  TLSSocket.prototype._write = function (data, encoding, callback) {
    if (!isClient(this) || data.length === 0) return _write.call(this, data, encoding, callback);
    whenSecure(this, callback, () => {
      announce(this);
      _write.call(this, data, encoding, callback);
    });
  };
  TLSSocket.prototype._writev = function (chunks, callback) {
    if (!isClient(this) || chunks.every(({ chunk }) => chunk.length === 0)) return _writev.call(this, chunks, callback);
    whenSecure(this, callback, () => {
      announce(this);
      _writev.call(this, chunks, callback);
    });
  };
}
