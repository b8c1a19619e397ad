// Checks a request against the (crucible.type.v1.field) options of its proto, and for fields that the proto lacks.

import protobuf from 'protobufjs';
import { AdapterError } from './errors.mjs';

const DEFAULT_MAX_CHARACTERS = 4096;
const MAX_VIOLATIONS = 16;
const MAX_NESTED_MESSAGES = 512 * 1024;
// Inside the package crucible.type.v1 the option stands under its short name.
const OPTION_NAMES = ['(crucible.type.v1.field)', '(field)'];
const FORMATS = {
  FORMAT_IDENTIFIER: [
    /^[a-z0-9][a-z0-9._-]{0,62}$/,
    "must be a lower-case identifier of at most 63 letters, digits, '-', '_' or '.', such as run-7",
  ],
  FORMAT_UUID: [
    /^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/,
    'must be a UUID such as 2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11',
  ],
  FORMAT_SHA256: [/^[0-9a-f]{64}$/, 'must be 64 lower-case hex digits'],
  FORMAT_URI: [/^[a-z][a-z0-9+.-]*:\S+$/, 'must be a URI with a scheme, such as blob://bucket/key'],
};
// JSON as messages: nothing is asked of it but that it is JSON.
const JSON_TYPES = ['.google.protobuf.Struct', '.google.protobuf.Value', '.google.protobuf.ListValue'];
const INTEGERS_AND_FLOATS = /^(u?int|s?fixed|sint)(32|64)$|^(float|double)$/;

/**
 * The message in some bytes, checked. Throws INVALID_ARGUMENT: MESSAGE_MALFORMED, FIELD_INVALID with the paths of the
 * fields that break a constraint, MESSAGE_TOO_COMPLEX, or FIELD_UNKNOWN.
 */
export function decodeChecked(type, bytes, method) {
  let message;
  try {
    message = type.decode(bytes);
  } catch (cause) {
    const text = `the request of ${method} is not a valid protobuf message`;
    throw new AdapterError('INVALID_ARGUMENT', 'MESSAGE_MALFORMED', text, { cause });
  }
  const found = { violations: [], nested: 0 };
  checksOf(type)(message, '', found);
  if (found.violations.length) {
    const shown = found.violations.slice(0, 5).map(({ field, description }) => `${field}: ${description}`);
    const metadata = { field: found.violations[0].field };
    throw new AdapterError('INVALID_ARGUMENT', 'FIELD_INVALID', shown.join('; '), {
      metadata,
      fields: found.violations,
    });
  }
  const unknown = findUnknown(type, protobuf.Reader.create(bytes), bytes.length, '');
  if (unknown) {
    const name = type.fullName.slice(1);
    const text =
      `${unknown}: unknown field of ${name}; this adapter's contract does not have it: ` +
      'leave it out or use an adapter that knows it';
    const fields = [{ field: unknown, description: 'unknown field' }];
    throw new AdapterError('INVALID_ARGUMENT', 'FIELD_UNKNOWN', text, {
      metadata: { field: unknown, message: name },
      fields,
    });
  }
  return message;
}

const compiled = new Map();

/** A message's options, its children's too, as one function. Recursive messages compile when they are met. */
function checksOf(type) {
  if (!compiled.has(type)) compiled.set(type, compile(type));
  return compiled.get(type);
}

function compile(type) {
  for (const field of type.fieldsArray) field.resolve();
  const isJson = JSON_TYPES.includes(type.fullName);
  const checks = isJson ? [checkJsonNumber] : type.fieldsArray.flatMap((field) => fieldChecks(field));
  const isOurs = (name) => name.startsWith('.crucible.') || JSON_TYPES.includes(name);
  const ours = (field) => isMessage(field) && isOurs(field.resolvedType.fullName);
  const nested = type.fieldsArray.filter(ours);
  return (message, path, found) => {
    for (const check of checks) check(message, path, found);
    for (const field of nested) {
      if (!isPresent(message, field)) continue;
      const limit = ruleOf(field).max_items;
      for (const [child, childPath] of childrenOf(message, field, path, limit)) {
        if (found.violations.length >= MAX_VIOLATIONS) return;
        found.nested += 1;
        if (found.nested > MAX_NESTED_MESSAGES) throw tooComplex(childPath);
        checksOf(field.resolvedType)(child, `${childPath}.`, found);
      }
    }
  };
}

