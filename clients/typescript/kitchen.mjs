// A kitchen over gRPC: the protos are loaded at run time, errors come out decoded, watches survive a dropped stream.

import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const PROTO = fileURLToPath(new URL('../../proto', import.meta.url));
const RUN_SERVICE = 'crucible.kitchen.v1.RunService';
const UNARY_DEADLINE_MS = 60_000;
// A healthy watch says something every 15 s, so three missed turns mean a dead peer.
const SILENCE_MS = 45_000;
const BACKOFF_MS = { first: 250, longest: 5_000 };
const ENDED = new Set(['RUN_STATE_COMPLETED', 'RUN_STATE_FAILED', 'RUN_STATE_CANCELLED']);

// `json` also decodes the google.protobuf.Any inside a status, for the types of error_details.proto.
const definitions = loadSync(
  ['crucible/kitchen/v1/run.proto', 'google/rpc/error_details.proto', 'google/rpc/status.proto'],
  { includeDirs: [PROTO], longs: Number, enums: String, defaults: true, oneofs: true, json: true },
);

/** The error a call ended with, read from google.rpc.Status details or, without them, from the crucible-reason trailer. */
export class KitchenError extends Error {
  /** @param {grpc.ServiceError} cause */
  constructor(cause) {
    const packed = cause.metadata?.get('grpc-status-details-bin')[0];
    const details = packed ? definitions['google.rpc.Status'].deserialize(packed).details : [];
    const find = (type) => details.find((detail) => detail['@type'].endsWith(`/google.rpc.${type}`));
    super(cause.details, { cause });
    this.name = 'KitchenError';
    /** Name of the gRPC code, such as INVALID_ARGUMENT. */
    this.code = grpc.status[cause.code];
    /** Reason such as CONFIG_INVALID. Empty: the server gave none, so the error came from the transport. */
    this.reason = find('ErrorInfo')?.reason ?? cause.metadata?.get('crucible-reason')[0]?.toString() ?? '';
    /** @type {Record<string, string>} Facts about the error, by name. */
    this.metadata = find('ErrorInfo')?.metadata ?? {};
    /** @type {{field: string, description: string}[]} The request's fields that were refused. */
    this.violations = find('BadRequest')?.fieldViolations ?? [];
    const delay = find('RetryInfo')?.retryDelay;
    /** How long the server asks to wait before another try, in ms. Undefined: it does not say. */
    this.retryAfterMs = delay && delay.seconds * 1000 + delay.nanos / 1e6;
  }

  /** Whether the same call may succeed later. CANCELLED without a reason is a cut stream. */
  get transient() {
    if (this.code === 'RESOURCE_EXHAUSTED') return this.retryAfterMs !== undefined;
    return this.code === 'UNAVAILABLE' || (this.code === 'CANCELLED' && this.reason === '');
  }
}

/** A JavaScript value as google.protobuf.Value. */
function toValue(value) {
  if (value === null) return { nullValue: 'NULL_VALUE' };
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  if (typeof value === 'object') return { structValue: toStruct(value) };
  if (typeof value === 'boolean') return { boolValue: value };
  return typeof value === 'number' ? { numberValue: value } : { stringValue: value };
}

/** A plain object as google.protobuf.Struct. */
function toStruct(object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([key, value]) => [key, toValue(value)])) };
}

/** One channel to a kitchen at `address` (host:port or unix:/path), without TLS. */
export class Kitchen {
  /** @param {string} address */
  constructor(address) {
    const { RunService } = grpc.loadPackageDefinition(definitions).crucible.kitchen.v1;
    const retryPolicy = {
      maxAttempts: 4,
      initialBackoff: '0.2s',
      maxBackoff: '2s',
      backoffMultiplier: 2,
      retryableStatusCodes: ['UNAVAILABLE'],
    };
    // CreateRun carries a request id and GetRun reads, so a retry changes nothing; WatchRun resumes by itself.
    const name = ['CreateRun', 'GetRun'].map((method) => ({ service: RUN_SERVICE, method }));
    this.runs = new RunService(address, grpc.credentials.createInsecure(), {
      'grpc.service_config': JSON.stringify({ methodConfig: [{ name, retryPolicy }] }),
    });
  }

  close() {
    this.runs.close();
  }

  /** Creates and queues a run; resolves to the Run message. Rejects with KitchenError. */
  async createRun({ recipe, preset = '', config = {} }) {
    const request = { requestId: randomUUID(), recipe, preset, config: toStruct(config) };
    return (await this.#unary('createRun', request)).run;
  }

  /** Resolves to the Run message. Rejects with KitchenError. */
  async getRun(runId) {
    return (await this.#unary('getRun', { runId })).run;
  }

  #unary(method, request) {
    const deadline = Date.now() + UNARY_DEADLINE_MS;
    return new Promise((resolve, reject) => {
      const done = (error, response) => (error ? reject(new KitchenError(error)) : resolve(response));
      this.runs[method](request, { deadline }, done);
    });
  }

  /**
   * Yields each event of a run once, in order, until the run has ended. A stream that drops is opened again after the
   * last sequence seen; `patienceMs` without any response, or an error that is not transient, throws KitchenError.
   */
  async *watchRun(runId, { afterSequence = 0, patienceMs = 120_000, onDrop = (_error) => {} } = {}) {
    let last = afterSequence;
    let state = '';
    let tries = 0;
    let heard = Date.now();
    for (;;) {
      let drop = null;
      try {
        for await (const { events } of this.#stream(runId, last)) {
          heard = Date.now();
          for (const event of events) {
            tries = 0;
            if (event.sequence <= last) continue;
            if (event.sequence !== last + 1) throw new Error(`event ${event.sequence} of ${runId} follows ${last}`);
            last = event.sequence;
            state = event.stateChanged?.toState ?? state;
            yield event;
          }
        }
      } catch (error) {
        if (!(error instanceof KitchenError) || !error.transient) throw error;
        drop = error;
      }
      if (ENDED.has(state)) return;
      if (drop && Date.now() - heard > patienceMs) throw drop;
      onDrop(drop);
      await sleep(drop?.retryAfterMs ?? Math.min(BACKOFF_MS.first * 2 ** tries, BACKOFF_MS.longest));
      tries += 1;
    }
  }

  /** The responses of one WatchRun stream; cancels it when the peer falls silent or the reader leaves. */
  async *#stream(runId, afterSequence) {
    const call = this.runs.watchRun({ runId, afterSequence });
    const silence = setTimeout(() => call.cancel(), SILENCE_MS);
    try {
      for await (const response of call) {
        silence.refresh();
        yield response;
      }
    } catch (error) {
      throw error.code === undefined ? error : new KitchenError(error);
    } finally {
      clearTimeout(silence);
      call.cancel();
    }
  }
}
