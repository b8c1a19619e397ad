// Trains on any TrainingService from Node: two passes and a step in flight at once, then a checkpoint and a file of it.
// With recorded stubs it needs neither torch nor a Python adapter's code, only `kitchen replay`:
//
//   kitchen replay tests/stubs/training/full.jsonl --listen 127.0.0.1:50061
//   node replay_client.mjs 127.0.0.1:50061 any-model-name

import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import zlib from 'node:zlib';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { KitchenError } from './kitchen.mjs';

const PROTO = fileURLToPath(new URL('../../proto', import.meta.url));
const CALL_MS = 60_000;
const POLL_SECONDS = 20;
const ENDED = new Set(['OPERATION_STATE_SUCCEEDED', 'OPERATION_STATE_FAILED', 'OPERATION_STATE_CANCELLED']);

const definitions = loadSync('crucible/port/training/v1/training.proto', {
  includeDirs: [PROTO],
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});

/** Token ids as little-endian int32. */
function packTokens(ids) {
  const data = Buffer.alloc(4 * ids.length);
  ids.forEach((id, index) => data.writeInt32LE(id, 4 * index));
  return data;
}

/** Numbers as little-endian float32. */
function packFloats(values) {
  const data = Buffer.alloc(4 * values.length);
  values.forEach((value, index) => data.writeFloatLE(value, 4 * index));
  return data;
}

/** The numbers of a dense float32 tensor. */
function unpackFloats({ dense }) {
  return Array.from({ length: dense.length / 4 }, (_, index) => dense.readFloatLE(4 * index));
}

/** A row in which every token is trained on with one weight. */
function datum(tokens, weight = 0.25) {
  const shape = [tokens.length - 1];
  return {
    modelInput: { chunks: [{ tokensInt32: packTokens(tokens.slice(0, -1)) }] },
    lossFnInputs: {
      target_tokens: { dtype: 'D_TYPE_INT32', shape, dense: packTokens(tokens.slice(1)) },
      weights: { dtype: 'D_TYPE_FLOAT32', shape, dense: packFloats(Array(tokens.length - 1).fill(weight)) },
    },
  };
}

/** One open session; calls are numbered here. Every method rejects with KitchenError. */
class TrainingSession {
  #sequence = 0;

  constructor(client, session) {
    this.client = client;
    this.info = session;
  }

  /** Opens a session on a model, training all its weights. */
  static async open(address, baseModel) {
    const { TrainingService } = grpc.loadPackageDefinition(definitions).crucible.port.training.v1;
    const client = new TrainingService(address, grpc.credentials.createInsecure());
    const request = { requestId: randomUUID(), baseModel, seed: 7, dtype: 'float32' };
    return new TrainingSession(client, (await unary(client, 'createTrainingSession', request)).session);
  }

  /** Makes a call about the session. */
  call(method, request = {}) {
    return unary(this.client, method, { sessionId: this.info.sessionId, ...request });
  }

  /** Enqueues work without waiting for it; resolves to its operation. */
  async enqueue(method, request) {
    this.#sequence += 1;
    return (await this.call(method, { sequence: this.#sequence, ...request })).operation;
  }

  /** The result of an operation, by the name of its kind. */
  async result(operation) {
    for (;;) {
      const request = { operationId: operation.id, wait: { seconds: POLL_SECONDS, nanos: 0 } };
      const answer = await this.call('awaitOperation', request);
      if (!ENDED.has(answer.operation.state)) continue;
      if (answer.operation.state !== 'OPERATION_STATE_SUCCEEDED') {
        throw new Error(`${answer.operation.state}: ${answer.operation.failure?.reason}`);
      }
      return answer[answer.result];
    }
  }

  /** The bytes of a checkpoint's file, each chunk checked. */
  async readFile(uri, path) {
    const parts = [];
    try {
      for await (const chunk of this.client.readCheckpointFile({ uri, path })) {
        if (crc(chunk.data) !== chunk.crc32) throw new Error(`${path}: chunk at ${chunk.offset} is damaged`);
        parts.push(chunk.data);
      }
    } catch (error) {
      throw error.code === undefined ? error : new KitchenError(error);
    }
    return Buffer.concat(parts);
  }

  async close() {
    await this.call('closeTrainingSession');
    this.client.close();
  }
}

function unary(client, method, request) {
  return new Promise((resolve, reject) => {
    const done = (error, response) => (error ? reject(new KitchenError(error)) : resolve(response));
    client[method](request, { deadline: Date.now() + CALL_MS }, done);
  });
}

/** CRC-32 of bytes; older Node has none built in. */
function crc(data) {
  if (zlib.crc32) return zlib.crc32(data);
  let sum = ~0;
  for (const byte of data) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum >>> 0;
}

function say(facts) {
  console.log(JSON.stringify(facts));
}

async function train(address, model) {
  const lossFn = { name: 'cross_entropy' };
  const batches = [
    [datum([5, 17, 42, 99, 7]), datum([3, 8, 21, 144])],
    [datum([11, 12, 13, 14, 15, 16])],
  ];
  const session = await TrainingSession.open(address, model);
  say({ parameters: session.info.trainableParameters, vocabulary: session.info.vocabSize });

  // Passes and step are all sent before the first is awaited: the session keeps their order.
  const passes = batches.map((data) => session.enqueue('forwardBackward', { data, lossFn }));
  const adam = { learningRate: 1e-3, eps: 1e-3, gradClipNorm: 1 };
  const step = session.enqueue('optimStep', { adam });
  for (const pass of passes) {
    const { loss, outputs } = await session.result(await pass);
    say({ loss, logprobs: outputs.map((output) => unpackFloats(output.logprobs)) });
  }
  const { gradNorm, optimSteps } = await session.result(await step);
  say({ step: optimSteps, gradNorm });
  const now = (await session.call('getTrainingSession')).session;
  say({ weightsVersion: now.weightsVersion, nextSequence: now.nextSequence });

  const after = await session.result(await session.enqueue('forward', { data: batches[0], lossFn }));
  say({ lossAfter: after.loss });
  const saved = await session.result(
    await session.enqueue('saveCheckpoint', { name: 'stubs/full', weightsOnly: true }),
  );
  const config = await session.readFile(saved.uri, 'config.json');
  say({ checkpoint: saved.uri, files: saved.files.length, architecture: JSON.parse(config).architectures[0] });
  await session.result(await session.enqueue('loadCheckpoint', { uri: saved.uri, weightsOnly: true }));
  await unary(session.client, 'deleteCheckpoint', { uri: saved.uri });
  await session.close();
}

const [address, model] = process.argv.slice(2);
if (!model) {
  console.error('usage: node replay_client.mjs ADDRESS MODEL');
  process.exit(2);
}
try {
  await train(address, model);
} catch (error) {
  const facts = error instanceof KitchenError ? ` (${error.code} ${error.reason})` : '';
  console.error(`${error.message}${facts}`);
  process.exit(1);
}
