// The blob port over a folder of this machine.
//
//   node blob_store.mjs --root FOLDER [--listen ADDRESS]      or, in a manifest, exec: with options: {root: FOLDER}

import { createHash } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { crc32 } from 'node:zlib';
import { AdapterError, fieldError, pagePosition, pageSize, pageToken, runAdapter } from './adapter.mjs';
import { BlobFolder, DEFAULT_MEDIA_TYPE, corrupt } from './blob_folder.mjs';

const CHUNK_BYTES = 256 * 1024;
const READ_ONLY = ['EROFS', 'EACCES', 'EPERM', 'EIO'];
const FULL = ['ENOSPC', 'EDQUOT'];

/** BlobStoreService over a BlobFolder. */
export class BlobStore {
  #folder;

  /** @param {BlobFolder} [folder] Without it, Configure has to name one. */
  constructor(folder) {
    this.#folder = folder;
  }

  static configSchema = {
    type: 'object',
    properties: { root: { type: 'string', description: 'Folder of the blobs.' } },
    required: ['root'],
    additionalProperties: false,
  };

  async configure(settings) {
    for (const key of Object.keys(settings)) {
      if (key !== 'root') throw fieldError(`settings.${key}`, 'unknown key; the keys are root');
    }
    if (typeof settings.root !== 'string' || !settings.root) {
      throw fieldError('settings.root', 'required: the folder of the blobs');
    }
    const next = await BlobFolder.open(settings.root);
    await this.close();
    this.#folder = next;
  }

  async close() {
    await this.#folder?.close();
  }

  async StatBlob({ key }) {
    const folder = this.#open();
    return { blob: folder.ref(key, await folder.stat(key)) };
  }

  async *ReadBlob({ key, offset: first, limit }) {
    const folder = this.#open();
    const { file, record } = await folder.open(key);
    try {
      const size = record.sizeBytes;
      if (first > size) {
        const text = `offset ${first} is past the end of blob '${key}', ${size} bytes`;
        const metadata = { key, offset: first, size_bytes: size };
        throw new AdapterError('OUT_OF_RANGE', 'RANGE', text, { metadata });
      }
      const end = limit ? Math.min(first + Number(limit), size) : size;
      const hash = first === 0 && end === size ? createHash('sha256') : undefined;
      for (let offset = first, last = false; !last; ) {
        const data = await readExactly(file, offset, Math.min(CHUNK_BYTES, end - offset), key, size);
        hash?.update(data);
        last = offset + data.length === end;
        const actual = last && hash?.digest('hex');
        if (actual && actual !== record.sha256) {
          throw corrupt(key, `has sha256 ${actual}, ${record.sha256} was stored`);
        }
        yield { offset, crc32: crc32(data), data, blob: offset === first ? folder.ref(key, record) : undefined };
        offset += data.length;
      }
    } finally {
      await file.close();
    }
  }

  async WriteBlob(requests) {
    const folder = this.#open();
    return diskErrors(async () => {
      const write = new Write(folder);
      try {
        for await (const request of requests) await write.take(request);
        return { blob: await write.commit() };
      } finally {
        await write.close();
      }
    });
  }

  async ListBlobs({ prefix, page_size: asked, page_token: token }) {
    const folder = this.#open();
    const size = pageSize(asked);
    const scope = `ListBlobs\0${prefix}`;
    const [after = ''] = pagePosition(token, scope);
    const found = await folder.list(prefix, after, size + 1);
    const page = found.slice(0, size);
    return {
      blobs: page.map(([key, record]) => ({ key, blob: folder.ref(key, record) })),
      next_page_token: found.length > size ? pageToken([page[size - 1][0]], scope) : '',
    };
  }

  async DeleteBlob({ key, allow_missing: allowMissing }) {
    const folder = this.#open();
    const deleted = await diskErrors(() => folder.delete(key));
    if (!deleted && !allowMissing) {
      const text = `there is no blob '${key}' to delete; with allow_missing that is OK`;
      throw new AdapterError('NOT_FOUND', 'BLOB_NOT_FOUND', text, { metadata: { key } });
    }
    return {};
  }

  #open() {
    if (!this.#folder) {
      const text = 'the folder of the blobs is not known: start with --root FOLDER, or set options: {root: FOLDER}';
      throw new AdapterError('FAILED_PRECONDITION', 'NOT_CONFIGURED', text);
    }
    return this.#folder;
  }
}

