// Which pages did SQLite write? Read off its own write calls: the wasm imports are wrapped before sql.js is instantiated.
//
// The names of the imports are minified, so they are told apart by what they do to a scratch database (seek, write, truncate, open);
// then a second scratch database is replayed from the captured pages and compared with its export. Where that fails, and wherever
// a later check finds a difference, pages are found by comparing hashes of an export (diff): slower, and it needs no such trick.
// Every take() is a committed state: pages written since the last commit are kept apart until mark().

const MASKED = [[24, 28], [40, 44], [92, 96]]; // counters in the header which an export counts on by itself
const LOCK_BYTE = 0x40000000; // the page that holds it is never written
const CHECK_BYTES = 4 << 20; // written between two checks against an export, or the size of the database if that is more
const FIRST_CHECK = 1 << 20;

const PROBE = `PRAGMA journal_mode=delete; CREATE TABLE a(x); INSERT INTO a VALUES(zeroblob(20000)); DELETE FROM a; VACUUM;`;
const REHEARSAL = [
  `CREATE TABLE a(i INTEGER PRIMARY KEY, x TEXT); CREATE INDEX ax ON a(x);
   WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<120) INSERT INTO a SELECT i, hex(randomblob(40)) FROM n;`,
  `PRAGMA cache_size=4; BEGIN; UPDATE a SET x=hex(randomblob(50)); ROLLBACK; BEGIN; DELETE FROM a WHERE i%3=0; COMMIT;`,
  `DELETE FROM a WHERE i>40; VACUUM; INSERT INTO a(x) VALUES('last');`,
];

const bare = (path) => path.replace(/^\/+/, '');

function pageSizeOf(image) {
  if (image.length < 512) return 0;
  const size = (image[16] << 8) | image[17];
  return size === 1 ? 65536 : size;
}

// Two 32-bit lanes over one page; on page 0 the counters count as zero.
function hashPage(page, number, table) {
  let bytes = page;
  if (number === 0 || page.byteOffset % 4) bytes = page.slice();
  if (number === 0) for (const [start, end] of MASKED) bytes.fill(0, start, end);
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
  let a = 0x811c9dc5;
  let b = number;
  for (let i = 0; i < words.length; i++) {
    a = Math.imul(a ^ words[i], 0x01000193);
    b = Math.imul((b << 13) | (b >>> 19), 0x85ebca6b) + words[i];
  }
  table[0] = a ^ (a >>> 15);
  table[1] = b ^ (b >>> 16);
}

// Unused pages of the file: SQLite neither writes nor reads what they hold, so images may differ in them.
function freePages(image, pageSize) {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const free = new Set([Math.floor(LOCK_BYTE / pageSize)]);
  const trunks = new Set();
  for (let trunk = view.getUint32(32); trunk && trunk * pageSize <= image.length && !trunks.has(trunk); ) {
    trunks.add(trunk);
    const start = (trunk - 1) * pageSize;
    const leaves = Math.min(view.getUint32(start + 4), pageSize / 4 - 2);
    for (let i = 0; i < leaves; i++) free.add(view.getUint32(start + 8 + 4 * i) - 1);
    trunk = view.getUint32(start);
  }
  return free;
}

/** The hashes of the pages of one image, by number. */
class PageHashes {
  #table = new Int32Array(0);
  #found = new Int32Array(2);
  count = 0;

