// A database image kept in IndexedDB, page by page: pages in, image out. Nothing of SQLite's engine or of Python is in here.
//
// Records, each sealed with a checksum (or AES-GCM) over its content and its place:
//   head                      generation, current and previous base, the writer; rewritten by every commit: the fence
//   <generation, part>        the log: pages changed by that commit, 1 MB at most per record
//   base:<generation>         names the segments of an image: for each the generation that wrote it
//   [index, generation]       a segment: 256 KB of an image
//   key, key-copy             salt and check of the passphrase
//   stolen:<writer>, ended:<writer>   empty; writers who were taken over
// An image is a base and the log after it. The previous base and the log since then are kept, so one bad record of the current base
// costs nothing, and one bad record of the log costs the generations from there on. A new base rewrites changed segments only, in small
// transactions between the commits, and comes to life with one last transaction.

const FORMAT = 1;
const MODES = ['wait', 'fail', 'follow', 'steal', 'read'];
const PREFIX = 'sqljs:';
const QUARANTINE = '~quarantined-';
const SEGMENT = 256 * 1024;
const SEGMENTS_AT_ONCE = 8; // per transaction while a base is written ahead: bounds what a commit may wait for, as does
const RECORDS_AT_ONCE = 4; // of the log that are read for it
const PART = 1 << 20;
const PARTS = 8192;
const LOG_RECORDS = 256; // bounds the time of opening
const LOG_RECORDS_PER_SEGMENT = 4; // bounds what writing a base costs per commit, whatever the size of the image
const RETRY_AFTER = 100; // commits, after a base could not be written
const LOG_BYTES = 1 << 20; // below this a new base is not worth it, whatever the size of the image
const SUM = 8;
const ITERATIONS = 600_000; // PBKDF2-SHA-256, OWASP 2023
const FILLER = -1; // in the place of a segment's index
const STOLEN = 'stolen:'; // and a writer whose lock was taken by force: it may still live, and must not write as it leaves
const ENDED = 'ended:'; // and the last writer that ended without a close: its leaving write may be on its way
const NOTHING = new Uint8Array(0);
const GONE = 'the browser has closed the database; the data of this site may have been cleared';
const NEW_LOG_RECORDS = 96; // of 60 KB: more than the 4 MB after which LevelDB begins a new log; larger values go to files of their own
const NEW_LOG_RECORD = 60_000;
const PERSIST_TIMEOUT = 3000; // ms; some browsers never answer
const QUOTA_EVERY = 1000; // ms
const DELETE_TIMEOUT = 5000; // ms

/** What a store raises. `code`: fenced locked corrupt quota key readonly closed gone busy exists missing invalid unavailable failed. */
export class StoreError extends Error {
  constructor(code, message, cause) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StoreError';
    this.code = code;
  }
}

// -- IndexedDB, promised ---------------------------------------------------------------------------------------------------------------

const answer = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Resolves when stored. A transaction that fails at its very end only tells `onabort`. */
const settled = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new DOMException('the transaction was aborted', 'AbortError'));
  });

const described = (error, doing) => {
  if (error instanceof StoreError) return error;
  const name = error?.name ?? '';
  if (name === 'QuotaExceededError') return new StoreError('quota', `${doing}: the quota is spent; nothing was changed`, error);
  return new StoreError('failed', `${doing} failed: ${name || 'Error'}: ${error?.message ?? error}`, error);
};

const pause = () => new Promise((resolve) => setTimeout(resolve));

// `onLoss` hears what Chromium says when it found its own files corrupt and began anew.
function openDatabase(indexedDB, name, onLoss = () => {}) {
  return new Promise((resolve, reject) => {
    if (!indexedDB) return reject(new StoreError('unavailable', 'there is no IndexedDB here: databases can only be kept in memory'));
    const request = indexedDB.open(name, FORMAT);
    request.onupgradeneeded = ({ dataLoss, dataLossMessage }) => {
      if (dataLoss === 'total') onLoss(dataLossMessage);
      request.result.createObjectStore('log');
      request.result.createObjectStore('segments');
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(described(request.error, 'opening the store'));
    // Blocked until its deletion elsewhere is through: onsuccess follows.
  });
}

// -- Records ---------------------------------------------------------------------------------------------------------------------------

const corrupt = (label, how) => new StoreError('corrupt', `record ${label} ${how}`);
const utf8 = new TextEncoder();
const text = new TextDecoder();
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
const unhex = (digits) => Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));

/** Two 32-bit lanes; every step is a bijection of the state and of the word, so one changed word always changes both. */
function checksum(words, count, label, out) {
  let a = 0x811c9dc5;
  for (let i = 0; i < label.length; i++) a = Math.imul(a ^ label.charCodeAt(i), 0x01000193);
  let b = a ^ count;
  for (let i = 0; i < count; i++) {
    a = Math.imul(a ^ words[i], 0x01000193);
    b = Math.imul((b << 13) | (b >>> 19), 0x85ebca6b) + words[i];
  }
  out[0] = a ^ (a >>> 15);
  out[1] = b ^ (b >>> 16);
}

const found = new Int32Array(2);

/** Seals records with a checksum. A record's bytes end in SUM spare bytes for it and are whole words; `label` is the record's place. */
const plain = {
  seal(label, bytes) {
    const words = new Int32Array(bytes.buffer, 0, bytes.length >> 2);
    checksum(words, words.length - 2, label, words.subarray(words.length - 2));
    return bytes;
  },
  unseal(label, record) {
    if (!(record instanceof Uint8Array) || record.length < SUM || record.length % 4) throw corrupt(label, 'is missing or cut');
    const bytes = record.byteOffset % 4 ? record.slice() : record;
    const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    const count = words.length - 2;
    checksum(words, count, label, found);
    if (found[0] !== words[count] || found[1] !== words[count + 1]) throw corrupt(label, 'has a wrong checksum');
    return bytes.subarray(0, bytes.length - SUM);
  },
};

