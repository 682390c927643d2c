// A database image kept in a plain SQLite file, on Node: written whole under a temporary name, flushed, renamed into its place, and
// the directory flushed. What opens there is always one whole commit. The interface is that of pagestore.mjs.

import fs from 'node:fs';
import path from 'node:path';

const POLL = 50; // ms, for the lock of another process
const FOLLOW = 250; // ms between two looks at a followed file

/** What a store raises; `code` as in pagestore.mjs. */
export class StoreError extends Error {
  constructor(code, message, cause) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StoreError';
    this.code = code;
  }
}

const described = (error, doing) => {
  if (error instanceof StoreError) return error;
  const code = error?.code === 'ENOSPC' || error?.code === 'EDQUOT' ? 'quota' : 'failed';
  return new StoreError(code, `${doing} failed: ${error?.message ?? error}`, error);
};

const statOf = (file) => {
  const stat = fs.statSync(file, { bigint: true, throwIfNoEntry: false });
  return stat ? `${stat.ino} ${stat.size} ${stat.mtimeNs}` : null;
};

const alive = (pid) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
};

function readImage(file) {
  for (const suffix of ['-wal', '-journal']) {
    if (fs.statSync(file + suffix, { throwIfNoEntry: false })?.size) {
      throw new StoreError('busy', `${file}${suffix} is not empty: another SQLite process has the file open, or has to recover it first`);
    }
  }
  const image = new Uint8Array(fs.readFileSync(file));
  if (image.length) pageSizeOf(image);
  return image;
}

function pageSizeOf(image) {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const magic = Buffer.from(image.buffer, image.byteOffset, Math.min(16, image.length)).toString('latin1');
  if (magic !== 'SQLite format 3\0' || image.length < 512) throw new StoreError('invalid', 'this is not a SQLite database file');
  const pageSize = view.getUint16(16) === 1 ? 65536 : view.getUint16(16);
  const pages = view.getUint32(24) === view.getUint32(92) ? view.getUint32(28) : 1;
  if (image.length % pageSize || image.length < pages * pageSize) throw new StoreError('invalid', 'the SQLite database file is cut');
  return pageSize;
}

function writeWhole(file, image) {
  const directory = path.dirname(file);
  const temporary = `${file}-new-${process.pid}`;
  const mode = fs.statSync(file, { throwIfNoEntry: false })?.mode;
  try {
    const handle = fs.openSync(temporary, 'w');
    try {
      if (mode !== undefined) fs.fchmodSync(handle, mode & 0o7777); // what openSync() is given, the umask takes from
      for (let at = 0; at < image.length; ) at += fs.writeSync(handle, image, at);
      fs.fsyncSync(handle);
    } finally {
      fs.closeSync(handle);
    }
    fs.renameSync(temporary, file);
  } catch (error) {
    fs.rmSync(temporary, { force: true });
    throw error;
  }
  flushDirectory(directory);
}

// Some systems cannot. The file has its new name by then, so it is no failure.
function flushDirectory(directory) {
  let handle;
  try {
    handle = fs.openSync(directory, 'r');
    fs.fsyncSync(handle);
  } catch { /* see above */ } finally {
    if (handle !== undefined) fs.closeSync(handle);
  }
}

/** The lock of the writer: a file beside the database with the process id; one left by a dead process counts as free. */
class LockFile {
  #file; #mark = `${process.pid} ${globalThis.crypto.randomUUID()}`;

