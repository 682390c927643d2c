// A file of the real engine and its store in step: what is acknowledged, when, and what a failure does. Stores in fake-indexeddb.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { IDBFactory, IDBKeyRange } from 'fake-indexeddb';
import { createCapture } from '../sqljs_dbapi/js/capture.mjs';
import { createKeeper } from '../sqljs_dbapi/js/keeper.mjs';
import { exportStore, openStore, removeStore } from '../sqljs_dbapi/js/pagestore.mjs';
import { Locks } from './locks.mjs';
import { startEngine } from './sqlite.mjs';

const capture = createCapture();
const engine = await startEngine(capture);
assert.equal(capture.calibrate(engine), 'capture', capture.reason);

const world = (more = {}) => ({ indexedDB: new IDBFactory(), IDBKeyRange, locks: null, broadcast: null, storage: null, ...more });

async function open(options, timing = { interval: 60_000 }) {
  const store = await openStore('m', options);
  return createKeeper(engine, capture, store, timing);
}

function read(image, sql) {
  const database = new engine.sqlite.Database(image);
  try {
    assert.equal(database.exec('PRAGMA integrity_check')[0].values[0][0], 'ok');
    return database.exec(sql)[0].values[0][0];
  } finally {
    database.close();
  }
}

const rows = 'SELECT count(*) FROM t';
const stored = async (options, sql = rows) => read(await exportStore('m', options), sql);
const insert = (keeper, i) => engine.runScript(keeper.path, `INSERT INTO t VALUES(${i}, randomblob(${(i * 997) % 7000}))`);
const create = (keeper) => engine.runScript(keeper.path, 'CREATE TABLE t(i INTEGER PRIMARY KEY, x BLOB)');

/** Lets the next commits of a store fail as given. */
function failing(keeper, code, times = Infinity) {
  const { store } = keeper;
  const commit = store.commit.bind(store);
  let left = times;
  store.commit = async (change) => {
    await sleep(1);
    if (left-- > 0) throw Object.assign(new Error(`made to fail: ${code}`), { code });
    return commit(change);
  };
  return () => { store.commit = commit; };
}

test('flush() means everything committed before it, also while another one is under way', async () => {
  const options = world();
  const keeper = await open(options);
  create(keeper);
  for (let i = 1; i <= 60; i++) {
    insert(keeper, i);
    const flushes = [keeper.flush()];
    if (i % 3 === 0) {
      await sleep(0);
      insert(keeper, 1000 + i);
      flushes.push(keeper.flush(), keeper.flush());
    }
    await flushes.at(-1);
    assert.equal(await stored(options, 'SELECT max(i % 1000) FROM t'), i);
    assert.equal(await stored(options), i + Math.floor(i / 3));
    assert.equal(keeper.pending, false);
    await Promise.all(flushes);
  }
  await keeper.close();
});

test('an interval stores in time, 0 at once, and a close what is left', async () => {
  for (const interval of [200, 0]) {
    const options = world();
    const keeper = await open(options, { interval });
    create(keeper);
    insert(keeper, 1);
    assert.ok(keeper.status().lag >= 0);
    await sleep(interval || 30);
    assert.equal(await stored(options), 1);
    assert.equal(keeper.status().lag, 0);
    insert(keeper, 2);
    await keeper.close();
    assert.equal(await stored(options), 2);
    await assert.rejects(keeper.flush(), { code: 'closed' });
  }
});

const big = (keeper, i, bytes) => engine.runScript(keeper.path, `INSERT INTO t VALUES(${i}, randomblob(${bytes}))`);

test('a flush begins the sooner the longer it will take', async () => {
  const options = world();
  const keeper = await open(options, { interval: 600 });
  create(keeper);
  insert(keeper, 1);
  assert.notEqual(keeper.status().pendingBytes, 0); // later
  await keeper.flush();
  big(keeper, 2, 12 << 20);
  assert.equal(keeper.status().pendingBytes, 0); // at once: nothing is known of this machine yet
  await keeper.flush();
  const { store } = keeper;
  const commit = store.commit.bind(store);
  store.commit = async (change) => {
    await sleep(450);
    return commit(change);
  };
  insert(keeper, 3);
  await keeper.flush(); // from which it learns
  insert(keeper, 4);
  await sleep(600);
  assert.equal(await stored(options), 4);
  await keeper.close();
});

