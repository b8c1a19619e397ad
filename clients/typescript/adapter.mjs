// The adapter kit: serve ports of a kitchen from plain JavaScript classes.
//
//   class Rewards { async Score(request, call) { ... } async ListRewards(request, call) { ... } }
//   await runAdapter({ name: 'my-rewards', ports: { reward: new Rewards() } });

import { randomUUID } from 'node:crypto';
import { AdapterError, fieldError } from './kit/errors.mjs';
import { fromStruct, load, service, toStruct } from './kit/protos.mjs';
import { MAX_MESSAGE_BYTES, addService, bind, newServer, stop } from './kit/server.mjs';

export { AdapterError, capabilityMissing, fieldError, toFailure } from './kit/errors.mjs';
export { pagePosition, pageSize, pageToken } from './kit/paging.mjs';
export { fromStruct, toStruct } from './kit/protos.mjs';

const CONTRACT_VERSIONS = [1];
const GRACE_MS = 5_000;
const LOOPBACK = /^(unix:|127\.\d+\.\d+\.\d+:|localhost:|\[::1\]:)/;
/** The service of each port. */
const SERVICES = {
  blob: 'BlobStoreService',
  dataset: 'DatasetService',
  deployment: 'DeploymentService',
  embedding: 'EmbeddingService',
  environment: 'EnvironmentService',
  evaluator: 'EvaluatorService',
  feedback: 'FeedbackService',
  hub: 'HubService',
  llm: 'LLMService',
  metrics: 'MetricsStoreService',
  python_bridge: 'PythonBridgeService',
  registry: 'ModelRegistryService',
  reward: 'RewardService',
  sampling: 'SamplingService',
  tokenizer: 'TokenizerService',
  training: 'TrainingService',
  vector: 'VectorStoreService',
};

/**
 * What an adapter is.
 * @typedef {object} Adapter
 * @property {string} name Such as my-blobs.
 * @property {Record<string, object>} ports By port name, what serves it: an object with a method for each RPC, and
 *     optionally `configure(settings, secrets)`, which takes the manifest's options and may return warnings, and
 *     `close()`. See `addService` in kit/server.mjs for methods and kit/protos.mjs for messages.
 * @property {Record<string, string[]>} [capabilities] Optional behaviour that it has, by port name.
 * @property {Record<string, object>} [configSchemas] JSON Schema of what `configure` takes, by port name.
 * @property {string} [version]
 * @property {() => Promise<{state: string, detail?: string}>} [probe] Whether it can serve now; default: STATE_READY.
 */

/** AdapterService for an adapter: the handshake, settings and readiness. */
class AdapterService {
  #adapter;
  #instanceId = randomUUID().replaceAll('-', '');
  #generations = new Map();

  /** @param {Adapter} adapter */
  constructor(adapter) {
    this.#adapter = adapter;
  }

  async GetAdapterInfo({ host_contract_versions: theirs }) {
    const { name, version = '0', ports, capabilities = {}, configSchemas = {} } = this.#adapter;
    if (!theirs.some((each) => CONTRACT_VERSIONS.includes(each))) {
      const text =
        `no common contract version: the host speaks ${theirs.join(', ')}, ${name} speaks ` +
        `${CONTRACT_VERSIONS.join(', ')}: update the older side`;
      throw new AdapterError('FAILED_PRECONDITION', 'CONTRACT_VERSION_UNSUPPORTED', text);
    }
    return {
      name,
      version,
      language: 'javascript',
      contract_versions: CONTRACT_VERSIONS,
      ports: Object.keys(ports).sort().map((port) => ({
        service: serviceName(port),
        capabilities: [...(capabilities[port] ?? [])].sort(),
        config_schema: configSchemas[port] && toStruct(configSchemas[port]),
      })),
      instance_id: this.#instanceId,
      max_message_bytes: MAX_MESSAGE_BYTES,
    };
  }