  constructor(file) { this.#file = `${file}-lock`; }

  tryTake(steal) {
    try {
      fs.writeFileSync(this.#file, this.#mark, { flag: 'wx' });
      return true;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const other = this.#holder();
    if (other === null) return this.tryTake(steal);
    if (!steal && alive(parseInt(other, 10))) return false;
    // Moved away first, so that of two who find it dead only one takes it.
    const aside = `${this.#file}-${globalThis.crypto.randomUUID()}`;
    try { fs.renameSync(this.#file, aside); } catch { return false; }
    const moved = fs.readFileSync(aside, 'utf8');
    if (moved !== other && !steal) try { fs.linkSync(aside, this.#file); } catch { /* somebody has it already */ }
    fs.rmSync(aside);
    return moved === other || steal ? this.tryTake(false) : false;
  }

  #holder() {
    try { return fs.readFileSync(this.#file, 'utf8'); } catch { return null; }
  }

  get ours() { return this.#holder() === this.#mark; }
  release() { if (this.ours) fs.rmSync(this.#file, { force: true }); }
}

class FileStore {
  readOnly = true;
  recovered = null;
  persisted = true;
  /** Every commit brings the whole image. */
  needsImage = true;
  wholeOnly = true;

  #file; #lock; #image = null; #size = 0; #pageSize = 0; #stat = null; #generation = 0;
  #listeners = new Set(); #timer = null; #closed = false; #broken = null; #held = false; #unread = null;

  constructor(file, options) {
    const { key = null } = options;
    if (key !== null) throw new StoreError('invalid', 'files are not encrypted: use an encrypted file system');
    const absolute = path.resolve(file);
    if (!fs.existsSync(path.dirname(absolute))) throw new StoreError('missing', `there is no directory ${path.dirname(absolute)}`);
    this.#file = fs.existsSync(absolute) ? fs.realpathSync(absolute) : absolute; // a link stays a link
    this.#lock = new LockFile(this.#file);
  }

  get name() { return this.#file; }
  get image() { return this.#image; }
  get pageSize() { return this.#pageSize; }
  get size() { return this.#size; }
  /** Commits since opening. */
  get generation() { return this.#generation; }
  /** Why nothing can be written any more, or null. That a follower cannot read the file for now, only status() says. */
  get failure() { return this.#broken; }
  forgetImage() { if (!this.readOnly) this.#image = null; }

  start(writer) {
    this.#held = writer;
    this.readOnly = !writer;
    try {
      this.#load();
    } catch (error) {
      this.#release();
      throw described(error, `opening ${this.#file}`);
    }
    if (writer) return this;
    this.#timer = setInterval(() => this.refresh().catch(() => {}), FOLLOW);
    this.#timer.unref();
    return this;
  }

  #load() {
    for (let before = null; (before = statOf(this.#file)) !== this.#stat || before === null; ) {
      const image = before === null ? new Uint8Array(0) : readImage(this.#file);
      this.#image = image.length ? image : null;
      this.#size = image.length;
      this.#pageSize = image.length ? pageSizeOf(image) : 0;
      this.#stat = before;
      if (before === null) return;
    }
  }

  tryLock(steal) { return this.#lock.tryTake(steal); }

  /** Stores the whole image `full`; its pages alone are not enough. */
  async commit(change) { this.commitSync(change); }

  commitSync({ full }) {
    if (this.#broken) throw this.#broken;
    if (this.#closed) throw new StoreError('closed', `the database ${this.#file} is closed`);
    if (this.readOnly) throw new StoreError('readonly', `the database ${this.#file} is followed: another process writes it`);
    if (!this.#lock.ours || statOf(this.#file) !== this.#stat) {
      this.#broken = new StoreError('fenced', `another process has written or locked ${this.#file}; nothing was changed`);
      throw this.#broken;
    }
    try {
      writeWhole(this.#file, full);
    } catch (error) {
      throw described(error, `writing ${this.#file}`);
    }
    this.#stat = statOf(this.#file);
    this.#size = full.length;
    this.#pageSize = pageSizeOf(full);
    this.#image = null;
    this.#generation++;
  }

  onRefresh(callback) {
    this.#listeners.add(callback);
    return () => this.#listeners.delete(callback);
  }

  async refresh() {
    if (!this.readOnly || this.#closed || (statOf(this.#file) === this.#stat && !this.#unread)) return false;
    try {
      this.#load();
      this.#unread = null;
    } catch (error) {
      this.#unread = described(error, `following ${this.#file}`);
      throw this.#unread;
    }
    this.#generation++;
    for (const callback of [...this.#listeners]) callback(this);
    return true;
  }

  async promote({ mode = 'wait', timeout = null, signal = null } = {}) {
    if (!this.readOnly) return;
    await waitForLock(this, mode, timeout, signal);
    try {
      if (this.#closed) throw new StoreError('closed', `the database ${this.#file} was closed while it waited for the lock`);
      await this.refresh();
    } catch (error) {
      this.#lock.release();
      throw error;
    }
    clearInterval(this.#timer);
    this.#held = true;
    this.readOnly = false;
  }

  async idle() {}

  status() {
    return {
      kind: 'file', name: this.#file, generation: this.#generation, size: this.#size, logRecords: 0, logBytes: 0, readOnly: this.readOnly,
      encrypted: false, strict: true, lock: this.#held ? 'held' : this.#closed ? 'none' : 'other', persisted: true,
      usage: null, quota: null, failure: (this.#broken ?? this.#unread)?.message ?? null,
    };
  }

  #release() {
    clearInterval(this.#timer);
    if (this.#held) this.#lock.release();
    this.#held = false;
  }

  async close() { this.closeSync(); }

  closeSync() {
    this.#closed = true;
    this.#release();
    this.#image = null;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const isLocked = (store) => new StoreError('locked', `another process writes the database ${store.name}`);

async function waitForLock(store, mode, timeout, signal) {
  const until = timeout === null ? Infinity : Date.now() + timeout;
  while (!store.tryLock(mode === 'steal')) {
    if (mode === 'fail' || Date.now() >= until) throw isLocked(store);
    await pause(POLL);
    if (signal?.aborted) throw isLocked(store);
  }
}

/** As pagestore.mjs's; `name` is a path. @returns {Promise<FileStore>} */
export async function openStore(name, options = {}) {
  const { mode = 'wait', timeout = null, signal = null } = options;
  const store = new FileStore(name, options);
  if (mode === 'read') return store.start(false);
  if (mode === 'follow') return store.start(store.tryLock(false));
  await waitForLock(store, mode, timeout, signal);
  return store.start(true);
}

/** openStore() without waiting: a lock that is taken raises `locked`. */
export function openStoreSync(name, options = {}) {
  const { mode = 'wait' } = options;
  const store = new FileStore(name, options);
  if (mode === 'read') return store.start(false);
  const held = store.tryLock(mode === 'steal');
  if (!held && mode !== 'follow') throw isLocked(store);
  return store.start(held);
}

/** The SQLite files in a directory. */
export async function listStores({ directory = '.' } = {}) {
  const isDatabase = (name) => {
    const file = path.join(directory, name);
    if (!fs.statSync(file, { throwIfNoEntry: false })?.isFile()) return false;
    const handle = fs.openSync(file, 'r');
    const start = Buffer.alloc(16);
    try { fs.readSync(handle, start); } finally { fs.closeSync(handle); }
    return start.toString('latin1') === 'SQLite format 3\0';
  };
  return fs.readdirSync(directory).filter(isDatabase).sort();
}

export async function listQuarantined(options) {
  return (await listStores(options)).filter((name) => name.includes('~quarantined-'));
}

export async function removeStore(name) {
  const store = await openStore(name, { mode: 'fail' });
  fs.rmSync(store.name, { force: true });
  await store.close();
}

export async function quarantineStore(name) {
  const aside = `${name}~quarantined-${new Date().toISOString().replace(/[:.]/g, '-')}`;
  fs.renameSync(name, aside);
  return aside;
}

export async function exportStore(name) {
  if (!fs.existsSync(name)) throw new StoreError('missing', `there is no database ${name}`);
  return readImage(name);
}

export async function importStore(name, image, options = {}) {
  pageSizeOf(image);
  if (!options.overwrite && fs.existsSync(name)) throw new StoreError('exists', `there is a database ${name} already`);
  const store = await openStore(name, { mode: 'fail' });
  try {
    await store.commit({ full: image });
  } finally {
    await store.close();
  }
}
