// The reward port: exact match of the answer that stands behind "####", as in GSM8K.
//
//   node reward.mjs [--listen ADDRESS]      or, in a manifest, exec:

import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  AdapterError,
  capabilityMissing,
  fieldError,
  fromStruct,
  pagePosition,
  pageSize,
  pageToken,
  runAdapter,
  toFailure,
  toStruct,
} from './adapter.mjs';

const MARK = '####';
const SERVICE = 'crucible.port.reward.v1.RewardService';
const OPTIONS = {
  type: 'object',
  properties: { ignore_case: { type: 'boolean', default: false, description: 'Take upper for lower case.' } },
  additionalProperties: false,
};
const EXACT_MATCH = {
  name: 'exact_match',
  description: `1 when what stands behind the last "${MARK}" is the reference answer, otherwise 0.`,
  min_reward: 0,
  max_reward: 1,
  parts: ['correct', 'format'],
  needs_reference_answer: true,
  options_schema: toStruct(OPTIONS),
};

/** RewardService with the one reward exact_match. */
export class Rewards {
  async Score({ reward, items, options }) {
    if (reward && reward !== EXACT_MATCH.name) {
      const text = `there is no reward '${reward}': use ${EXACT_MATCH.name}, or leave it empty`;
      throw new AdapterError('NOT_FOUND', 'REWARD_NOT_FOUND', text, { metadata: { reward } });
    }
    const settings = checkedOptions(fromStruct(options));
    return { results: items.map((item, index) => scored(item, `items[${index}]`, settings)) };
  }

  async ListRewards({ page_size: asked, page_token: token }) {
    const [after = ''] = pagePosition(token, 'ListRewards');
    const rest = [EXACT_MATCH].filter(({ name }) => name > after);
    const page = rest.slice(0, pageSize(asked));
    const next = rest.length > page.length ? pageToken([page.at(-1).name], 'ListRewards') : '';
    return { rewards: page, next_page_token: next };
  }
}

function checkedOptions(options) {
  for (const [key, value] of Object.entries(options)) {
    if (!(key in OPTIONS.properties)) {
      throw fieldError(`options.${key}`, 'unknown key; the keys are ignore_case', 'OPTIONS_INVALID');
    }
    if (typeof value !== 'boolean') {
      throw fieldError(`options.${key}`, `is ${JSON.stringify(value)}, must be true or false`, 'OPTIONS_INVALID');
    }
  }
  return { ignore_case: false, ...options };
}

/** The result of one item. What can't be scored fails alone. */
function scored(item, field, settings) {
  try {
    return score(item, field, settings);
  } catch (error) {
    if (!(error instanceof AdapterError)) throw error;
    return { error: toFailure(error, SERVICE) };
  }
}

function score({ completion, reference_answer: reference }, field, settings) {
  if (reference === undefined) {
    const text = `${field}.reference_answer: absent, but ${EXACT_MATCH.name} compares with it: give one`;
    throw new AdapterError('INVALID_ARGUMENT', 'REFERENCE_ANSWER_MISSING', text, { metadata: { field } });
  }
  const last = completion.length - 1;
  const answer = behindMark(textOf(completion[last], `${field}.completion[${last}]`));
  if (answer === undefined) {
    const explanation = `the completion has no "${MARK}"`;
    return { outcome: 'OUTCOME_UNPARSEABLE', parts: { correct: 0, format: 0 }, explanation };
  }
  const expected = behindMark(reference) ?? reference.trim();
  const same = settings.ignore_case ? answer.toLowerCase() === expected.toLowerCase() : answer === expected;
  const correct = same ? 1 : 0;
  return {
    reward: correct,
    parts: { correct, format: 1 },
    outcome: same ? 'OUTCOME_CORRECT' : 'OUTCOME_WRONG',
    answer,
    explanation: same ? '' : `expected ${expected}`,
  };
}

/** What a message says, as text. Throws UNIMPLEMENTED CAPABILITY_MISSING for content that is not text. */
function textOf({ content, parts }, field) {
  if (content && parts.length) throw fieldError(`${field}.content`, 'must be empty where parts are given');
  const other = parts.findIndex(({ part }) => part !== 'text');
  if (other >= 0) throw capabilityMissing('reward', 'reward.media_input', `${field}.parts[${other}]: send text only`);
  return parts.length ? parts.map(({ text }) => text).join('') : content;
}

/** The rest of the line behind the last mark, without the spaces around it; undefined without a mark. */
function behindMark(text) {
  const at = text.lastIndexOf(MARK);
  return at < 0 ? undefined : text.slice(at + MARK.length).trimStart().split('\n')[0].trim();
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { listen: { type: 'string' } } });
  await runAdapter({ name: 'node-rewards', listen: values.listen, ports: { reward: new Rewards() } });
}