test('what is due does not wait for a large commit that came when the event loop could not run', async () => {
  for (const fails of [false, true]) {
    const options = world();
    const keeper = await open(options, { interval: 100 });
    create(keeper);
    big(keeper, 1, 8 << 20);
    await keeper.flush();
    const { store } = keeper;
    const commit = store.commit.bind(store);
    const changes = [];
    store.commit = async (change) => {
      changes.push(change);
      if (fails && changes.length === 1) throw Object.assign(new Error('made to fail'), { code: 'failed' });
      await commit(change);
      if (changes.length === 1) assert.equal(await stored(options), 2);
    };
    insert(keeper, 2);
    while (keeper.status().lag < 60);
    engine.runScript(keeper.path, `DELETE FROM t WHERE i=1; VACUUM`);
    insert(keeper, 3);
    await keeper.flush().catch(() => {});
    await keeper.flush();
    assert.ok(changes[0].pages.size < 10, `${changes[0].pages.size} pages`);
    assert.ok(changes[0].size > 8e6 && changes.at(-1).size < 1e6);
    assert.equal(await stored(options, 'SELECT group_concat(i) FROM t'), '2,3');
    assert.equal(keeper.pending, false);
    await keeper.close();
    assert.equal(await stored(options), 2);
  }
});

test('a failure in the background is kept, loses no page, is tried again and told once', async () => {
  const options = world();
  const keeper = await open(options, { interval: 20 });
  create(keeper);
  insert(keeper, 1);
  await keeper.flush();
  const mend = failing(keeper, 'quota');
  insert(keeper, 2);
  await sleep(100);
  insert(keeper, 3);
  assert.equal(keeper.takeFailure().code, 'quota');
  assert.equal(keeper.takeFailure(), null);
  assert.ok(keeper.status().lag >= 80);
  await assert.rejects(keeper.flush(), { code: 'quota' });
  await assert.rejects(keeper.close(), { code: 'quota' }); // still open
  assert.equal(await stored(options), 1);
  mend();
  insert(keeper, 4);
  await keeper.flush();
  assert.equal(await stored(options), 4);
  assert.equal(keeper.status().failure, null);
  await keeper.close();
});

test('random failures between random commits never leave a gap', async () => {
  const options = world({ logRecords: 6 });
  const keeper = await open(options, { interval: 1 });
  create(keeper);
  await keeper.flush();
  let last = 0;
  for (let i = 1; i <= 120; i++) {
    const mend = i % 4 === 0 ? failing(keeper, 'failed', 1 + (i % 3)) : null;
    insert(keeper, i);
    if (i % 10 === 0) engine.runScript(keeper.path, `DELETE FROM t WHERE i=${i - 5}; INSERT INTO t VALUES(${i - 5}, 'again')`);
    if (i % 30 === 0) engine.runScript(keeper.path, 'VACUUM');
    await (i % 2 ? keeper.flush().catch(() => {}) : sleep(1));
    mend?.();
    const now = await stored(options, "SELECT count(*) || '/' || ifnull(max(i), 0) FROM t");
    const [count, most] = now.split('/').map(Number);
    assert.equal(count, most, `after ${i}`);
    assert.ok(most >= last);
    last = most;
  }
  await keeper.flush();
  assert.equal(await stored(options), 120);
  await keeper.close();
});

test('a fenced writer says so at every flush, and closes', async () => {
  const options = world();
  const first = await open(options);
  create(first);
  await first.flush();
  const second = await open(options);
  insert(first, 1);
  await assert.rejects(first.flush(), { code: 'fenced' });
  await assert.rejects(first.flush(), { code: 'fenced' });
  assert.equal(first.takeFailure().code, 'fenced');
  insert(second, 2);
  await second.flush();
  await assert.rejects(first.close(), { code: 'fenced' });
  await second.close();
  assert.equal(await stored(options, 'SELECT group_concat(i) FROM t'), '2');
});