/** A google.protobuf.Value holds any double, but JSON has neither NaN nor infinities. */
function checkJsonNumber(message, path, found) {
  if (!Object.hasOwn(message, 'numberValue') || Number.isFinite(message.numberValue)) return;
  const description = `is ${message.numberValue}; JSON has no such number: send a text`;
  found.violations.push({ field: `${path}number_value`, description });
}

function tooComplex(path) {
  const text =
    `${path}: the request holds more than ${MAX_NESTED_MESSAGES} messages inside it: ` + 'send it in several calls';
  const metadata = { field: path, max_messages: MAX_NESTED_MESSAGES };
  return new AdapterError('INVALID_ARGUMENT', 'MESSAGE_TOO_COMPLEX', text, { metadata });
}

// protobufjs brings google.protobuf's own messages along, with their names in its own style.
const protoName = (field) => field.name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const isMessage = (field) => field.resolvedType instanceof protobuf.Type;
const hasPresence = (field) => !field.repeated && !field.map && (isMessage(field) || field.partOf !== null);
const isPresent = (message, field) => Object.hasOwn(message, field.name) && message[field.name] !== null;
const isZero = (value) => (protobuf.util.Long.isLong(value) ? value.isZero() : !value || value.length === 0);

/** The entries of a repeated or map field with their paths; [] where there are more than `limit`: that has been told. */
function entriesOf(message, field, path, limit = Infinity) {
  const value = message[field.name];
  if (field.map) {
    const keys = Object.keys(value).sort();
    return keys.length > limit ? [] : keys.map((key) => [value[key], `${path}${protoName(field)}[${quoted(key)}]`]);
  }
  return value.length > limit ? [] : value.map((each, index) => [each, `${path}${protoName(field)}[${index}]`]);
}

function childrenOf(message, field, path, limit) {
  if (field.repeated || field.map) return entriesOf(message, field, path, limit);
  return [[message[field.name], `${path}${protoName(field)}`]];
}

function ruleOf(field) {
  for (const option of field.parsedOptions ?? []) {
    const name = OPTION_NAMES.find((each) => each in option);
    if (name) return option[name];
  }
  return {};
}

function fieldChecks(field) {
  const rule = ruleOf(field);
  const checks = [];
  const fail = (found, path, description) => found.violations.push({ field: path, description });
  if (rule.required) {
    checks.push((message, path, found) => {
      const there = isPresent(message, field);
      const value = message[field.name];
      const empty = field.map ? Object.keys(value ?? {}).length === 0 : isZero(value);
      if (hasPresence(field) ? !there : empty) {
        fail(found, `${path}${field.name}`, 'required, but absent or empty');
      }
    });
  }
  if (rule.max_items !== undefined) {
    checks.push((message, path, found) => {
      const count = field.map ? Object.keys(message[field.name]).length : message[field.name].length;
      if (count > rule.max_items) {
        fail(found, `${path}${field.name}`, `has ${count} entries, at most ${rule.max_items} are allowed`);
      }
    });
  }
  const longest = rule.max_len ?? DEFAULT_MAX_CHARACTERS;
  if (field.map && field.keyType === 'string') {
    checks.push((message, path, found) => {
      for (const key of Object.keys(message[field.name])) {
        if (found.violations.length >= MAX_VIOLATIONS) return;
        const problem = tooLong(key, longest);
        if (problem) fail(found, `${path}${field.name}[${quoted(key.slice(0, 64))}]`, `its key ${problem}`);
      }
    });
  }
  const problemOf = valueCheck(field, rule, longest);
  if (problemOf) {
    checks.push((message, path, found) => {
      if (field.repeated || field.map) {
        for (const [value, valuePath] of entriesOf(message, field, path, rule.max_items)) {
          const problem = problemOf(value);
          if (problem) fail(found, valuePath, problem);
          if (found.violations.length >= MAX_VIOLATIONS) return;
        }
      } else if (!hasPresence(field) || isPresent(message, field)) {
        const problem = problemOf(message[field.name]);
        if (problem) fail(found, `${path}${field.name}`, problem);
      }
    });
  }
  return checks;
}

