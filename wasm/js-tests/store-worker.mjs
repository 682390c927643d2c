// The worker of store.html: the real engine and the real page store, without Python. A page may import `calls` and do it all by itself.

import { createCapture } from '../sqljs_dbapi/js/capture.mjs';
import { start } from '../sqljs_dbapi/js/driver.mjs';
import { createKeeper } from '../sqljs_dbapi/js/keeper.mjs';
import { findLayout } from '../sqljs_dbapi/js/layout.mjs';
import * as pagestore from '../sqljs_dbapi/js/pagestore.mjs';

let engine;
let capture;
let keeper;
let connection = 0;

async function load() {
  if (engine) return;
  const dist = '../node_modules/sql.js/dist/';
  const [source, wasm] = await Promise.all([
    fetch(`${dist}sql-wasm-browser.js`).then((it) => it.text()),
    fetch(`${dist}sql-wasm.wasm`).then((it) => it.arrayBuffer()),
  ]);
  const initSqlJs = new Function('module', 'exports', 'define', `${source}\nreturn initSqlJs;`)();
  capture = createCapture();
  engine = await start({ initSqlJs, wasmBytes: new Uint8Array(wasm), findLayout, wrapImports: capture.wrapImports });
  capture.calibrate(engine);
}

function execute(sql) {
  const { sqlite } = engine;
  const at = sqlite.stringToNewUTF8(sql);
  const code = sqlite._sqlite3_exec(connection, at, 0, 0, 0);
  sqlite._free(at);
  if (code) throw new Error(sqlite.UTF8ToString(sqlite._sqlite3_errmsg(connection)));
}

function query(image, sql) {
  const database = new engine.sqlite.Database(image);
  try {
    return database.exec(sql)[0]?.values ?? [];
  } finally {
    database.close();
  }
}

const median = (times) => times.toSorted((a, b) => a - b)[times.length >> 1];
const round = (ms) => Math.round(ms * 1000) / 1000;

