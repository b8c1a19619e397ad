// What goes wrong, as every side of the contract tells it: google.rpc.Status details, and the reason once more in clear.

import { randomUUID } from 'node:crypto';
import grpc from '@grpc/grpc-js';
import { encode } from './protos.mjs';

const DOMAIN = 'crucible.kitchen';
const MAX_MESSAGE_CHARACTERS = 2000;
const MAX_FIELDS = 5;
// Details travel as headers, and a receiver may drop more than 8 KiB of them, the status with it.
const MAX_WIRE_BYTES = 7 * 1024;

/** An outcome that is not OK. Throw it from a method; the caller gets code, reason, metadata, fields and retry delay. */
export class AdapterError extends Error {
  /**
   * @param {keyof typeof grpc.status} code Such as NOT_FOUND.
   * @param {string} reason For programs: UPPER_SNAKE_CASE, stable.
   * @param {string} message For people: names the field, the value and the fix.
   * @param {{metadata?: Record<string, unknown>, fields?: {field: string, description: string}[], retryAfterMs?: number,
   *     cause?: unknown}} [more] The facts of the message by name; the request's bad fields; after how long the same
   *     call may succeed.
   */
  constructor(code, reason, message, { metadata = {}, fields = [], retryAfterMs, cause } = {}) {
    super(message, { cause });
    this.name = 'AdapterError';
    this.code = code;
    this.reason = reason;
    this.metadata = Object.fromEntries(Object.entries(metadata).map(([key, value]) => [key, String(value)]));
    this.fields = fields;
    this.retryAfterMs = retryAfterMs;
  }
}

/** The INVALID_ARGUMENT about one field of the request; its message is `field: description`. */
export function fieldError(field, description, reason = 'FIELD_INVALID') {
  const fields = [{ field, description }];
  return new AdapterError('INVALID_ARGUMENT', reason, `${field}: ${description}`, { metadata: { field }, fields });
}

/** The UNIMPLEMENTED of an optional behaviour that the adapter does not declare. */
export function capabilityMissing(port, capability, fix) {
  const message = `the ${port} adapter does not declare the capability ${capability}: ${fix}`;
  return new AdapterError('UNIMPLEMENTED', 'CAPABILITY_MISSING', message, { metadata: { port, capability } });
}

/** What a caller is told of any error: an unknown one tells nothing but where to look, in this process's stderr. */
export function known(error, method) {
  if (error instanceof AdapterError) return error;
  const errorId = randomUUID().replaceAll('-', '').slice(0, 12);
  console.error(`${method} failed, error_id ${errorId}`, error);
  const message = `internal error ${errorId}: the adapter's log has the details`;
  return new AdapterError('INTERNAL', 'INTERNAL_BUG', message, { metadata: { error_id: errorId, method } });
}

/** The error as grpc-js sends it. */
export function toServiceError(error) {
  let divisor = 1;
  let status = toStatus(error, divisor);
  while (wireBytes(status) > MAX_WIRE_BYTES && divisor < MAX_MESSAGE_CHARACTERS) {
    divisor *= 2;
    status = toStatus(error, divisor);
  }
  const metadata = new grpc.Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from(encode('google.rpc.Status', status)));
  metadata.set('crucible-reason', error.reason);
  return { code: grpc.status[error.code], details: status.message, metadata };
}

/** The error as data: a crucible.type.v1.Failure for a result. */
export function toFailure(error, source) {
  const retryable = error.code === 'UNAVAILABLE' || error.retryAfterMs !== undefined;
  const failure = { status: toStatus(error, 1), reason: error.reason, source, retryable };
  return error.retryAfterMs === undefined ? failure : { ...failure, retry_delay: duration(error.retryAfterMs) };
}

function wireBytes(status) {
  return encodeURIComponent(status.message).length + (encode('google.rpc.Status', status).length * 4) / 3;
}

function toStatus(error, divisor) {
  const cut = (text, limit) => {
    const characters = [...text];
    const most = Math.max(1, Math.floor(limit / divisor));
    return characters.length <= most ? text : `${characters.slice(0, most - 1).join('')}…`;
  };
  const metadata = Object.entries(error.metadata).slice(0, 16).map(([key, value]) => [key, cut(value, 256)]);
  const info = { reason: error.reason, domain: DOMAIN, metadata: Object.fromEntries(metadata) };
  const details = [packed('google.rpc.ErrorInfo', info)];
  if (error.fields.length) {
    const violations = error.fields.slice(0, MAX_FIELDS).map(({ field, description }) => {
      return { field: cut(field, 256), description: cut(description, 512) };
    });
    details.push(packed('google.rpc.BadRequest', { field_violations: violations }));
  }
  if (error.retryAfterMs !== undefined) {
    details.push(packed('google.rpc.RetryInfo', { retry_delay: duration(error.retryAfterMs) }));
  }
  return { code: grpc.status[error.code], message: cut(error.message, MAX_MESSAGE_CHARACTERS), details };
}

function packed(type, value) {
  return { type_url: `type.googleapis.com/${type}`, value: encode(type, value) };
}

function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  return { seconds, nanos: Math.round((milliseconds - seconds * 1000) * 1e6) };
}
