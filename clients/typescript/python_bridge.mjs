// Functions of Python libraries from Node, over a kitchen or any adapter of the port python_bridge.
//
//   echo '{"call": "sympy.expand", "args": ["(x + 1)^2"]}' | node python_bridge.mjs 127.0.0.1:50051
//
// Each line of stdin is a call, each line of stdout its result, {"result": ...} or {"error": {...}}. With "as": "name" the
// result stays where it is, and later lines name it {"$ref": "name"} in their arguments, or {"method": ..., "of": "name"}.

import { randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { KitchenError } from './kitchen.mjs';

const PROTO = fileURLToPath(new URL('../../proto', import.meta.url));
const CALL_MS = 60_000;
// 64-bit integers come as text: a number would lose digits.
const definitions = loadSync('crucible/port/python_bridge/v1/python_bridge.proto', {
  includeDirs: [PROTO],
  longs: String,
  enums: String,
  oneofs: true,
});

/** An object that stays in its session. */
export class Ref {
  constructor({ refId, className }) {
    this.refId = refId;
    this.className = className;
  }
}

/** A JavaScript value as a Value: whole numbers and bigints are ints, other numbers floats. */
export function toValue(value) {
  if (value === null || value === undefined) return { none: 'NULL_VALUE' };
  if (value instanceof Ref) return { ref: value };
  if (typeof value === 'boolean') return { boolean: value };
  if (typeof value === 'string') return { text: value };
  if (typeof value === 'bigint') {
    return BigInt.asIntN(64, value) === value ? { integer: value.toString() } : { bigInteger: value.toString() };
  }
  if (typeof value === 'number') return Number.isSafeInteger(value) ? { integer: value } : { real: value };
  if (value instanceof Uint8Array) return { data: value };
  if (Array.isArray(value)) return { list: { values: value.map(toValue) } };
  return { dict: { values: Object.fromEntries(Object.entries(value).map(([key, each]) => [key, toValue(each)])) } };
}

/** A Value as a JavaScript value: ints that a number can't hold are bigints, tensors stay as they came. */
export function fromValue(value) {
  switch (value.kind) {
    case 'none':
      return null;
    case 'integer':
    case 'bigInteger': {
      const number = Number(value[value.kind]);
      return Number.isSafeInteger(number) ? number : BigInt(value[value.kind]);
    }
    case 'list':
      return (value.list.values ?? []).map(fromValue);
    case 'dict':
      return Object.fromEntries(Object.entries(value.dict.values ?? {}).map(([key, each]) => [key, fromValue(each)]));
    case 'ref':
      return new Ref(value.ref);
    default:
      return value[value.kind];
  }
}

/** One session. Every method rejects with KitchenError. */
export class PythonSession {
  #client;

  constructor(client, sessionId) {
    this.#client = client;
    this.sessionId = sessionId;
  }

  /** Opens a session at `address`; `limits` are fields of OpenSessionRequest, such as {libraries: ['sympy']}. */
  static async open(address, limits = {}) {
    const { PythonBridgeService } = grpc.loadPackageDefinition(definitions).crucible.port.python_bridge.v1;
    const session = new PythonSession(new PythonBridgeService(address, grpc.credentials.createInsecure()), undefined);
    const opened = await session.#unary('openSession', { requestId: randomUUID(), ...limits });
    session.sessionId = opened.sessionId;
    return session;
  }

  /** Calls a function by its full name, such as sympy.expand; resolves to its result, a Ref with `reference`. */
  async call(name, args = [], { kwargs = {}, reference = false } = {}) {
    return fromValue((await this.#unary('callFunction', this.#request(name, args, kwargs, reference))).result);
  }

  /** Calls a method of a referenced object. */
  async method(ref, method, args = [], { kwargs = {}, reference = false } = {}) {
    const { library, function: _, ...request } = this.#request('.', args, kwargs, reference);
    return fromValue((await this.#unary('callMethod', { ...request, ref, method })).result);
  }

  /** Reads an attribute of a referenced object. */
  async attribute(ref, attribute) {
    return fromValue((await this.#unary('getAttribute', { sessionId: this.sessionId, ref, attribute })).value);
  }

  /** Yields what a function yields. */
  async *stream(name, args = [], { kwargs = {}, reference = false } = {}) {
    const call = this.#client.streamFunction(this.#request(name, args, kwargs, reference));
    try {
      for await (const { item } of call) yield fromValue(item);
    } catch (error) {
      throw error.code === undefined ? error : new KitchenError(error);
    } finally {
      call.cancel();
    }
  }

  /** Frees a referenced object. */
  release(ref) {
    return this.#unary('releaseRef', { sessionId: this.sessionId, ref });
  }

  /** Ends the session with its objects, and the connection. */
  async close() {
    await this.#unary('closeSession', { sessionId: this.sessionId });
    this.#client.close();
  }

  #request(name, args, kwargs, reference) {
    const dot = name.lastIndexOf('.');
    return {
      sessionId: this.sessionId,
      library: name.slice(0, dot),
      function: name.slice(dot + 1),
      args: args.map(toValue),
      kwargs: toValue(kwargs).dict.values,
      resultMode: reference ? 'RESULT_MODE_REFERENCE' : 'RESULT_MODE_VALUE',
    };
  }

  #unary(method, request) {
    return new Promise((resolve, reject) => {
      const done = (error, response) => (error ? reject(new KitchenError(error)) : resolve(response));
      this.#client[method](request, { deadline: Date.now() + CALL_MS }, done);
    });
  }
}

/** JSON with bigints as text. */
function toJson(value) {
  return JSON.stringify(value, (_, each) => (typeof each === 'bigint' ? each.toString() : each));
}

async function readCalls(address) {
  const session = await PythonSession.open(address);
  const refs = new Map();
  const named = (value) => {
    if (Array.isArray(value)) return value.map(named);
    if (typeof value !== 'object' || value === null) return value;
    if ('$ref' in value) return refs.get(value.$ref);
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, named(each)]));
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const { call, method, attribute, stream, release, of, as, args = [], kwargs = {} } = JSON.parse(line);
    const options = { kwargs: named(kwargs), reference: as !== undefined };
    try {
      let result = null;
      if (call) result = await session.call(call, named(args), options);
      else if (method) result = await session.method(refs.get(of), method, named(args), options);
      else if (attribute) result = await session.attribute(refs.get(of), attribute);
      else if (release) await session.release(refs.get(release));
      else if (stream) {
        result = [];
        for await (const item of session.stream(stream, named(args), options)) result.push(item);
      }
      if (as !== undefined) refs.set(as, result);
      console.log(toJson({ result: result instanceof Ref ? result.className : result }));
    } catch (error) {
      if (!(error instanceof KitchenError)) throw error;
      const { code, reason, message, metadata } = error;
      console.log(toJson({ error: { code, reason, message, metadata } }));
    }
  }
  await session.close();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [address] = process.argv.slice(2);
  if (!address) {
    console.error('usage: node python_bridge.mjs ADDRESS < CALLS');
    process.exit(2);
  }
  await readCalls(address);
}