/** Milliseconds to read all records of an IndexedDB database, nothing done with them. */
async function bareReading(name) {
  const answer = (request) => new Promise((resolve) => { request.onsuccess = () => resolve(request.result); });
  const before = performance.now();
  const database = await answer(indexedDB.open(name));
  await Promise.all(['log', 'segments'].map((store) => answer(database.transaction(store).objectStore(store).getAll())));
  database.close();
  return performance.now() - before;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const TABLE = 'CREATE TABLE IF NOT EXISTS t(i INTEGER PRIMARY KEY, at REAL, x BLOB); CREATE INDEX IF NOT EXISTS ta ON t(at)';

export const calls = {
  async open({ name, interval = 1000, ...options }) {
    await load();
    const store = await pagestore.openStore(name, options);
    keeper = createKeeper(engine, capture, store, { interval });
    connection = engine.open(keeper.path);
    return { readOnly: keeper.readOnly, recovered: store.recovered, capture: capture.mode };
  },

  run: (sql) => engine.runScript(keeper.path, sql),
  flush: () => keeper.flush(),
  status: () => keeper.status(),
  promote: (options) => keeper.promote(options),
  read: (sql) => query(keeper.export(), sql),
  exported: async (name) => (await load(), query(await pagestore.exportStore(name), 'PRAGMA integrity_check; ')[0][0]),

  /** What would open after a crash at this moment. */
  async stored({ name }) {
    const image = await pagestore.exportStore(name);
    return { whole: query(image, 'PRAGMA integrity_check')[0][0], rows: query(image, 'SELECT count(*) FROM t')[0][0] };
  },
  takeFailure: () => keeper.takeFailure()?.code ?? null,
  closeStore: () => keeper.close(),

  async close() {
    engine.close(connection);
    await keeper.close();
  },

  /** Whole, and without gaps: how many rows. */
  verify() {
    const image = keeper.export();
    if (!query(image, "SELECT 1 FROM sqlite_schema WHERE name='t'").length) return { whole: 'ok', count: 0, last: 0 };
    const [[count, last]] = query(image, "SELECT count(*), ifnull(max(i), 0) FROM t WHERE i>0");
    return { whole: query(image, 'PRAGMA integrity_check')[0][0], count, last };
  },

  /** Commits row after row until killed: awaits each (interval 0) or leaves them to the interval; tells when each was made, in ms. */
  work({ durable }) {
    const tell = (i, at, vacuum = false) => {
      const now = Date.now();
      const { lag, flushing, flushTook } = keeper.status();
      self.postMessage({ news: { i, at, now, lag, flushing, flushTook, vacuum } });
    };
    (async () => {
      engine.runScript(keeper.path, TABLE);
      for (let i = calls.verify().last + 1; ; i++) {
        engine.runScript(keeper.path, `BEGIN; INSERT INTO t VALUES(${i}, ${Math.random()}, randomblob(${(i * 7919) % 9000}));
          UPDATE t SET x=randomblob(${(i * 31) % 5000}) WHERE i=${1 + ((i * 13) % i)}; COMMIT`);
        const at = Date.now();
        if (durable ? i % 40 === 0 : Math.random() < 1 / 400) {
          await keeper.flush(); // as the driver does, for the event loop stands still until it is done
          if (!durable) tell(i, at, true);
          engine.runScript(keeper.path, 'VACUUM');
        }
        if (durable) await keeper.flush();
        tell(i, at);
        await pause(durable ? 0 : 3);
      }
    })();
  },

  /** Milliseconds of a durable commit (one row of a database of `size` bytes), of opening it, and of their floors. */
  async measure({ name, size, commits }) {
    const { indexedDB } = globalThis;
    const bare = await new Promise((resolve, reject) => {
      const request = indexedDB.open('floor', 1);
      request.onupgradeneeded = () => request.result.createObjectStore('pages');
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    const put = (page, key) => new Promise((resolve, reject) => {
      const transaction = bare.transaction('pages', 'readwrite', { durability: 'relaxed' });
      transaction.objectStore('pages').put(page, key);
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
      transaction.commit();
    });
    await calls.open({ name, interval: 60_000 });
    execute(TABLE);
    const rows = Math.floor(size / 1040);
    execute(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<${rows})
      INSERT INTO t SELECT i, i, randomblob(1000) FROM n`);
    await keeper.flush();
    await keeper.store.idle();
    const [times, sql, floor] = [[], [], []];
    for (let k = 0; k < commits + 100; k++) {
      const i = 1 + ((k * 7919) % rows);
      const before = performance.now();
      execute(`UPDATE t SET x=randomblob(1000) WHERE i=${i}`);
      const middle = performance.now();
      await keeper.flush();
      const after = performance.now();
      await put(new Uint8Array(4096).fill(k), k);
      if (k < 100) continue;
      sql.push(middle - before);
      times.push(after - before);
      floor.push(performance.now() - after);
    }
    const status = keeper.status();
    await calls.close();
    const [opening, reading] = [[], []];
    for (let k = 0; k < 7; k++) {
      const before = performance.now();
      await calls.open({ name });
      opening.push(performance.now() - before);
      if (!keeper.status().size) throw new Error('nothing was opened');
      await calls.close();
      reading.push(await bareReading(`sqljs:${name}`));
    }
    bare.close();
    const sorted = times.toSorted((a, b) => a - b);
    return {
      size: status.size, capture: status.capture, commit: round(median(times)), p99: round(sorted[Math.floor(times.length * 0.99)]),
      sql: round(median(sql)), floor: round(median(floor)), open: round(median(opening)), openFloor: round(median(reading)),
    };
  },
};

const inWorker = typeof document === 'undefined';
if (inWorker) self.onmessage = async ({ data: { id, name, argument } }) => {
  try {
    postMessage({ id, value: await calls[name](argument) });
  } catch (error) {
    postMessage({ id, error: { message: String(error?.message ?? error), code: error?.code } });
  }
};