/** Seals records with AES-GCM: a fresh 96-bit nonce in front, the place as additional data. */
const cipher = (crypto, key) => ({
  async seal(label, bytes) {
    const iv = crypto.getRandomValues(new Uint8Array(12));
    const content = bytes.subarray(0, bytes.length - SUM);
    const sealed = new Uint8Array(await crypto.subtle.encrypt({ name: 'AES-GCM', iv, additionalData: utf8.encode(label) }, key, content));
    const record = new Uint8Array(12 + sealed.length);
    record.set(iv);
    record.set(sealed, 12);
    return record;
  },
  async unseal(label, record) {
    if (!(record instanceof Uint8Array) || record.length < 28) throw corrupt(label, 'is missing or cut');
    try {
      const algorithm = { name: 'AES-GCM', iv: record.subarray(0, 12), additionalData: utf8.encode(label) };
      return new Uint8Array(await crypto.subtle.decrypt(algorithm, key, record.subarray(12)));
    } catch {
      throw corrupt(label, 'does not decrypt');
    }
  },
});

// All of it is ASCII; spaces fill the last word.
function encodeJSON(value) {
  const json = JSON.stringify(value);
  const bytes = new Uint8Array(Math.ceil(json.length / 4) * 4 + SUM).fill(32);
  utf8.encodeInto(json, bytes);
  return bytes;
}

const decodeJSON = (bytes) => JSON.parse(text.decode(bytes));

// A log record: format, generation (low, high), part, parts, page size, pages of the image, pages in here; their numbers; their content.
const DELTA_WORDS = 8;

function encodeDelta({ generation, part, parts, pageSize, pageCount, numbers, pages }) {
  const start = (DELTA_WORDS + numbers.length) * 4;
  const bytes = new Uint8Array(start + numbers.length * pageSize + SUM);
  const words = new Uint32Array(bytes.buffer, 0, DELTA_WORDS + numbers.length);
  words.set([FORMAT, generation >>> 0, Math.floor(generation / 2 ** 32), part, parts, pageSize, pageCount, numbers.length]);
  words.set(numbers, DELTA_WORDS);
  for (let i = 0; i < numbers.length; i++) bytes.set(pages.get(numbers[i]), start + i * pageSize);
  return bytes;
}

function decodeDelta(bytes) {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, DELTA_WORDS);
  if (words[0] !== FORMAT) throw new StoreError('corrupt', `a log record has the unknown format ${words[0]}`);
  const [pageSize, pageCount, count] = [words[5], words[6], words[7]];
  const numbers = new Uint32Array(bytes.buffer, bytes.byteOffset + DELTA_WORDS * 4, count);
  return { parts: words[4], pageSize, size: pageSize * pageCount, numbers, content: bytes.subarray((DELTA_WORDS + count) * 4) };
}