/** One write: checks its messages and stores what they say at the end. */
class Write {
  #folder;
  #staged;
  #hash = createHash('sha256');
  #size = 0;
  #header;
  #finish;

  constructor(folder) {
    this.#folder = folder;
  }

  async take({ part, header, chunk, finish }) {
    if (!part) throw fieldError('part', 'is missing: send a header, a chunk or a finish');
    if ((part === 'header') !== !this.#header) {
      throw fieldError('header', 'must be the first message of a write, once');
    }
    if (this.#finish) throw fieldError(part, 'comes after the finish, which must be last');
    if (part === 'header') {
      this.#folder.path(header.key, 'header.key');
      this.#header = header;
      this.#staged = await this.#folder.stage();
    } else if (part === 'chunk') {
      await this.#add(chunk);
    } else {
      this.#finish = finish;
    }
  }

  async #add({ offset, crc32: sent, data }) {
    if (offset !== this.#size) {
      throw fieldError('chunk.offset', `is ${offset}, must be ${this.#size}: chunks are contiguous`);
    }
    if (crc32(data) !== sent) throw this.#damaged('CRC-32 of a chunk', hex(sent), hex(crc32(data)));
    await this.#staged.file.appendFile(data);
    this.#hash.update(data);
    this.#size += data.length;
  }

  async commit() {
    if (!this.#header) throw fieldError('header', 'is missing: a write is a header, chunks and a finish');
    if (!this.#finish) {
      throw fieldError('finish', 'is missing: the stream ended without it and nothing was stored');
    }
    const { key, media_type: mediaType, create_only: createOnly } = this.#header;
    const sha256 = this.#hash.digest('hex');
    if (this.#finish.size_bytes !== this.#size) {
      throw this.#damaged('size in bytes', this.#finish.size_bytes, this.#size);
    }
    if (this.#finish.sha256 !== sha256) throw this.#damaged('sha256', this.#finish.sha256, sha256);
    await this.#staged.file.sync();
    await this.#staged.file.close();
    const record = { sizeBytes: this.#size, sha256, mediaType: mediaType || DEFAULT_MEDIA_TYPE };
    return this.#folder.ref(key, await this.#folder.commit(key, this.#staged.path, record, { createOnly }));
  }

  /** Removes what has not taken its place. */
  async close() {
    await this.#staged?.file.close();
    if (this.#staged) await rm(this.#staged.path, { force: true });
  }

  #damaged(what, expected, actual) {
    const key = this.#header.key;
    const text =
      `blob '${key}': the ${what} is ${actual}, the sender said ${expected}; nothing was stored: ` + 'send it again';
    return new AdapterError('DATA_LOSS', 'BLOB_CORRUPT', text, { metadata: { key, expected, actual } });
  }
}

async function readExactly(file, offset, length, key, size) {
  const data = Buffer.alloc(length);
  let read = 0;
  while (read < length) {
    const { bytesRead } = await file.read(data, read, length - read, offset + read);
    if (!bytesRead) throw corrupt(key, `ends at byte ${offset + read} of ${size}`);
    read += bytesRead;
  }
  return data;
}

async function diskErrors(work) {
  try {
    return await work();
  } catch (error) {
    if (FULL.includes(error.code)) {
      const text = 'the disk of the blob store is full; nothing was stored: free space and send it again';
      throw new AdapterError('RESOURCE_EXHAUSTED', 'DISK_FULL', text, { cause: error });
    }
    if (READ_ONLY.includes(error.code)) {
      const text =
        `the folder of the blob store can't be changed (${error.code}); nothing was stored or deleted: ` +
        'make it writable and try again';
      const metadata = { cause: error.code };
      throw new AdapterError('FAILED_PRECONDITION', 'STORAGE_FAILED', text, { metadata, cause: error });
    }
    throw error;
  }
}

const hex = (number) => number.toString(16).padStart(8, '0');

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { listen: { type: 'string' }, root: { type: 'string' } } });
  await runAdapter({
    name: 'node-blobs',
    listen: values.listen,
    ports: { blob: new BlobStore(values.root && (await BlobFolder.open(values.root))) },
    configSchemas: { blob: BlobStore.configSchema },
  });
}