/** What is wrong with one value of a field, or nothing; undefined where nothing can be. */
function valueCheck(field, rule, longest) {
  if (field.type === 'string') {
    const pattern = rule.pattern && new RegExp(`^(?:${rule.pattern})$`);
    return (value) => stringProblem(value, rule, longest, pattern);
  }
  if (field.type === 'bytes' && rule.max_len !== undefined) {
    return (value) =>
      value.length > rule.max_len ? `has ${value.length} bytes, at most ${rule.max_len} are allowed` : undefined;
  }
  if (field.resolvedType instanceof protobuf.Enum) {
    const name = field.resolvedType.fullName.slice(1);
    return (value) => (value in field.resolvedType.valuesById ? undefined : `${value} is not a value of ${name}`);
  }
  if (INTEGERS_AND_FLOATS.test(field.type) && (rule.min !== undefined || rule.max !== undefined)) {
    return (value) => numberProblem(value, rule);
  }
  return undefined;
}

function tooLong(text, limit) {
  // Characters are code points; there are at most as many as UTF-16 units.
  if (text.length <= limit) return undefined;
  const characters = [...text].length;
  return characters > limit ? `has ${characters} characters, at most ${limit} are allowed` : undefined;
}

function stringProblem(value, rule, longest, pattern) {
  const problem = tooLong(value, longest);
  if (problem || !value) return problem;
  if (pattern && !pattern.test(value)) return `${quoted(value)} must match ${rule.pattern}`;
  const [syntax, description] = FORMATS[rule.format] ?? [];
  return syntax && !syntax.test(value) ? `${quoted(value)} ${description}` : undefined;
}

function numberProblem(value, { min = -Infinity, max = Infinity }) {
  const number = Number(value);
  if (Number.isNaN(number)) return 'is NaN; a number is required';
  if (number < min) return `is ${value}, must be at least ${min}`;
  if (number > max) return `is ${value}, must be at most ${max}`;
  return Number.isFinite(number) ? undefined : 'is infinite; a finite number is required';
}

/** A text in quotes, as messages show it. */
export function quoted(text) {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}

/** Path of the first field, at any depth, that a type lacks; undefined: there is none. */
function findUnknown(type, reader, end, path) {
  const seen = {};
  while (reader.pos < end) {
    const tag = reader.uint32();
    const field = type.fieldsById[tag >>> 3];
    if (!field) return `${path}#${tag >>> 3}`;
    const child = field.resolvedType;
    if ((tag & 7) !== 2 || !(child instanceof protobuf.Type) || child.fullName.startsWith('.google.protobuf.')) {
      reader.skipType(tag & 7);
      continue;
    }
    const stop = reader.uint32() + reader.pos;
    if (field.map) {
      const found = unknownInEntry(field, reader, stop, `${path}${field.name}`);
      if (found) return found;
      continue;
    }
    const index = seen[field.name] ?? 0;
    seen[field.name] = index + 1;
    const found = findUnknown(child, reader, stop, `${path}${field.name}${field.repeated ? `[${index}]` : ''}.`);
    if (found) return found;
  }
  return undefined;
}

/** The same of one entry of a map, a message of key and value. */
function unknownInEntry(field, reader, end, path) {
  let key = '';
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag >>> 3 === 1 && field.keyType === 'string') {
      key = reader.string();
    } else if (tag >>> 3 === 2) {
      const stop = reader.uint32() + reader.pos;
      const found = findUnknown(field.resolvedType, reader, stop, `${path}[${quoted(key)}].`);
      if (found) return found;
    } else {
      reader.skipType(tag & 7);
    }
  }
  return undefined;
}