const same = (a, b) => {
  if (a === undefined || b === undefined) return a === b;
  if (!(a instanceof Uint8Array) || a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
};

const deltaKey = (generation, part) => generation * PARTS + part;
const deltaLabel = (generation, part) => `delta:${generation}:${part}`;
const segmentLabel = (index, generation) => `segment:${index}:${generation}`;

/** Page size of a SQLite file, after a look whether it is one and is whole. */
export function sqlitePageSize(image) {
  if (text.decode(image.subarray(0, 16)) !== 'SQLite format 3\0') throw new StoreError('invalid', 'this is not a SQLite database file');
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const pageSize = view.getUint16(16) === 1 ? 65536 : view.getUint16(16);
  if (pageSize < 512 || pageSize & (pageSize - 1)) throw new StoreError('invalid', `a page size of ${pageSize} bytes is not SQLite's`);
  const pages = view.getUint32(24) === view.getUint32(92) ? view.getUint32(28) : 1;
  if (image.length % pageSize || image.length < pages * pageSize) throw new StoreError('invalid', 'the SQLite database file is cut');
  return pageSize;
}

// -- Locks -----------------------------------------------------------------------------------------------------------------------------

/**
 * The exclusive Web Lock of the writer, held until `release()`. null: it is another's (mode fail or follow).
 * @returns {Promise<{release: () => void, lost: Promise<void>}|null>}
 */
function acquire(locks, name, mode, timeout, signal) {
  return new Promise((resolve, reject) => {
    let lost;
    const wasLost = new Promise((tell) => (lost = tell));
    const options = { mode: 'exclusive' };
    let timer;
    let held = false;
    if (mode === 'steal') options.steal = true;
    else if (mode !== 'wait') options.ifAvailable = true;
    else {
      const controller = new AbortController();
      options.signal = controller.signal;
      if (timeout !== null && timeout !== undefined) timer = setTimeout(() => controller.abort(), timeout);
      signal?.addEventListener('abort', () => controller.abort());
    }
    const hold = (lock) => {
      clearTimeout(timer);
      if (!lock) return resolve(null);
      held = true;
      return new Promise((release) => resolve({ release, lost: wasLost }));
    };
    locks.request(name, options, hold).catch((error) => {
      clearTimeout(timer);
      if (held) lost(); // stolen
      else if (signal?.aborted) reject(new StoreError('locked', 'it is not waited for any more', error));
      else if (error?.name === 'AbortError') reject(new StoreError('locked', `it is still being written after ${timeout} ms`, error));
      else reject(described(error, 'taking the lock'));
    });
  });
}

// -- The store -------------------------------------------------------------------------------------------------------------------------

const globals = (options) => ({
  indexedDB: options.indexedDB ?? globalThis.indexedDB,
  keyRange: options.IDBKeyRange ?? globalThis.IDBKeyRange,
  locks: options.locks === undefined ? globalThis.navigator?.locks : options.locks,
  broadcast: options.broadcast === undefined ? globalThis.BroadcastChannel : options.broadcast,
  crypto: options.crypto ?? globalThis.crypto,
  storage: options.storage === undefined ? globalThis.navigator?.storage : options.storage,
});

class PageStore {
  /**
   * What opening found bad, or null: why, the generation it fell back to, how many are lost (null: unknown), and the copy set aside.
   * @type {{reason: string, generation: number, lost: number|null, quarantined: string|null}|null}
   */
  recovered = null;
  /** true for a follower: it sees the writer's commits and makes none. */
  readOnly = true;
  /** Whether the browser promised never to evict: true, false, or null while (or when) it does not answer. Only pages can ask it to. */
  persisted = null;

  #name; #options; #world; #database; #records = plain; #lock = null; #byForce = false; #channel = null;
  #head = null; #headRecord; #base = { generation: 0, size: 0, segments: [] };
  #image = null; #pageSize = 0; #size = 0;
  #logRecords = 0; #logBytes = 0; #baseNeeded = false; #rebasing = null; #notBefore = 0;
  #writer = hex(globalThis.crypto.getRandomValues(new Uint8Array(16))); // randomUUID() is for https only
  #turn = Promise.resolve(); #committing = false; #broken = null; #closed = false;
  #listeners = new Set(); #becoming = null; #refreshing = null; #refreshAgain = false; #estimate = null; #measured = 0;

  constructor(name, options) {
    this.#name = name;
    this.#options = options;
    this.#world = globals(options);
  }

  get name() { return this.#name; }
  /** The image as opened, or as a follower last saw it; null when empty or forgotten. Not to be changed. */
  get image() { return this.#image; }
  get pageSize() { return this.#pageSize; }
  /** Bytes of the stored image. */
  get size() { return this.#size; }
  /** Number of the last stored commit. */
  get generation() { return this.#head?.generation ?? 0; }
  /** Why nothing can be read or written any more, or null. */
  get failure() { return this.#broken; }
  /** true when the log proved bad while the database is open: the next commit should bring the `full` image. */
  get needsImage() { return this.#baseNeeded; }

  /** Lets go of the image after opening: a writer has no use for it. */
  forgetImage() { if (!this.readOnly) this.#image = null; }

  async open() {
    const { mode = 'wait', timeout = null, signal = null } = this.#options;
    if (!MODES.includes(mode)) throw new StoreError('invalid', `mode ${mode} is none of ${MODES.join(', ')}`);
    try {
      const writer = await this.#takeLock(mode, timeout, signal);
      let wiped = null;
      this.#database = await openDatabase(this.#world.indexedDB, PREFIX + this.#name, (message) => (wiped = message));
      this.#database.onversionchange = () => this.#break(new StoreError('gone', `the database ${this.#name} was removed elsewhere`));
      this.#database.onclose = () => this.#break(new StoreError('gone', `${this.#name}: ${GONE}`));
      await this.#unlock(writer);
      if (writer) await this.#becomeWriter();
      else await this.#load();
      if (wiped !== null) {
        const reason = `the browser found its own files corrupt and deleted all databases of this site: ${wiped}`;
        this.recovered = { reason, generation: 0, lost: null, quarantined: null };
      }
      this.#listen();
      if (this.readOnly) await this.refresh(); // what was stored between the loading and the listening
      return this;
    } catch (error) {
      this.#shut();
      throw described(error, `opening ${this.#name}`);
    }
  }

  async #takeLock(mode, timeout, signal) {
    const { locks } = this.#world;
    if (mode === 'read') return false;
    if (!locks) return mode !== 'follow'; // the fence alone keeps writers apart
    this.#lock = await acquire(locks, PREFIX + this.#name, mode, timeout, signal);
    this.#byForce = mode === 'steal';
    if (!this.#lock && mode === 'fail') throw new StoreError('locked', `another tab or worker writes the database ${this.#name}`);
    this.#lock?.lost.then(() => this.#break(new StoreError('fenced', `another writer took over the database ${this.#name}`)));
    return this.#lock !== null;
  }

  // Proves the passphrase before anything is touched.
  async #unlock(writer) {
    const { key, iterations = ITERATIONS } = this.#options;
    const { crypto } = this.#world;
    if (key?.length === 0) throw new StoreError('invalid', 'the key is empty: null is for a database that is not encrypted');
    if (key && !crypto.subtle) throw new StoreError('unavailable', 'pages that are not served over https cannot encrypt');
    const log = this.#database.transaction('log').objectStore('log');
    const [first, copy, head] = await Promise.all([answer(log.get('key')), answer(log.get('key-copy')), answer(log.get('head'))]);
    let stored = null;
    for (const record of [first, copy]) {
      if (record === undefined || stored) continue;
      try { stored = decodeJSON(plain.unseal('key', record)); } catch { /* the other one may be whole */ }
    }
    if (!stored && (first ?? copy) !== undefined) throw new StoreError('corrupt', `both key records of the database ${this.#name} are bad`);
    if (!stored && !key) return;
    if (stored && !key) throw new StoreError('key', `the database ${this.#name} is encrypted: a key is needed`);
    if (!stored && head !== undefined) throw new StoreError('key', `the database ${this.#name} is not encrypted: open it without a key`);
    const salt = stored ? unhex(stored.salt) : crypto.getRandomValues(new Uint8Array(16));
    const rounds = stored?.iterations ?? iterations;
    const secret = typeof key === 'string' ? utf8.encode(key) : key;
    const material = await crypto.subtle.importKey('raw', secret, 'PBKDF2', false, ['deriveKey']);
    const derivation = { name: 'PBKDF2', hash: 'SHA-256', salt, iterations: rounds };
    const algorithm = { name: 'AES-GCM', length: 256 };
    const records = cipher(crypto, await crypto.subtle.deriveKey(derivation, material, algorithm, false, ['encrypt', 'decrypt']));
    if (stored) {
      await records.unseal('check', unhex(stored.check)).catch(() => {
        throw new StoreError('key', `this is not the key of the database ${this.#name}`);
      });
      this.#records = records;
      return;
    }
    if (!writer) return; // an empty store: its writer will say how it is sealed
    this.#records = records;
    const check = await records.seal('check', encodeJSON('sqljs'));
    const record = plain.seal('key', encodeJSON({ salt: hex(salt), iterations: rounds, check: hex(check) }));
    const transaction = this.#database.transaction('log', 'readwrite', { durability: 'strict' });
    for (const place of ['key', 'key-copy']) transaction.objectStore('log').put(record, place);
    await settled(transaction);
  }

  async #becomeWriter() {
    this.readOnly = false;
    try {
      await this.#claim();
      await this.#load();
      if (this.recovered) await this.#settleRecovery();
    } catch (error) {
      this.readOnly = true;
      throw error;
    }
    this.#askToPersist();
    this.#measureQuota();
  }

  // Puts our name into the head: from here on every other writer is fenced.
  async #claim() {
    for (;;) {
      const record = await answer(this.#database.transaction('log').objectStore('log').get('head'));
      let head = { format: FORMAT, generation: 0, base: 0, previous: null };
      if (record !== undefined) {
        try { head = decodeJSON(await this.#records.unseal('head', record)); } catch (error) {
          if (error.code !== 'corrupt') throw error;
          this.#headRecord = record; // a bad head is mended by #settleRecovery
          return;
        }
        if (head.format !== FORMAT) throw new StoreError('invalid', `the database ${this.#name} has the unknown format ${head.format}`);
      }
      this.#headRecord = record;
      if (record !== undefined && !head.closed) await this.#beginNewLog().catch(() => {}); // no room: the writing will tell
      try {
        await this.#write(['log'], { ...head, writer: this.#writer, closed: false }, (transaction) => {
          if (!head.writer || head.closed) return;
          const log = transaction.objectStore('log');
          if (!this.#byForce) log.delete(this.#world.keyRange.bound(ENDED, `${ENDED}~`)); // older ones are gone for good
          log.put(NOTHING, (this.#byForce ? STOLEN : ENDED) + head.writer);
        });
        return;
      } catch (error) {
        if (error.code !== 'fenced') throw error; // somebody committed in between: look again
      }
    }
  }

  // When a process is killed, Chromium's LevelDB may be left with a log whose last record is torn. It appends to that log, and when it is
  // opened the time after, finds it corrupt and deletes all databases of the site (seen at about one kill in a hundred). So after an end
  // that was no close(), it is given enough to begin a new log, before anything depends on it.
  async #beginNewLog() {
    if (!('dataLoss' in (globalThis.IDBVersionChangeEvent?.prototype ?? {}))) return; // not Chromium
    const transaction = this.#database.transaction('segments', 'readwrite', { durability: 'relaxed' });
    const filler = this.#world.crypto.getRandomValues(new Uint8Array(NEW_LOG_RECORD)); // random: values may be compressed
    for (let i = 0; i < NEW_LOG_RECORDS; i++) {
      filler[i]++;
      transaction.objectStore('segments').put(filler, [FILLER, i]);
    }
    await settled(transaction);
    const removal = this.#database.transaction('segments', 'readwrite', { durability: 'relaxed' });
    removal.objectStore('segments').delete(this.#world.keyRange.bound([FILLER, 0], [FILLER, NEW_LOG_RECORDS]));
    await settled(removal);
  }

  // -- Reading

  async #load() {
    for (;;) {
      const record = await answer(this.#database.transaction('log').objectStore('log').get('head'));
      const [state, error] = await this.#read(record).then((it) => [it], (it) => [null, it]);
      if (error || state.recovered) {
        // A follower may have read across two new bases of the writer: then look again.
        const now = await answer(this.#database.transaction('log').objectStore('log').get('head'));
        if (!same(record, now)) continue;
        if (error) throw error;
      }
      this.#headRecord = record;
      this.#head = state.head;
      this.#base = state.base;
      this.#adopt(state);
      this.recovered = state.recovered;
      return;
    }
  }

  #adopt(state) {
    this.#image = state.size ? state.image : null;
    this.#size = state.size;
    this.#pageSize = state.pageSize;
    this.#logRecords = state.logRecords;
    this.#logBytes = state.logBytes;
  }

  async #read(record) {
    let head = null;
    let bad = null;
    if (record !== undefined) {
      try { head = decodeJSON(await this.#records.unseal('head', record)); } catch (error) { bad = error; }
    }
    if (!head) {
      const keys = await answer(this.#database.transaction('log').objectStore('log').getAllKeys());
      const bases = keys.filter((key) => typeof key === 'string' && key.startsWith('base:')).map((key) => Number(key.slice(5)));
      const last = keys.filter((key) => typeof key === 'number').reduce((most, key) => Math.max(most, Math.floor(key / PARTS)), 0);
      if (!bad && (bases.length || last)) bad = new StoreError('corrupt', 'record head is missing');
      bases.sort((a, b) => b - a);
      head = { format: FORMAT, generation: Math.max(last, bases[0] ?? 0), base: bases[0] ?? 0, previous: bases[1] ?? 0 };
    }
    let best = null;
    for (const generation of [head.base, head.previous]) {
      if (generation === null || generation === undefined) continue;
      try {
        const state = await this.#assemble(generation, head.generation);
        bad ??= state.bad;
        if (!best || state.generation > best.generation) best = state;
        if (best.generation === head.generation) break;
      } catch (error) {
        if (!(error instanceof StoreError)) throw error;
        bad ??= error;
      }
    }
    if (!best || (bad && best.generation === 0 && head.generation > 0)) {
      throw new StoreError('corrupt', `no generation of the database ${this.#name} can be read (${bad.message}); nothing was changed`, bad);
    }
    const lost = head.generation - best.generation;
    const recovered = bad && { reason: bad.message, generation: best.generation, lost, quarantined: null };
    return { ...best, head, recovered };
  }

  async #assemble(generation, target) {
    const reading = this.#readLog(generation, target);
    reading.catch(() => {}); // awaited below, unless the base is bad
    const base = generation === 0 ? { generation: 0, pageSize: 0, size: 0, segments: [] } : await this.#readBase(generation);
    const records = await this.#readSegments(base, base.segments.keys());
    const { deltas, bad, reached } = await reading;
    let capacity = base.size;
    for (const delta of deltas) capacity = Math.max(capacity, delta.size);
    let image = new Uint8Array(capacity);
    for (const [index, segment] of records) image.set(segment, index * SEGMENT);
    let size = base.size;
    let pageSize = base.pageSize;
    let logBytes = 0;
    for (const delta of deltas) {
      size = applyDelta(image, size, delta);
      pageSize = delta.pageSize;
      logBytes += delta.content.length;
    }
    if (size !== capacity) image = image.slice(0, size);
    return { image, size, pageSize, base, generation: reached, bad, logRecords: deltas.length, logBytes };
  }

  async #readBase(generation) {
    const record = await answer(this.#database.transaction('log').objectStore('log').get(`base:${generation}`));
    return decodeJSON(await this.#records.unseal(`base:${generation}`, record));
  }

  async #readSegments(base, indexes) {
    const store = this.#database.transaction('segments').objectStore('segments');
    const wanted = Array.from(indexes);
    const records = await Promise.all(wanted.map((index) => answer(store.get([index, base.segments[index]]))));
    const segments = new Map();
    for (let i = 0; i < wanted.length; i++) {
      const label = segmentLabel(wanted[i], base.segments[wanted[i]]);
      const content = await this.#records.unseal(label, records[i]);
      if (content.length !== Math.min(SEGMENT, base.size - wanted[i] * SEGMENT)) throw corrupt(label, 'has a wrong length');
      segments.set(wanted[i], content);
    }
    return segments;
  }

  // The log after `generation`, as far as it is whole; a commit of several parts counts whole or not at all.
  // At most `atOnce` records are read in one transaction.
  async #readLog(generation, target, atOnce) {
    const deltas = [];
    let reached = generation;
    if (target <= generation) return { deltas, bad: null, reached };
    let records = [];
    let next = 0;
    const read = async (first) => {
      const range = this.#world.keyRange.bound(first, deltaKey(target, PARTS - 1));
      records = await answer(this.#database.transaction('log').objectStore('log').getAll(range, atOnce));
      next = 0;
    };
    try {
      while (reached < target) {
        const parts = [];
        do {
          const label = deltaLabel(reached + 1, parts.length);
          if (next === records.length) await read(deltaKey(reached + 1, parts.length));
          const delta = decodeDelta(await this.#records.unseal(label, records[next++]));
          parts.push(delta);
        } while (parts.length < parts[0].parts);
        deltas.push(...parts);
        reached++;
      }
    } catch (error) {
      if (!(error instanceof StoreError)) throw error;
      return { deltas, bad: error, reached };
    }
    return { deltas, bad: null, reached };
  }

  // -- Recovery

  async #settleRecovery() {
    this.recovered.quarantined = await copyDatabase(this.#world, this.#database, this.#name);
    const generation = this.#head.generation + 1;
    this.#head = { ...this.#head, generation: generation - 1, base: 0, previous: null, writer: this.#writer };
    await this.#exclusive(() => this.#writeImage(this.#image ?? new Uint8Array(0), this.#pageSize, generation, true));
  }

  // -- Writing

  // Serialises what changes the head.
  #exclusive(work) {
    const result = this.#turn.then(work).catch((error) => {
      if (error.code === 'fenced' || error.code === 'gone') this.#break(error);
      throw error;
    });
    this.#turn = result.catch(() => {});
    return result;
  }

  /**
   * One transaction under the fence: the stored head must be the one we know, or nothing is written.
   * The writes are queued behind the reading of the head without waiting for it; the check then commits or aborts them all.
   */
  async #write(stores, head, work, leaving = false) {
    const record = head && (await this.#records.seal('head', encodeJSON(head)));
    if (this.#broken) throw this.#broken;
    let transaction;
    try {
      transaction = this.#database.transaction(stores, 'readwrite', { durability: this.#options.strict ? 'strict' : 'relaxed' });
    } catch (error) {
      throw new StoreError('gone', `writing ${this.#name}: ${GONE}`, error);
    }
    const done = settled(transaction);
    let fenced = false;
    let failure = null;
    try {
      const log = transaction.objectStore('log');
      const current = log.get('head');
      current.onsuccess = () => {
        if (leaving) return;
        if (same(current.result, this.#headRecord)) {
          transaction.commit?.();
          return record && this.#announce();
        }
        fenced = true;
        transaction.abort();
      };
      work(transaction);
      if (record) log.put(record, 'head');
      if (leaving) {
        for (const place of [STOLEN, ENDED]) {
          log.add(NOTHING, place + this.#writer); // fails if we were taken over
          log.delete(place + this.#writer);
        }
        transaction.commit?.();
        this.#announce();
      }
    } catch (error) {
      failure = error;
      try { transaction.abort(); } catch { /* it was the abort that failed the writes */ }
    }
    await done.catch((error) => (failure = transaction.error ?? failure ?? error));
    if (fenced) throw new StoreError('fenced', `another writer has taken over the database ${this.#name}; nothing was changed`);
    if (failure) throw described(failure, `writing ${this.#name}`);
    if (record) {
      this.#headRecord = record;
      this.#head = head;
    }
  }

  /**
   * Stores one commit. Resolves when IndexedDB has it; rejects when nothing of it is stored. One at a time.
   * @param {{pages?: Map<number, Uint8Array>, size?: number, pageSize?: number, full?: Uint8Array|null, leaving?: boolean}} change
   *   pages: by number, from 0. size: of the image after it, bytes. full: the whole image instead. leaving: the page is about to go and
   *   nothing of it will run again; then the Web Lock, what the next writer leaves for us and the free place in the log are the fence.
   */
  async commit({ pages, size, pageSize, full = null, leaving = false }) {
    this.#check();
    if (this.#committing) throw new StoreError('busy', 'a commit is still being stored');
    this.#committing = true;
    try {
      await this.#exclusive(() => (full ? this.#writeFull(full) : this.#writePages(pages, size, pageSize, leaving && this.#lock !== null)));
    } finally {
      this.#committing = false;
    }
    this.#image = null;
    this.#announce();
    this.#considerBase();
  }

  #check() {
    if (this.#broken) throw this.#broken;
    if (this.#closed) throw new StoreError('closed', `the database ${this.#name} is closed`);
    if (this.readOnly) throw new StoreError('readonly', `the database ${this.#name} is followed: another tab or worker writes it`);
  }

  async #writePages(pages, size, pageSize, leaving) {
    if (this.#size && pageSize !== this.#pageSize) throw new StoreError('invalid', `a page size of ${pageSize}, not ${this.#pageSize}`);
    if (size % pageSize) throw new StoreError('invalid', 'the size of the image is not a number of whole pages');
    const generation = this.generation + 1;
    const numbers = Array.from(pages.keys()).filter((number) => number * pageSize < size).sort((a, b) => a - b);
    const perPart = Math.max(1, Math.floor(PART / pageSize));
    const parts = Math.max(1, Math.ceil(numbers.length / perPart));
    if (parts > PARTS) throw new StoreError('invalid', 'more than 8 GB in one commit');
    const records = [];
    for (let part = 0; part < parts; part++) {
      const some = numbers.slice(part * perPart, (part + 1) * perPart);
      const delta = encodeDelta({ generation, part, parts, pageSize, pageCount: size / pageSize, numbers: some, pages });
      records.push(await this.#records.seal(deltaLabel(generation, part), delta));
    }
    const add = (transaction) => {
      const log = transaction.objectStore('log');
      records.forEach((record, part) => log.add(record, deltaKey(generation, part))); // fails if the place is taken
    };
    await this.#write(['log'], { ...this.#head, generation }, add, leaving);
    this.#size = size;
    this.#pageSize = pageSize;
    this.#logRecords += parts;
    this.#logBytes += numbers.length * pageSize;
  }

  async #writeFull(image) {
    await this.#writeImage(image, image.length ? sqlitePageSize(image) : 0, this.generation + 1, false);
    this.#baseNeeded = false;
  }

  // A new base of the whole image in one transaction. `alone`: nothing older is kept (its copy is in quarantine).
  async #writeImage(image, pageSize, generation, alone) {
    const segments = [];
    for (let at = 0, index = 0; at < image.length; at += SEGMENT, index++) {
      segments.push([index, await this.#sealSegment(index, generation, image.subarray(at, Math.min(at + SEGMENT, image.length)))]);
    }
    const base = { generation, pageSize, size: image.length, segments: segments.map(() => generation) };
    await this.#install(base, { ...this.#head, generation, base: generation, previous: alone ? null : this.#head.base }, segments);
    this.#size = image.length;
    this.#pageSize = pageSize;
  }

  async #sealSegment(index, generation, content) {
    const bytes = new Uint8Array(content.length + SUM);
    bytes.set(content);
    return this.#records.seal(segmentLabel(index, generation), bytes);
  }

  // Makes `base` the current one; the one before it and the log since then stay as the fallback, what is older goes.
  async #install(base, head, segments) {
    const record = await this.#records.seal(`base:${base.generation}`, encodeJSON(base));
    const reading = this.#database.transaction(['log', 'segments']);
    const logKeys = answer(reading.objectStore('log').getAllKeys());
    const segmentKeys = await answer(reading.objectStore('segments').getAllKeys());
    const fallback = head.previous === null ? null : this.#base;
    const named = (key) => base.segments[key[0]] === key[1] || fallback?.segments[key[0]] === key[1];
    const bases = (await logKeys).filter((key) => typeof key === 'string' && key.startsWith('base:'));
    const oldest = head.previous ?? base.generation;
    await this.#write(['log', 'segments'], head, (transaction) => {
      const log = transaction.objectStore('log');
      const store = transaction.objectStore('segments');
      for (const key of segmentKeys) if (!named(key)) store.delete(key);
      for (const key of bases) if (key !== `base:${head.previous}`) log.delete(key);
      log.delete(this.#world.keyRange.bound(0, deltaKey(oldest, PARTS - 1)));
      for (const [index, sealed] of segments) store.put(sealed, [index, base.generation]);
      log.put(record, `base:${base.generation}`);
    });
    this.#base = base;
    this.#logRecords = 0;
    this.#logBytes = 0;
  }

  // -- A new base out of the old one and the log, behind the commits' back

  #considerBase() {
    if (this.#rebasing || this.#baseNeeded || this.generation < this.#notBefore) return;
    const { logRecords = Math.max(LOG_RECORDS, (LOG_RECORDS_PER_SEGMENT * this.#size) / SEGMENT), logBytes = LOG_BYTES } = this.#options;
    if (this.#logRecords < logRecords && this.#logBytes < Math.max(logBytes, this.#size / 2)) return;
    const generation = this.generation;
    this.#rebasing = this.#rebase(generation)
      .catch(async (error) => {
        // Bad records while the database is alive in memory: nothing is lost yet, the full image will mend it.
        if (error.code === 'corrupt') this.#baseNeeded = true;
        this.#notBefore = generation + RETRY_AFTER;
        await this.#exclusive(() => this.#dropSegments(generation)).catch(() => {}); // gives their room back, if there is still a database
      })
      .finally(() => (this.#rebasing = null));
  }

  /** Resolves when no base is being written in the background. */
  async idle() { await this.#rebasing; }

  async #dropSegments(generation) {
    const keys = await answer(this.#database.transaction('segments').objectStore('segments').getAllKeys());
    await this.#write(['log', 'segments'], null, (transaction) => {
      for (const key of keys) if (key[1] === generation) transaction.objectStore('segments').delete(key);
    });
  }

  async #rebase(generation) {
    await pause(); // the next commit goes first, if it waits already
    if (this.#base.generation >= generation) return; // it brought the full image
    const old = this.#base;
    const { deltas, bad } = await this.#readLog(old.generation, generation, RECORDS_AT_ONCE);
    if (bad) throw bad;
    const size = deltas.at(-1).size;
    const pageSize = deltas.at(-1).pageSize;
    const least = deltas.reduce((most, delta) => Math.min(most, delta.size), old.size);
    const count = Math.ceil(size / SEGMENT);
    const changed = new Set();
    for (const delta of deltas) for (const number of delta.numbers) changed.add(Math.floor((number * pageSize) / SEGMENT));
    for (let index = Math.floor(least / SEGMENT); index < count; index++) changed.add(index);
    const work = Array.from(changed).filter((index) => index < count);
    const segments = Array.from({ length: count }, (_, index) => old.segments[index]);
    for (let at = 0; at < work.length; at += SEGMENTS_AT_ONCE) {
      const some = work.slice(at, at + SEGMENTS_AT_ONCE);
      const before = await this.#readSegments(old, some.filter((index) => index < old.segments.length));
      const records = [];
      for (const index of some) {
        const content = rewriteSegment(index, before.get(index), deltas, old.size, size);
        records.push([index, await this.#sealSegment(index, generation, content)]);
        segments[index] = generation;
      }
      await this.#exclusive(() => this.#write(['log', 'segments'], null, (transaction) => {
        const store = transaction.objectStore('segments');
        for (const [index, record] of records) store.put(record, [index, generation]);
      }));
    }
    await this.#exclusive(async () => {
      if (this.#base !== old) return; // a full image came in between
      const [records, bytes] = [this.#logRecords, this.#logBytes];
      await this.#install({ generation, pageSize, size, segments }, { ...this.#head, base: generation, previous: old.generation }, []);
      this.#logRecords = records - deltas.length;
      this.#logBytes = bytes - deltas.reduce((sum, delta) => sum + delta.content.length, 0);
    });
  }

  // -- Followers

  #listen() {
    const { broadcast } = this.#world;
    if (!broadcast || this.#channel) return;
    this.#channel = new broadcast(PREFIX + this.#name);
    this.#channel.unref?.();
    this.#channel.onmessage = () => {
      if (this.readOnly && !this.#closed) this.refresh().catch((error) => this.#break(described(error, `following ${this.#name}`)));
    };
  }

  // When a commit is stored, and before that as soon as nothing keeps it from being so: the page may be gone until then. A follower that
  // looks early waits in IndexedDB for the transaction under way.
  #announce() { this.#channel?.postMessage(null); }

  /** A follower's callback, called with the store after every change it has taken over. Returns a function that ends it. */
  onRefresh(callback) {
    this.#listeners.add(callback);
    return () => this.#listeners.delete(callback);
  }

  /** Brings a follower up to date; true when something had changed. Called by itself where there is a BroadcastChannel. */
  async refresh() {
    if (this.#broken) throw this.#broken;
    if (!this.readOnly || this.#closed) return false;
    this.#refreshAgain = true;
    this.#refreshing ??= (async () => {
      let changed = false;
      try {
        while (this.#refreshAgain && !this.#closed) {
          this.#refreshAgain = false;
          changed = (await this.#catchUp()) || changed;
        }
      } finally {
        this.#refreshing = null;
      }
      return changed;
    })();
    return this.#refreshing;
  }

  async #catchUp() {
    const known = this.generation - (this.recovered?.lost ?? 0);
    const record = await answer(this.#database.transaction('log').objectStore('log').get('head'));
    if (record === undefined || same(record, this.#headRecord)) return false;
    if (this.#records === plain && !this.#head.generation) await this.#unlock(false); // the writer may have sealed an empty store meanwhile
    let head = null;
    try { head = decodeJSON(await this.#records.unseal('head', record)); } catch { /* #load reports it */ }
    const log = head && known >= Math.max(head.previous ?? head.base, 1) && (await this.#readLog(known, head.generation));
    if (log && !log.bad && log.deltas.every((delta) => delta.pageSize === this.#pageSize)) {
      let image = this.#image ?? new Uint8Array(0);
      const capacity = log.deltas.reduce((most, delta) => Math.max(most, delta.size), image.length);
      if (capacity > image.length) {
        image = new Uint8Array(capacity);
        if (this.#image) image.set(this.#image);
      }
      let size = this.#size;
      for (const delta of log.deltas) size = applyDelta(image, size, delta);
      this.#image = image.length === size ? image : image.slice(0, size);
      this.#size = size;
      this.#headRecord = record;
      this.#head = head;
    } else {
      await this.#load();
    }
    if (this.generation - (this.recovered?.lost ?? 0) === known) return false;
    for (const callback of [...this.#listeners]) callback(this);
    return true;
  }

  /**
   * Makes a follower the writer, when the present one closes or crashes (mode wait, within timeout ms), at once if there is none
   * (fail), or by force (steal). The image is brought up to date before. `signal`: aborts the waiting.
   */
  async promote({ mode = 'wait', timeout = null, signal = null } = {}) {
    if (this.#broken) throw this.#broken;
    if (this.#closed) throw new StoreError('closed', `the database ${this.#name} is closed`);
    if (!this.readOnly) return this.#becoming;
    if (!['wait', 'fail', 'steal'].includes(mode)) throw new StoreError('invalid', `mode ${mode} is none of wait, fail, steal`);
    const before = this.generation;
    await this.#takeLock(mode, timeout, signal);
    try {
      if (signal?.aborted) throw new StoreError('locked', 'it is not waited for any more');
      if (this.#closed) throw new StoreError('closed', `the database ${this.#name} was closed while it waited for the lock`);
      await this.#refreshing;
      if (this.#records === plain && this.#options.key) await this.#unlock(true);
      await (this.#becoming = this.#becomeWriter());
    } catch (error) {
      this.#lock?.release();
      this.#lock = null;
      throw described(error, `taking over ${this.#name}`);
    }
    if (this.generation !== before || this.recovered) for (const callback of [...this.#listeners]) callback(this);
  }

  // -- The browser's room

  #askToPersist() {
    const { storage } = this.#world;
    if (!storage) return;
    const question = storage.persist && this.#options.persist !== false ? storage.persist() : storage.persisted?.();
    let timer;
    const silence = new Promise((resolve) => (timer = setTimeout(resolve, PERSIST_TIMEOUT, null)));
    timer.unref?.();
    Promise.race([Promise.resolve(question), silence])
      .then((persisted) => (this.persisted = persisted ?? null), () => {})
      .finally(() => clearTimeout(timer));
  }

  #measureQuota() {
    if (Date.now() - this.#measured < QUOTA_EVERY) return;
    this.#measured = Date.now();
    const { storage } = this.#world;
    storage?.estimate?.().then((estimate) => (this.#estimate = estimate), () => {});
    storage?.persisted?.().then((persisted) => (this.persisted = persisted), () => {}); // another page may have asked since
  }

  /** Where the store stands; sizes in bytes, null where the browser does not say. The quota is asked for anew once a second at most. */
  status() {
    this.#measureQuota();
    const lock = !this.#world.locks ? 'unsupported' : this.#lock ? 'held' : this.readOnly && !this.#closed ? 'other' : 'none';
    return {
      kind: 'indexeddb',
      name: this.#name,
      generation: this.generation,
      size: this.#size,
      logRecords: this.#logRecords,
      logBytes: this.#logBytes,
      readOnly: this.readOnly,
      encrypted: this.#records !== plain,
      strict: Boolean(this.#options.strict),
      lock,
      persisted: this.persisted,
      usage: this.#estimate?.usage ?? null,
      quota: this.#estimate?.quota ?? null,
      failure: this.#broken?.message ?? null,
    };
  }

  // -- The end

  #break(error) {
    if (this.#closed || this.#broken) return;
    this.#broken = error;
    this.#shut();
  }

  #shut() {
    this.#channel?.close();
    this.#channel = null;
    this.#database?.close();
    this.#lock?.release();
    this.#lock = null;
  }

  /** Waits for what is under way and lets the next writer in. */
  async close() {
    if (this.#closed) return;
    this.#closed = true;
    await this.#refreshing?.catch(() => {});
    await this.#turn;
    if (!this.readOnly && !this.#broken) await this.#write(['log'], { ...this.#head, closed: true }, () => {}).catch(() => {});
    this.#shut();
    this.#image = null;
  }
}

// -- Images ----------------------------------------------------------------------------------------------------------------------------

// Applies one log record to an image of `size` bytes in a buffer that is large enough; returns the new size.
function applyDelta(image, size, delta) {
  if (delta.size < size) image.fill(0, delta.size, size);
  const { numbers, content, pageSize } = delta;
  for (let i = 0; i < numbers.length; i++) image.set(content.subarray(i * pageSize, (i + 1) * pageSize), numbers[i] * pageSize);
  return delta.size;
}

function rewriteSegment(index, before, deltas, oldSize, newSize) {
  const start = index * SEGMENT;
  const content = new Uint8Array(SEGMENT);
  if (before) content.set(before);
  let size = oldSize;
  for (const delta of deltas) {
    if (delta.size < size && delta.size < start + SEGMENT) content.fill(0, Math.max(0, delta.size - start));
    size = delta.size;
    const { numbers, pageSize } = delta;
    for (let i = 0; i < numbers.length; i++) {
      const at = numbers[i] * pageSize - start;
      if (at >= 0 && at < SEGMENT) content.set(delta.content.subarray(i * pageSize, (i + 1) * pageSize), at);
    }
  }
  return content.subarray(0, Math.min(SEGMENT, newSize - start));
}

// -- Whole databases -------------------------------------------------------------------------------------------------------------------

async function rawRecords(database) {
  const transaction = database.transaction(['log', 'segments']);
  const reads = ['log', 'segments'].map(async (name) => {
    const store = transaction.objectStore(name);
    const keys = answer(store.getAllKeys());
    const values = await answer(store.getAll());
    return [name, (await keys).map((key, i) => [key, values[i]])];
  });
  return Promise.all(reads);
}

// Copies every record as it is into a database of another name, which it returns.
async function copyDatabase(world, database, name) {
  const copy = `${name}${QUARANTINE}${new Date().toISOString().replace(/[:.]/g, '-')}`;
  const target = await openDatabase(world.indexedDB, PREFIX + copy);
  try {
    const stores = await rawRecords(database);
    const transaction = target.transaction(['log', 'segments'], 'readwrite', { durability: 'strict' });
    for (const [store, records] of stores) for (const [key, value] of records) transaction.objectStore(store).put(value, key);
    await settled(transaction);
  } finally {
    target.close();
  }
  return copy;
}

/**
 * Opens the database `name`, as its one writer or as a follower.
 * @param {string} name
 * @param {{mode?: 'wait'|'fail'|'follow'|'steal'|'read', timeout?: number|null, strict?: boolean, key?: string|Uint8Array|null,
 *   signal?: AbortSignal|null, persist?: boolean, iterations?: number, logRecords?: number, logBytes?: number, indexedDB?: IDBFactory,
 *   IDBKeyRange?: object, locks?: LockManager|null, broadcast?: Function|null, crypto?: Crypto, storage?: StorageManager|null}} options
 *   mode: while another one writes, wait for it (timeout in ms, null for ever), fail, follow it read-only, or take over by force;
 *   read never writes. signal: aborts the waiting. strict: every commit is flushed to the disk. persist: ask the browser never to evict.
 *   The rest is for tests.
 * @returns {Promise<PageStore>}
 */
export function openStore(name, options = {}) {
  return new PageStore(name, options).open();
}

/** Names of the databases kept here, those in quarantine left out. */
export async function listStores(options = {}) {
  return (await names(options)).filter((name) => !name.includes(QUARANTINE));
}

/** Names under which bad images were set aside; they can be exported and removed like any database. */
export async function listQuarantined(options = {}) {
  return (await names(options)).filter((name) => name.includes(QUARANTINE));
}

async function names(options) {
  const { indexedDB } = globals(options);
  if (!indexedDB?.databases) throw new StoreError('unavailable', 'this browser does not list its databases');
  const databases = await indexedDB.databases();
  return databases.filter(({ name }) => name.startsWith(PREFIX)).map(({ name }) => name.slice(PREFIX.length)).sort();
}

// Runs `work` holding the lock of `name`, where there are locks.
async function alone(name, options, work) {
  const { locks } = globals(options);
  const lock = locks ? await acquire(locks, PREFIX + name, 'fail', null) : { release() {} };
  if (!lock) throw new StoreError('locked', `another tab or worker writes the database ${name}`);
  try {
    return await work(globals(options));
  } finally {
    lock.release();
  }
}

/** Deletes the database `name`; refused while it has a writer. */
export function removeStore(name, options = {}) {
  return alone(name, options, ({ indexedDB }) => new Promise((resolve, reject) => {
    const request = indexedDB.deleteDatabase(PREFIX + name);
    const open = new StoreError('locked', `the database ${name} is still open elsewhere: it goes when that closes`);
    const timer = setTimeout(() => reject(open), DELETE_TIMEOUT);
    request.onsuccess = () => { clearTimeout(timer); resolve(); };
    request.onerror = () => { clearTimeout(timer); reject(described(request.error, `removing ${name}`)); };
  }));
}

/** Sets the database `name` aside under another name, which it returns, so that a new one can be started. */
export function quarantineStore(name, options = {}) {
  return alone(name, options, async (world) => {
    const database = await openDatabase(world.indexedDB, PREFIX + name);
    try {
      const copy = await copyDatabase(world, database, name);
      const transaction = database.transaction(['log', 'segments'], 'readwrite', { durability: 'strict' });
      for (const store of ['log', 'segments']) transaction.objectStore(store).clear();
      await settled(transaction);
      return copy;
    } finally {
      database.close();
    }
  });
}

/** The stored image as a plain SQLite file; also while another tab writes it. */
export async function exportStore(name, options = {}) {
  if (!(await names(options)).includes(name)) throw new StoreError('missing', `there is no database ${name}`);
  const store = await openStore(name, { ...options, mode: 'read' });
  const image = store.image ?? new Uint8Array(0);
  await store.close();
  return image;
}

/** Makes the database `name` of a plain SQLite file; an existing one only with `overwrite`. */
export async function importStore(name, image, options = {}) {
  sqlitePageSize(image);
  const store = await openStore(name, { ...options, mode: 'fail' });
  try {
    if (store.generation && !options.overwrite) throw new StoreError('exists', `there is a database ${name} already`);
    await store.commit({ full: image });
  } finally {
    await store.close();
  }
}
