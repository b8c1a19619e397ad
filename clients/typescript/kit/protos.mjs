// The protos, read at run time, and messages as plain objects under the names that the protos give their fields.

import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
// It teaches protobufjs the protos that come with every protoc, descriptor.proto among them.
import '@grpc/proto-loader';
import protobuf from 'protobufjs';

// In the repository, or beside the kit in a folder that `kitchen adapter new` has made.
const PROTO = ['../proto', '../../../proto']
  .map((path) => fileURLToPath(new URL(path, import.meta.url)))
  .find((path) => existsSync(`${path}/crucible`));

const root = new protobuf.Root();
root.resolvePath = (_origin, target) => `${PROTO}/${target}`;
load('google/rpc/status.proto', 'google/rpc/error_details.proto');

/** Reads proto files, named as imports name them. */
export function load(...files) {
  root.loadSync(files, { keepCase: true });
  root.resolveAll();
}

/** The descriptor of a service, such as crucible.port.blob.v1.BlobStoreService. */
export function service(name) {
  return root.lookupService(name);
}

/** A message's bytes. Enums may be given by name or number, bytes as Uint8Array, 64-bit integers as number or bigint. */
export function encode(type, value) {
  const descriptor = typeof type === 'string' ? root.lookupType(type) : type;
  return descriptor.encode(descriptor.fromObject(strings(value))).finish();
}

/**
 * The message as a plain object: every field is there, but for absent messages, `optional` ones and members of oneofs;
 * a oneof's own name tells which is set. Enums are names (an unknown one its number), bytes are Buffers, 64-bit
 * integers are numbers, beyond 2^53 bigints.
 */
export function toPlain(type, message) {
  return integers(type.toObject(message, { enums: String, defaults: true, oneofs: true }));
}

/** A google.protobuf.Struct, as `toPlain` gives it, as the JSON object it stands for. Absent: {}. */
export function fromStruct(struct) {
  return Object.fromEntries(Object.entries(struct?.fields ?? {}).map(([key, value]) => [key, fromValue(value)]));
}

/** A JSON object as a google.protobuf.Struct. */
export function toStruct(object) {
  return { fields: Object.fromEntries(Object.entries(object).map(([key, value]) => [key, toValue(value)])) };
}

// protobufjs brings google.protobuf's own messages along, with their names in its own style.
function fromValue(value) {
  switch (value.kind) {
    case 'numberValue':
    case 'stringValue':
    case 'boolValue':
      return value[value.kind];
    case 'structValue':
      return fromStruct(value.structValue);
    case 'listValue':
      return value.listValue.values.map(fromValue);
    default:
      return null;
  }
}

function toValue(value) {
  if (value === null) return { nullValue: 'NULL_VALUE' };
  if (Array.isArray(value)) return { listValue: { values: value.map(toValue) } };
  if (typeof value === 'object') return { structValue: toStruct(value) };
  if (typeof value === 'boolean') return { boolValue: value };
  return typeof value === 'number' ? { numberValue: value } : { stringValue: value };
}

/** A copy in which protobufjs's 64-bit integers are numbers or bigints. */
function integers(value) {
  if (Array.isArray(value)) return value.map(integers);
  if (value === null || typeof value !== 'object' || value instanceof Uint8Array) return value;
  if (protobuf.util.Long.isLong(value)) {
    const exact = BigInt(value.toString());
    return Number.isSafeInteger(Number(exact)) ? Number(exact) : exact;
  }
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, integers(each)]));
}

/** A copy in which bigints are strings, which protobufjs reads without loss. */
function strings(value) {
  if (typeof value === 'bigint') return value.toString();
  if (Array.isArray(value)) return value.map(strings);
  if (value === null || typeof value !== 'object' || value instanceof Uint8Array) return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, strings(each)]));
}
