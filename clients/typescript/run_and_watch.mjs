// Creates a run and prints one line per event until it has ended. Exit status: 0 COMPLETED, 1 anything else, 2 usage.

import { parseArgs } from 'node:util';
import { Kitchen, KitchenError } from './kitchen.mjs';

const USAGE = 'usage: node run_and_watch.mjs ADDRESS RECIPE [--preset P] [--set key=value ...]';

/** The command line as {address, recipe, preset, config}; a value is JSON where it parses as JSON, else a string. */
function parseCommandLine() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { preset: { type: 'string' }, set: { type: 'string', multiple: true, default: [] } },
  });
  if (positionals.length !== 2) throw new TypeError(`expected ADDRESS and RECIPE, got ${positionals.length} arguments`);
  const config = {};
  for (const assignment of values.set) {
    const [, key, text] = assignment.match(/^([^=]+)=(.*)$/s) ?? [];
    if (key === undefined) throw new TypeError(`--set ${assignment}: write key=value`);
    config[key] = parseValue(text);
  }
  return { address: positionals[0], recipe: positionals[1], preset: values.preset, config };
}

function parseValue(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const withoutPrefix = (state) => state.replace('RUN_STATE_', '');
const pairs = (metrics) =>
  Object.entries(metrics)
    .map(([name, value]) => `${name}=${Number(value).toPrecision(5)}`)
    .join(' ');

/** What an event says beside its kind, in a few words. */
function describe(event) {
  const payload = event[event.payload];
  switch (event.payload) {
    case 'stateChanged':
      return [withoutPrefix(payload.toState), payload.reason, payload.failure && describeFailure(payload.failure)]
        .filter(Boolean)
        .join(' ');
    case 'attemptStarted':
      return `attempt=${payload.attempt} from=${payload.fromCheckpoint?.uri ?? 'start'}`;
    case 'planned':
      return `steps=${payload.totalSteps} rows=${payload.numRows}`;
    case 'stageCompleted':
      return `${payload.stage} ${payload.seconds.toFixed(2)} s`;
    case 'stepCompleted':
    case 'evaluationCompleted':
      return pairs(payload.metrics);
    case 'checkpointSaved':
      return payload.checkpoint.uri;
    case 'modelRegistered':
      return `${payload.modelName} ${payload.versionId}`;
    case 'logRecorded':
      return payload.message;
    default:
      return [payload?.stage, payload?.reason, payload?.failure && describeFailure(payload.failure)]
        .filter(Boolean)
        .join(' ');
  }
}

const describeFailure = (failure) => `${failure.reason}: ${failure.status?.message ?? ''}`;

function printError(error) {
  const facts = Object.entries(error.metadata).map(([name, value]) => ` ${name}=${value}`);
  console.error(`${error.code}${error.reason && ` ${error.reason}`}: ${error.message}${facts.join('')}`);
  for (const { field, description } of error.violations) console.error(`  ${field}: ${description}`);
}

async function runAndWatch({ address, recipe, preset, config }) {
  const kitchen = new Kitchen(address);
  try {
    const { runId } = await kitchen.createRun({ recipe, preset, config });
    console.log(`run ${runId}`);
    let state = '';
    let checkpoint = '';
    const onDrop = (error) => console.error(`watch dropped (${error?.message ?? 'stream ended early'}), resuming`);
    for await (const event of kitchen.watchRun(runId, { onDrop })) {
      state = event.stateChanged?.toState ?? state;
      checkpoint = event.checkpointSaved?.checkpoint.uri ?? checkpoint;
      const place = [`#${event.sequence}`, `step=${event.step}`, event.stagePath].filter(Boolean).join(' ');
      console.log(`${place} ${event.payload ?? 'unknown'} ${describe(event)}`.trimEnd());
    }
    console.log(`run ${runId} ${withoutPrefix(state)} ${checkpoint}`.trimEnd());
    return state === 'RUN_STATE_COMPLETED' ? 0 : 1;
  } finally {
    kitchen.close();
  }
}

let options;
try {
  options = parseCommandLine();
} catch (error) {
  console.error(`${error.message}\n${USAGE}`);
  process.exit(2);
}
try {
  process.exitCode = await runAndWatch(options);
} catch (error) {
  if (!(error instanceof KitchenError)) throw error;
  printError(error);
  process.exitCode = 1;
}
