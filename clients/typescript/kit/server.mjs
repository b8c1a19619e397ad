// gRPC servers around plain methods: requests are checked on their way in, errors become statuses on their way out.

import grpc from '@grpc/grpc-js';
import { decodeChecked } from './constraints.mjs';
import { AdapterError, known, toServiceError } from './errors.mjs';
import { encode, toPlain } from './protos.mjs';

export const MAX_MESSAGE_BYTES = 32 * 1024 * 1024;
const PATIENCE_MS = 1_000;
const same = (bytes) => bytes;

/**
 * What a method may know of its call.
 * @typedef {object} Call
 * @property {AbortSignal} signal Aborted when the caller has gone or its deadline has passed.
 * @property {Record<string, string>} metadata The caller's metadata.
 */

/** A server with our limits. */
export function newServer() {
  return new grpc.Server({
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
  });
}

/**
 * Adds a service. Its implementation has a method for each RPC, under the RPC's name: `async (request, call)`, with an
 * async iterable in place of the request where the caller streams; an async generator where the response is a stream.
 * RPCs that it lacks are UNIMPLEMENTED METHOD_MISSING.
 *
 * @param {grpc.Server} server
 * @param {import('protobufjs').Service} service
 * @param {object} implementation
 */
export function addService(server, service, implementation) {
  const definition = {};
  const handlers = {};
  for (const rpc of service.methodsArray) {
    const path = `/${service.fullName.slice(1)}/${rpc.name}`;
    const serialisers = Object.fromEntries(
      ['requestSerialize', 'requestDeserialize', 'responseSerialize', 'responseDeserialize'].map((name) => [name, same]),
    );
    const streams = { requestStream: Boolean(rpc.requestStream), responseStream: Boolean(rpc.responseStream) };
    definition[rpc.name] = { path, originalName: rpc.name, ...streams, ...serialisers };
    handlers[rpc.name] = handler(rpc, path, implementation);
  }
  server.addService(definition, handlers);
}

function handler(rpc, path, implementation) {
  const missing = async () => {
    const text = `${path}: nobody serves it here`;
    throw new AdapterError('UNIMPLEMENTED', 'METHOD_MISSING', text, { metadata: { method: path } });
  };
  const method = implementation[rpc.name]?.bind(implementation);
  const parse = (bytes) => toPlain(rpc.resolvedRequestType, decodeChecked(rpc.resolvedRequestType, bytes, path));
  const serialise = (response) => Buffer.from(encode(rpc.resolvedResponseType, response ?? {}));
  const served = async (call) => method(rpc.requestStream ? requests(call, parse) : parse(call.request), about(call));
  const answer = method ? served : missing;

  if (!rpc.responseStream) {
    return (call, callback) => {
      answer(call)
        .then((response) => callback(null, serialise(response)))
        .catch(async (error) => {
          if (rpc.requestStream) await readOn(call);
          callback(toServiceError(known(error, path)));
        });
    };
  }
  return async (call) => {
    try {
      for await (const response of await answer(call)) {
        if (call.cancelled) return;
        if (!call.write(serialise(response))) await drained(call);
      }
      call.end();
    } catch (error) {
      if (!call.cancelled) call.emit('error', toServiceError(known(error, path)));
    }
  };
}

/** @returns {Call} */
function about(call) {
  const controller = new AbortController();
  call.on('cancelled', () => controller.abort(gone()));
  return { signal: controller.signal, metadata: call.metadata.getMap() };
}

function gone() {
  return new AdapterError('CANCELLED', 'CALLER_GONE', 'the caller ended the call');
}

async function* requests(call, parse) {
  call.on('cancelled', () => call.destroy(gone()));
  // A method that stops early answers with an error: the call has to live on to send it.
  for await (const bytes of call.iterator({ destroyOnReturn: false })) yield parse(bytes);
  if (call.cancelled) throw gone();
}

/**
 * Reads what still comes of refused requests: callers lose the status of a call that ends while they write. One that
 * holds its stream open is answered all the same.
 */
async function readOn(call) {
  let late;
  const patience = new Promise((resolve) => {
    late = setTimeout(resolve, PATIENCE_MS);
  });
  const read = (async () => {
    for await (const _ of call.iterator({ destroyOnReturn: false }));
  })().catch(() => {}); // the caller has gone
  await Promise.race([read, patience]);
  clearTimeout(late);
}

/** Resolves when the call takes more, or has ended. */
function drained(call) {
  return new Promise((resolve) => {
    const done = () => {
      call.off('drain', done);
      call.off('cancelled', done);
      resolve();
    };
    call.on('drain', done);
    call.on('cancelled', done);
  });
}

/** Binds and returns the address to connect to, with the port that port 0 became. */
export function bind(server, address) {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
      if (error) {
        const text = `cannot listen on ${address}: ${error.message}; choose another with --listen`;
        reject(new AdapterError('UNAVAILABLE', 'ADDRESS_IN_USE', text, { metadata: { address } }));
      } else {
        resolve(address.startsWith('unix:') ? address : `${address.slice(0, address.lastIndexOf(':'))}:${port}`);
      }
    });
  });
}

/** Refuses new calls and ends running ones after some milliseconds. */
export async function stop(server, graceMs) {
  let late;
  const patience = new Promise((resolve) => {
    late = setTimeout(resolve, graceMs);
  });
  await Promise.race([new Promise((resolve) => server.tryShutdown(resolve)), patience]);
  clearTimeout(late);
  server.forceShutdown();
}
