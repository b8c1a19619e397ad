// Blobs as plain files below a folder, each with a record of its size, hash and media type: the layout of builtin:local.
//
// The file of a key lies at root/key, its record in root/.meta under the hash of the key. A write goes: content aside
// and synced, record as `.next`, content in place, record in place. Whatever moment a crash picks, the next look at the
// blob settles which of the two contents is there.

import { createHash, randomUUID } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { access, mkdir, open, readFile, readdir, rename, rm, rmdir, stat, unlink } from 'node:fs/promises';
import { dirname, join, relative, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { AdapterError, fieldError } from './adapter.mjs';

export const DEFAULT_MEDIA_TYPE = 'application/octet-stream';
const META = '.meta';
const STAGING = 'staging-node-';
const MAX_PART_BYTES = 255;
const MAX_PATH_BYTES = 4095;

/**
 * What is known of a blob. An empty hash: not known without reading it.
 * @typedef {{sizeBytes: number, sha256: string, mediaType: string}} BlobRecord
 */

/** The blobs below one folder. */
export class BlobFolder {
  #root;
  #staging;
  // Looks and changes take turns, so that nobody sees content and record of different blobs.
  #turn = Promise.resolve();

  /** @param {string} root Made when it is not there. */
  static async open(root) {
    const folder = new BlobFolder();
    folder.#root = resolve(root);
    folder.#staging = join(folder.#root, META, `${STAGING}${process.pid}-${randomUUID()}`);
    await mkdir(join(folder.#root, META), { recursive: true });
    await folder.#sweep();
    return folder;
  }

  /** Removes what unfinished writes have left. */
  async close() {
    await rm(this.#staging, { recursive: true, force: true });
  }

  /** The file of a key. Throws INVALID_ARGUMENT FIELD_INVALID when it is not a key. */
  path(key, field = 'key') {
    const parts = key.split('/');
    const shown = `'${key}'`;
    if (key.startsWith('/') || parts.some((part) => ['', '.', '..'].includes(part))) {
      throw fieldError(field, `${shown} must be a relative path with '/', without '.', '..' or empty parts`);
    }
    if (/[\u0000-\u001f\u007f]/.test(key)) {
      throw fieldError(field, `${shown} holds a control character: leave it out`);
    }
    if (parts.some((part) => Buffer.byteLength(part) > MAX_PART_BYTES)) {
      throw fieldError(field, `has a part of more than ${MAX_PART_BYTES} bytes: shorten it`);
    }
    const path = `${this.#root}/${key}`;
    if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
      throw fieldError(field, `is too long for this machine's disks below ${this.#root}: shorten it`);
    }
    if (parts[0] === META) {
      throw fieldError(field, `${shown} begins with '${META}', which is the store's own: choose another name`);
    }
    return path;
  }

  /** The blob as the contract names it. @param {BlobRecord} record */
  ref(key, { sizeBytes, sha256, mediaType }) {
    const uri = pathToFileURL(join(this.#root, key)).href;
    return { uri, size_bytes: sizeBytes, sha256, media_type: mediaType };
  }

  /** The record of a blob; hashes a file that another tool put there. Throws NOT_FOUND, DATA_LOSS. */
  async stat(key) {
    const path = this.path(key);
    return this.#alone(() => this.#describe(key, path));
  }

  /** The content for reading, an open file, and the record that belongs to it whatever is written afterwards. */
  async open(key) {
    const path = this.path(key);
    return this.#alone(async () => {
      const record = await this.#describe(key, path);
      return { file: await open(path), record };
    });
  }

  /** A new temporary file on the disk of the blobs. */
  async stage() {
    await mkdir(this.#staging, { recursive: true });
    const path = join(this.#staging, randomUUID());
    return { path, file: await open(path, 'wx', 0o644) };
  }

  /**
   * Puts a staged file, synced and closed, in place, durable, and returns its record. Throws ALREADY_EXISTS BLOB_EXISTS
   * when createOnly and other content is there, INVALID_ARGUMENT for a key that is a folder of other blobs or lies
   * below a blob.
   *
   * @param {BlobRecord} record
   */
  async commit(key, staged, record, { createOnly }) {
    const path = this.path(key, 'header.key');
    return this.#alone(async () => {
      const there = await kindOf(path);
      if (createOnly && there === 'file') {
        const present = await this.#describe(key, path);
        if (present.sha256 === record.sha256) return present;
        const text =
          `blob '${key}' is there with other content (sha256 ${present.sha256.slice(0, 12)}, not ` +
          `${record.sha256.slice(0, 12)}): use another key, or leave create_only out`;
        const metadata = { key, present: present.sha256, sent: record.sha256 };
        throw new AdapterError('ALREADY_EXISTS', 'BLOB_EXISTS', text, { metadata });
      }
      if (there === 'folder') throw noRoom(key, 'other blobs lie below it');
      await this.#makeFolders(key, dirname(path));
      const [upcoming, recordPath] = [this.#nextPath(key), this.#recordPath(key)];
      await this.#writeRecord(upcoming, key, record);
      await rename(staged, path);
      await syncFolder(dirname(path));
      await rename(upcoming, recordPath);
      await syncFolder(dirname(recordPath));
      return record;
    });
  }

  /** Removes a blob; whether it was there. */
  async delete(key) {
    const path = this.path(key);
    return this.#alone(async () => {
      if ((await kindOf(path)) !== 'file') return false;
      // The record first: content without one is still a blob, a record without content would condemn the next.
      await rm(this.#nextPath(key), { force: true });
      await rm(this.#recordPath(key), { force: true });
      await unlink(path);
      let folder = dirname(path);
      while (folder !== this.#root && (await readdir(folder)).length === 0) {
        await rmdir(folder);
        folder = dirname(folder);
      }
      await syncFolder(folder);
      return true;
    });
  }

  /** At most `count` blobs with a prefix, after a key, by key. Hashes nothing: a record may lack its hash. */
  async list(prefix, after, count) {
    const found = [];
    for await (const key of this.#keys(this.#root, '', prefix, after)) {
      if (found.length === count) break;
      const size = (await orMissing(stat(join(this.#root, key))))?.size;
      if (size === undefined) continue; // deleted since
      const record = await this.#readRecord(key);
      const known = record?.sizeBytes === size && !(await exists(this.#nextPath(key)));
      found.push([key, known ? record : { sizeBytes: size, sha256: '', mediaType: DEFAULT_MEDIA_TYPE }]);
    }
    return found;
  }

  async *#keys(folder, base, prefix, after) {
    const entries = (await orMissing(readdir(folder, { withFileTypes: true, encoding: 'buffer' }))) ?? [];
    // A folder sorts as its name with '/', as its keys do; names sort by their bytes, as code points do.
    const names = entries
      .map((entry) => ({ text: entry.name.toString(), bytes: entry.name, end: entry.isDirectory() ? '/' : '' }))
      .filter(({ text, bytes }) => Buffer.from(text).equals(bytes)) // what is not UTF-8 can't be a key
      .map(({ text, end }) => ({ name: `${base}${text}${end}`, path: join(folder, text) }))
      .filter(({ name }) => name !== `${META}/`)
      .sort((one, other) => byBytes(one.name, other.name));
    for (const { name, path } of names) {
      if (!name.endsWith('/')) {
        if (name.startsWith(prefix) && byBytes(name, after) > 0 && (await kindOf(path)) === 'file') yield name;
      } else if (
        (name.startsWith(prefix) || prefix.startsWith(name)) &&
        (byBytes(name, after) > 0 || after.startsWith(name))
      ) {
        yield* this.#keys(path, name, prefix, after);
      }
    }
  }

  async #describe(key, path) {
    if ((await kindOf(path)) !== 'file') {
      const text = `there is no blob '${key}': list the keys with ListBlobs`;
      throw new AdapterError('NOT_FOUND', 'BLOB_NOT_FOUND', text, { metadata: { key } });
    }
    await this.#settle(key, path);
    const { size } = await stat(path);
    let record = await this.#readRecord(key);
    if (!record) {
      record = { sizeBytes: size, sha256: await sha256File(path), mediaType: DEFAULT_MEDIA_TYPE };
      const upcoming = `${this.#recordPath(key)}.new`;
      await this.#writeRecord(upcoming, key, record);
      await rename(upcoming, this.#recordPath(key));
    }
    if (size !== record.sizeBytes) throw corrupt(key, `has ${size} bytes, ${record.sizeBytes} were stored`);
    return record;
  }

  /** Ends a write that a crash interrupted: its record counts exactly when its content is in place. */
  async #settle(key, path) {
    const upcoming = this.#nextPath(key);
    if (!(await exists(upcoming))) return;
    const record = parseRecord(await readFile(upcoming, 'utf8'), key);
    const { size } = await stat(path);
    if (record && record.sizeBytes === size && record.sha256 === (await sha256File(path))) {
      await rename(upcoming, this.#recordPath(key));
    } else {
      await unlink(upcoming);
    }
    await syncFolder(dirname(upcoming));
  }

  async #readRecord(key) {
    const path = this.#recordPath(key);
    // Lists wait for nobody: one may read while another call deletes.
    const text = await orMissing(readFile(path, 'utf8'));
    if (text === undefined) return undefined;
    const record = parseRecord(text, key);
    if (!record) throw corrupt(key, `has a damaged record ${path}; if the content is right, delete that file`);
    return record;
  }

  async #writeRecord(path, key, { sizeBytes, sha256, mediaType }) {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, 'w', 0o644);
    try {
      await file.writeFile(JSON.stringify({ key, media_type: mediaType, sha256, size_bytes: sizeBytes }));
      await file.sync();
    } finally {
      await file.close();
    }
  }

  #recordPath(key) {
    const name = createHash('sha256').update(key).digest('hex');
    return join(this.#root, META, name.slice(0, 2), `${name}.json`);
  }

  #nextPath(key) {
    return this.#recordPath(key).replace(/json$/, 'next');
  }

  async #makeFolders(key, folder) {
    const there = await kindOf(folder);
    if (there === 'folder') return;
    if (there) throw noRoom(key, `${relative(this.#root, folder)} is a blob`);
    await this.#makeFolders(key, dirname(folder));
    await mkdir(folder);
    await syncFolder(dirname(folder));
  }

  /** Removes the staged files of processes that are gone. */
  async #sweep() {
    const meta = join(this.#root, META);
    for (const name of await readdir(meta)) {
      const pid = name.startsWith(STAGING) && Number.parseInt(name.slice(STAGING.length), 10);
      if (pid && !isRunning(pid)) await rm(join(meta, name), { recursive: true, force: true });
    }
  }

  #alone(work) {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => {});
    return result;
  }
}

/** The error of a blob whose bytes are not those that were stored. */
export function corrupt(key, problem) {
  return new AdapterError('DATA_LOSS', 'BLOB_CORRUPT', `blob '${key}' ${problem}`, { metadata: { key } });
}

function noRoom(key, why) {
  return fieldError('header.key', `'${key}' can't be a blob: ${why}; a name is a blob or a folder, not both`);
}

function parseRecord(text, key) {
  try {
    const value = JSON.parse(text);
    const record = { sizeBytes: value.size_bytes, sha256: value.sha256, mediaType: value.media_type };
    const texts = [record.sha256, record.mediaType].every((each) => typeof each === 'string');
    return texts && Number.isSafeInteger(record.sizeBytes) && value.key === key ? record : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined;
    throw error;
  }
}

async function kindOf(path) {
  const found = await orMissing(stat(path));
  if (!found) return undefined;
  return found.isDirectory() ? 'folder' : 'file';
}

async function exists(path) {
  return (await orMissing(access(path, constants.F_OK).then(() => true))) ?? false;
}

/** undefined where there is no such file. */
async function orMissing(promise) {
  try {
    return await promise;
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(error.code)) return undefined;
    throw error;
  }
}

async function syncFolder(folder) {
  const file = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

async function sha256File(path) {
  const hash = createHash('sha256');
  for await (const data of createReadStream(path)) hash.update(data);
  return hash.digest('hex');
}

function byBytes(one, other) {
  return Buffer.compare(Buffer.from(one), Buffer.from(other));
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}