  async Configure({ instance, service: name, generation, settings, secrets }) {
    onlyDefault(instance);
    const [port, served] = Object.entries(this.#adapter.ports).find(([each]) => serviceName(each) === name) ?? [];
    if (!port) throw fieldError('service', `is ${name}, which ${this.#adapter.name} does not serve`);
    if (!served.configure) {
      const text = `${this.#adapter.name} takes its settings when it is started: set them in its command line`;
      throw new AdapterError('UNIMPLEMENTED', 'CAPABILITY_MISSING', text);
    }
    const current = this.#generations.get(port) ?? 0;
    if (generation < current) {
      const text = `generation ${generation} of ${port}'s settings came after ${current}: read the manifest again`;
      throw new AdapterError('FAILED_PRECONDITION', 'STALE_GENERATION', text, { metadata: { generation, current } });
    }
    if (generation === current) return {};
    const warnings = await served.configure(fromStruct(settings), secrets);
    this.#generations.set(port, generation);
    return { warnings: warnings ?? [] };
  }

  async Probe({ instance }) {
    onlyDefault(instance);
    return (await this.#adapter.probe?.()) ?? { state: 'STATE_READY' };
  }
}

function onlyDefault(instance) {
  if (instance && instance !== 'default') {
    throw fieldError('instance', `is ${instance}: this adapter has one instance, default`);
  }
}

function serviceName(port) {
  if (!(port in SERVICES)) throw new Error(`no port is named ${port}; ports are ${Object.keys(SERVICES).join(', ')}`);
  return `crucible.port.${port}.v1.${SERVICES[port]}`;
}

/**
 * Serves an adapter on an address: host:port (0 chooses a port) or unix:PATH. It speaks plain text, so it listens on
 * this machine alone.
 *
 * @param {Adapter} adapter
 * @param {string} address
 * @returns {Promise<{address: string, stop: () => Promise<void>}>}
 */
export async function serve(adapter, address) {
  if (!LOOPBACK.test(address)) {
    const text = 'without TLS only unix:PATH, 127.0.0.1:PORT and localhost:PORT are served';
    throw new Error(`cannot listen on ${address}: ${text}`);
  }
  const server = newServer();
  const protos = Object.keys(adapter.ports).map((port) => `crucible/port/${port}/v1/${port}.proto`);
  load('crucible/adapter/v1/adapter.proto', ...protos);
  addService(server, service('crucible.adapter.v1.AdapterService'), new AdapterService(adapter));
  for (const [port, implementation] of Object.entries(adapter.ports)) {
    addService(server, service(serviceName(port)), implementation);
  }
  const bound = await bind(server, address);
  return {
    address: bound,
    stop: async () => {
      await stop(server, GRACE_MS);
      for (const implementation of new Set(Object.values(adapter.ports))) await implementation.close?.();
    },
  };
}

/**
 * Runs an adapter until SIGTERM or SIGINT, and writes its address to stdout as one line of JSON once it serves.
 * Without `listen` it is the child of a kitchen: it listens where CRUCIBLE_ADAPTER_LISTEN says, and ends with its stdin.
 *
 * @param {Adapter & {listen?: string}} adapter
 */
export async function runAdapter({ listen, ...adapter }) {
  const address = listen ?? process.env.CRUCIBLE_ADAPTER_LISTEN;
  if (!address) {
    const text = 'give --listen ADDRESS (host:port or unix:PATH), or let a manifest start it as exec:';
    console.error(`${adapter.name}: ${text}`);
    process.exitCode = 2;
    return;
  }
  const ended = new Promise((resolve) => {
    process.once('SIGTERM', resolve);
    process.once('SIGINT', resolve);
    if (listen === undefined) process.stdin.once('end', resolve).once('error', resolve).resume();
  });
  const served = await serve(adapter, address).catch((error) => {
    console.error(`${adapter.name}: ${error.message}`);
    process.exit(1);
  });
  process.stdout.write(`${JSON.stringify({ crucible: 1, address: served.address })}\n`);
  await ended;
  process.stdin.destroy();
  await served.stop();
}
