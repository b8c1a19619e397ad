// Page sizes, and page tokens: a position in a list, tied to the request whose list it is.

import { createHash } from 'node:crypto';
import { fieldError } from './errors.mjs';

const DEFAULT_PAGE_SIZE = 50;
const MAX_PAGE_SIZE = 500;
const DIGEST_BYTES = 12;

/** The entries of a page: 50 for 0, at most 500. */
export function pageSize(requested) {
  return Math.min(requested || DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE);
}

/** An opaque token that goes on after a position, a list of JSON values. Only the same scope takes it back. */
export function pageToken(position, scope) {
  const body = Buffer.from(JSON.stringify(position));
  return Buffer.concat([digest(body, scope), body]).toString('base64url');
}

/** The position of a token; [] for an empty token, the start of the list. Throws INVALID_ARGUMENT PAGE_TOKEN_INVALID. */
export function pagePosition(token, scope) {
  if (!token) return [];
  const data = Buffer.from(token, 'base64url');
  const body = data.subarray(DIGEST_BYTES);
  // No secret: it tells damage and other lists apart. Whoever forges a token only pages from elsewhere.
  if (data.toString('base64url') !== token || !data.subarray(0, DIGEST_BYTES).equals(digest(body, scope))) {
    throw fieldError(
      'page_token',
      'is not a token of this list: send the next_page_token of the response before, with the same other fields',
      'PAGE_TOKEN_INVALID',
    );
  }
  return JSON.parse(body.toString());
}

function digest(body, scope) {
  return createHash('sha256').update(scope).update('\0').update(body).digest().subarray(0, DIGEST_BYTES);
}