  set(number, page) {
    if (this.#table.length < 2 * number + 2) {
      const table = new Int32Array(Math.max(1024, 4 * number + 4));
      table.set(this.#table);
      this.#table = table;
    }
    hashPage(page, number, this.#found);
    this.#table.set(this.#found, 2 * number);
    this.count = Math.max(this.count, number + 1);
  }

  has(number, page) {
    if (number >= this.count) return false;
    hashPage(page, number, this.#found);
    return this.#table[2 * number] === this.#found[0] && this.#table[2 * number + 1] === this.#found[1];
  }

  forget(number) {
    if (number < this.count) this.#table[2 * number] ^= 1;
  }

  cut(count) {
    this.count = Math.min(this.count, count);
  }

  reset(image, pageSize) {
    this.count = 0;
    for (let at = 0, number = 0; at < image.length; at += pageSize, number++) this.set(number, image.subarray(at, at + pageSize));
  }
}

/** The changes of one file. Page numbers count from 0, sizes are in bytes. */
class Tracker {
  #capture; #engine; #path;
  #pageSize = 0;
  #written = new Map(); #size = 0; // as in the file, perhaps within a transaction
  #committed = new Map(); #committedSize = 0; #takenSize = 0;
  #unknown = false; // something was written that pages do not describe
  #wal = false; // commits go to another file
  #owed = false; // what was taken came back
  #hashes = new PageHashes();
  #unhashed = null;
  #untilCheck = FIRST_CHECK;

  constructor(capture, engine, path, image) {
    this.#capture = capture;
    this.#engine = engine;
    this.#path = path;
    if (!image?.length) return;
    this.#pageSize = pageSizeOf(image);
    this.#size = this.#committedSize = this.#takenSize = image.length;
    this.#unhashed = image; // opening does not wait for it
    this.#wal = image[18] === 2 || image[19] === 2;
  }

  /** Bytes that wait to be taken; in diff mode not known and so 0. */
  get pendingBytes() { return this.#committed.size * this.#pageSize; }

  write(offset, bytes) {
    if (!this.#pageSize && offset === 0) this.#pageSize = bytes.length;
    if (bytes.length !== this.#pageSize || offset % this.#pageSize) {
      this.#unknown = true;
      return;
    }
    const number = offset / this.#pageSize;
    const before = this.#written.get(number);
    if (before) before.set(bytes);
    else this.#written.set(number, bytes.slice());
    if (number === 0) this.#wal = bytes[18] === 2 || bytes[19] === 2;
    this.#size = Math.max(this.#size, offset + bytes.length);
  }

  truncate(size) {
    this.#untilCheck -= Math.max(0, this.#size - size);
    this.#size = size;
    if (!this.#pageSize) return;
    if (size % this.#pageSize) this.#unknown = true;
    for (const number of this.#written.keys()) if (number * this.#pageSize >= size) this.#written.delete(number);
  }

  lose() { this.#unknown = true; }

  /** To be called right after each commit: what was written until now is a state to be stored. */
  mark() {
    if (this.#committed.size) for (const [number, page] of this.#written) this.#committed.set(number, page);
    else [this.#committed, this.#written] = [this.#written, this.#committed];
    this.#written.clear();
    if (this.#size < this.#committedSize) {
      for (const number of this.#committed.keys()) if (number * this.#pageSize >= this.#size) this.#committed.delete(number);
    }
    this.#committedSize = this.#size;
  }

  /**
   * What was committed since the last take: `{pages, size, pageSize}`, or `{full, size, pageSize}` where only the whole image will do.
   * null: nothing. undefined: not now, a write transaction is open (only diff mode has to say so).
   */
  take() {
    const idle = !this.#engine.inWriteTransaction(this.#path);
    if (idle) this.mark();
    if (this.#unhashed) this.#hashes.reset(this.#unhashed, pageSizeOf(this.#unhashed));
    this.#unhashed = null;
    if (this.#capture.mode === 'diff' || this.#unknown || this.#wal) return idle ? this.#diff() : undefined;
    if (!this.#committed.size && this.#committedSize === this.#takenSize) return null;
    const taken = { pages: this.#committed, size: this.#committedSize, pageSize: this.#pageSize };
    this.#committed = new Map();
    this.#takenSize = taken.size;
    for (const [number, page] of taken.pages) this.#hashes.set(number, page);
    this.#hashes.cut(taken.size / taken.pageSize);
    this.#owed = false;
    this.#untilCheck -= taken.pages.size * taken.pageSize;
    if (idle && this.#untilCheck <= 0) this.#check(taken);
    return taken;
  }

  // Compares with an export; where that differs, its pages join the taken ones, and capture is trusted no more.
  #check(taken) {
    const image = this.#engine.exportFile(this.#path);
    this.#untilCheck = Math.max(CHECK_BYTES, image.length);
    const wrong = pageSizeOf(image) === taken.pageSize ? this.#changedPages(image, freePages(image, taken.pageSize)) : null;
    if (wrong && !wrong.size && image.length === taken.size) return;
    this.#capture.distrust(`${wrong ? wrong.size : 'all'} pages of ${this.#path} were written unseen`);
    if (!wrong) Object.assign(taken, { pages: undefined, full: image, pageSize: pageSizeOf(image) });
    else for (const [number, page] of wrong) taken.pages.set(number, page);
    taken.size = image.length;
    this.#know(image, taken.pageSize);
  }

  #changedPages(image, except) {
    const changed = new Map();
    for (let number = 0; number * this.#pageSize < image.length; number++) {
      const page = image.subarray(number * this.#pageSize, (number + 1) * this.#pageSize);
      if (!this.#hashes.has(number, page) && !except?.has(number)) changed.set(number, page);
    }
    return changed;
  }

  #diff() {
    const image = this.#engine.exportFile(this.#path);
    const pageSize = pageSizeOf(image);
    const known = pageSize === this.#pageSize && this.#hashes.count > 0;
    const pages = known ? this.#changedPages(image) : null;
    const changed = known ? pages.size > 0 || image.length !== this.#takenSize : image.length > 0;
    this.#written.clear();
    this.#committed.clear();
    this.#unknown = false;
    if (!changed && !this.#owed) return null;
    this.#owed = false;
    this.#know(image, pageSize);
    return known ? { pages, size: image.length, pageSize } : { full: image, size: image.length, pageSize };
  }

  #know(image, pageSize) {
    this.#hashes.reset(image, pageSize);
    this.#pageSize = pageSize;
    this.#size = this.#committedSize = this.#takenSize = image.length;
  }

  /** Gives back what could not be stored; the next take() brings it again, under what was committed since. */
  restore(taken) {
    this.#owed = true;
    if (taken.full || taken.pageSize !== this.#pageSize) {
      this.#unknown = true;
      this.#hashes.reset(new Uint8Array(0), 1);
      return;
    }
    this.#takenSize = -1;
    for (const [number, page] of taken.pages) {
      this.#hashes.forget(number);
      if (number * taken.pageSize < this.#committedSize && !this.#committed.has(number)) this.#committed.set(number, page);
    }
  }

  stop() { this.#capture.listen(this.#path, null); }
}

/** @returns {Capture} one per realm: hand its wrapImports to the engine's start, then calibrate */
export function createCapture() {
  return new Capture();
}

class Capture {
  /** 'capture' when calibrated and never found wrong, else 'diff'. */
  mode = 'diff';
  /** Why the mode is diff. */
  reason = 'not calibrated';

  #slots = []; // one per import: {call, hook}
  #probe = null;
  #memory = null; #bytes = new Uint8Array(0); #words = new Uint32Array(0);
  #paths = new Map(); // by file descriptor
  #positions = new Map();
  #trackers = new Map(); // by path
  #utf8 = new TextDecoder();

  /** Replaces the functions in the wasm imports by ones that can be listened to. */
  wrapImports = (imports) => {
    for (const namespace of Object.values(imports)) {
      for (const [name, call] of Object.entries(namespace)) {
        if (typeof call !== 'function') continue;
        const slot = { hook: null };
        this.#slots.push(slot);
        namespace[name] = (...args) => {
          if (slot.hook) return slot.hook(call, args);
          if (!this.#probe) return call(...args);
          return this.#probe(slot, call, args);
        };
      }
    }
    return imports;
  };

  /**
   * Finds out which import does what on a scratch database, and proves on another one that captured pages make the same image.
   * @returns {'capture'|'diff'}
   */
  calibrate(engine) {
    try {
      this.#memory = engine.memory;
      if (!this.#slots.length) throw new Error('the imports were not wrapped');
      this.#install(this.#observe(engine));
      this.mode = 'capture';
      this.#rehearse(engine);
      this.reason = null;
    } catch (error) {
      this.distrust(error.message);
    }
    return this.mode;
  }

  distrust(reason) {
    this.mode = 'diff';
    this.reason = reason;
    this.#probe = null;
    for (const slot of this.#slots) slot.hook = null;
  }

  /** Follows the file `path`, whose content is `image` now (null: empty). No write transaction may be open. */
  track(engine, path, image = null) {
    const tracker = new Tracker(this, engine, path, image);
    this.listen(path, tracker);
    return tracker;
  }

  /** Tells `tracker` (null: nobody) of the writes to a file. */
  listen(path, tracker) {
    if (tracker) this.#trackers.set(bare(path), tracker);
    else this.#trackers.delete(bare(path));
  }

  #views() {
    if (this.#bytes.buffer !== this.#memory.buffer) {
      this.#bytes = new Uint8Array(this.#memory.buffer);
      this.#words = new Uint32Array(this.#memory.buffer);
    }
  }

  #string(at) {
    this.#views();
    return this.#utf8.decode(this.#bytes.slice(at, this.#bytes.indexOf(0, at)));
  }

  // Runs the probe script and tells from the calls which import writes, seeks, truncates and opens.
  #observe(engine) {
    const path = engine.createFile(null);
    const calls = [];
    this.#probe = (slot, call, args) => {
      const seen = { slot, args, start: null };
      if (args.length === 4 && args[2] === 1 && args.every((it) => typeof it === 'number')) {
        this.#views();
        const at = this.#words[args[1] >> 2];
        const length = this.#words[(args[1] >> 2) + 1];
        const fits = args[1] % 4 === 0 && length >= 512 && at + length <= this.#bytes.length;
        if (fits) seen.start = this.#utf8.decode(this.#bytes.slice(at, at + 15));
      }
      seen.result = call(...args);
      calls.push(seen);
      return seen.result;
    };
    try {
      engine.runScript(path, PROBE);
    } finally {
      this.#probe = null;
      engine.removeFile(path);
    }
    const at = calls.findIndex((it) => it.start === 'SQLite format 3' && it.result === 0);
    if (at < 0) throw new Error('no import was seen to write a page');
    const file = calls[at].args[0];
    const before = calls.slice(0, at);
    const takes = (it, count) => it.args.length === count && it.args[0] === file && typeof it.args[1] === 'bigint' && it.result === 0;
    const seek = before.findLast((it) => takes(it, 4));
    const cut = calls.find((it) => takes(it, 2));
    const open = before.findLast((it) => it.args.length === 4 && it.result === file && bare(this.#string(it.args[1])) === bare(path));
    if (!seek || !cut || !open) throw new Error(`the imports to ${!seek ? 'seek' : !cut ? 'truncate' : 'open'} were not recognised`);
    return { write: calls[at].slot, seek: seek.slot, truncate: cut.slot, open: open.slot };
  }

  #install({ write, seek, truncate, open }) {
    const trackerOf = (file) => this.#trackers.get(this.#paths.get(file));
    open.hook = (call, args) => {
      const file = call(...args);
      if (typeof file === 'number' && file >= 0) {
        this.#paths.set(file, bare(this.#string(args[1])));
        this.#positions.delete(file);
      }
      return file;
    };
    seek.hook = (call, args) => {
      const result = call(...args);
      if (result === 0 && args[2] === 0) this.#positions.set(args[0], Number(args[1]));
      else this.#positions.delete(args[0]);
      return result;
    };
    write.hook = (call, args) => {
      const [file, vector, count] = args;
      const tracker = trackerOf(file);
      if (tracker) {
        // SQLite seeks before each write; a write that did not is not understood.
        const position = this.#positions.get(file);
        this.#views();
        const at = this.#words[vector >> 2];
        const length = this.#words[(vector >> 2) + 1];
        if (position === undefined || count !== 1) tracker.lose();
        else tracker.write(position, this.#bytes.subarray(at, at + length));
        this.#positions.delete(file);
      }
      const result = call(...args);
      if (tracker && result !== 0) tracker.lose();
      return result;
    };
    truncate.hook = (call, args) => {
      const result = call(...args);
      const tracker = trackerOf(args[0]);
      if (tracker && result === 0) tracker.truncate(Number(args[1]));
      else tracker?.lose();
      return result;
    };
  }

  #rehearse(engine) {
    const path = engine.createFile(null);
    const tracker = this.track(engine, path);
    try {
      let image = new Uint8Array(0);
      for (const script of REHEARSAL) {
        engine.runScript(path, script);
        const taken = tracker.take();
        if (!taken?.pages) throw new Error('a commit was not captured');
        const next = new Uint8Array(taken.size);
        next.set(image.subarray(0, taken.size));
        for (const [number, page] of taken.pages) next.set(page, number * taken.pageSize);
        image = next;
        const truth = engine.exportFile(path);
        const free = freePages(truth, taken.pageSize);
        if (truth.length !== image.length) throw new Error('captured pages make an image of another size');
        const hashes = new PageHashes();
        hashes.reset(image, taken.pageSize);
        for (let number = 0; number < hashes.count; number++) {
          const page = truth.subarray(number * taken.pageSize, (number + 1) * taken.pageSize);
          if (!free.has(number) && !hashes.has(number, page)) throw new Error(`captured page ${number} is not what SQLite exports`);
        }
      }
    } finally {
      tracker.stop();
      engine.removeFile(path);
    }
  }
}
