// Names the LLM calls of a Node.js service for nexent-observer (docs/hooks.md). Build announce.c first; copy both files into a service.
//
//     import { install, endpoint } from "./hooks.mjs";
//     install();
//     await endpoint("POST /agent/run", async () => { await fetch("https://...") });
//
// The endpoint travels with AsyncLocalStorage, so requests that run side by side on the one thread are told apart. It is announced right
// before the write of TLS that carries a request, from `https` (with any agent that keeps connections as Node's does) and from `fetch`.
// HTTP/2 writes below JavaScript, and connections without TLS are not wrapped here: their calls stay without a name, they get no wrong one.

import { AsyncLocalStorage } from "node:async_hooks";
import { randomBytes } from "node:crypto";
import { subscribe } from "node:diagnostics_channel";
import { createRequire } from "node:module";
import { TLSSocket } from "node:tls";

const native = createRequire(import.meta.url)(process.env.NEXENT_OBSERVER_ADDON ?? "./announce.node");
const current = new AsyncLocalStorage();
// On a connection: the span of the request that it carries; and whether `fetch` owns it, which tells that itself.
const SPAN = Symbol("nexent-observer.span");
const OWNED = Symbol("nexent-observer.owned");
// On a request of `fetch`: the span in which it was made.
const requests = new WeakMap();
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
  const { write, _write, _writev } = TLSSocket.prototype;
  const isClient = (socket) => !socket._tlsOptions?.isServer;

  // Who writes: in the caller's context. A connection of `https` serves one request at a time.
  TLSSocket.prototype.write = function (...args) {
    if (!this[OWNED]) this[SPAN] = current.getStore();
    return write.apply(this, args);
  };
  // When it is written: may be later, in any context. Always announced, not only when it changes: the observer may have come in between.
  const announce = (socket) => {
    if (native.listening()) native.announce(socket[SPAN]?.write ?? NO_SPAN);
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

  // `fetch` may write a request out of the end of the one before it, so the context of the write says nothing.
  subscribe("undici:request:create", ({ request }) => requests.set(request, current.getStore()));
  subscribe("undici:client:sendHeaders", ({ request, socket }) => {
    socket[OWNED] = true;
    socket[SPAN] = requests.get(request);
  });
}