test('a follower sees every state whole, and writes once it is promoted', async () => {
  const options = world({ broadcast: BroadcastChannel });
  const writer = await open(options);
  create(writer);
  await writer.flush();
  const follower = await open({ ...options, mode: 'follow' });
  assert.equal(follower.readOnly, true);
  for (let i = 1; i <= 30; i++) {
    insert(writer, i);
    await writer.flush();
    if (i % 5) continue;
    while (read(follower.export(), rows) !== i) await sleep(2);
  }
  insert(writer, 31);
  await writer.close();
  await follower.promote();
  assert.equal(read(follower.export(), rows), 31);
  insert(follower, 32);
  await follower.flush();
  assert.equal(await stored(options), 32);
  await follower.close();
});

test('a follower takes no commit before it can store it, and says so to everybody who promotes it', async () => {
  const options = world({ locks: new Locks(), broadcast: BroadcastChannel });
  const writer = await open(options);
  create(writer);
  big(writer, 1, 20_000);
  await writer.flush();
  const follower = await open({ ...options, mode: 'follow' });
  const { store } = follower;
  const promote = store.promote.bind(store);
  let second = null; // promote() once more, while the first one has the lock and is not done
  store.promote = async (...asked) => {
    await promote(...asked);
    assert.ok(second || (follower.readOnly && !store.readOnly));
    assert.equal(follower.status().readOnly, follower.readOnly);
    second ??= follower.promote();
  };
  const promoted = follower.promote();
  await sleep(20);
  await writer.close();
  await promoted;
  big(follower, 2, 20_000);
  await second;
  big(follower, 3, 20);
  await follower.flush();
  assert.equal(await stored(options, 'SELECT group_concat(i) FROM t'), '1,2,3');
  await follower.close();
});

test('a commit that is made while the database closes is stored', async () => {
  const options = world();
  const keeper = await open(options);
  create(keeper);
  insert(keeper, 1);
  const { store } = keeper;
  const commit = store.commit.bind(store);
  let more = 3;
  store.commit = async (change) => {
    await commit(change);
    if (more-- > 0) insert(keeper, 10 + more);
  };
  await keeper.close();
  assert.equal(await stored(options), 4);
});

test('rows given up half-read commit, and that is stored', async () => {
  const options = world();
  const keeper = await open(options);
  create(keeper);
  await keeper.flush();
  const { sqlite } = engine;
  const connection = engine.open(keeper.path);
  const sql = sqlite.stringToNewUTF8('INSERT INTO t(i) VALUES(1), (2), (3) RETURNING i');
  const slot = sqlite._malloc(4);
  sqlite._sqlite3_prepare_v2(connection, sql, -1, slot, 0);
  const statement = new DataView(engine.memory.buffer).getUint32(slot, true);
  sqlite._sqlite3_step(statement);
  assert.equal(keeper.pending, false);
  engine.reset(statement);
  assert.equal(keeper.pending, true);
  await keeper.flush();
  assert.equal(await stored(options), 3);
  sqlite._sqlite3_finalize(statement);
  sqlite._free(slot);
  sqlite._free(sql);
  engine.close(connection);
  await keeper.close();
});

test('a follower whose database was removed says so at every look', async () => {
  const options = world({ locks: new Locks(), broadcast: BroadcastChannel });
  const writer = await open(options);
  create(writer);
  await writer.flush();
  const follower = await open({ ...options, mode: 'follow' });
  assert.equal(follower.takeFailure(), null);
  await writer.close();
  await removeStore('m', options);
  for (let looked = 0; looked < 2; looked++) assert.equal(follower.takeFailure()?.code, 'gone');
  await follower.close();
});

test('another image takes the place of this one', async () => {
  const options = world();
  const keeper = await open(options);
  create(keeper);
  insert(keeper, 1);
  await keeper.flush();
  const other = new engine.sqlite.Database();
  other.exec('PRAGMA page_size=8192; CREATE TABLE t(i); INSERT INTO t VALUES(1), (2), (3)');
  await keeper.replace(other.export());
  other.close();
  assert.equal(await stored(options), 3);
  engine.runScript(keeper.path, 'INSERT INTO t VALUES(4)');
  await keeper.close();
  assert.equal(await stored(options), 4);
});
