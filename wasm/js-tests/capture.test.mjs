// Captured pages make the image that SQLite exports, whatever SQLite does; and where they would not, diff takes over. Real sql.js.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createCapture } from '../sqljs_dbapi/js/capture.mjs';
import { startEngine } from './sqlite.mjs';

/** A mirror fed by takes only. */
class Mirror {
  image = new Uint8Array(0);

  apply(taken) {
    if (!taken) return;
    if (taken.full) {
      this.image = taken.full.slice();
      return;
    }
    const next = new Uint8Array(taken.size);
    next.set(this.image.subarray(0, taken.size));
    for (const [number, page] of taken.pages) next.set(page, number * taken.pageSize);
    this.image = next;
  }
}

const ROWS = 'SELECT group_concat(i || x || length(b)) FROM (SELECT * FROM t ORDER BY i)';

function read(engine, image, sql) {
  const { Database } = engine.sqlite;
  const database = new Database(image);
  try {
    return [database.exec(sql)[0]?.values[0][0], database.exec('PRAGMA integrity_check')[0].values[0][0]];
  } finally {
    database.close();
  }
}

async function ready() {
  const capture = createCapture();
  const engine = await startEngine(capture);
  assert.equal(capture.calibrate(engine), 'capture', capture.reason);
  return { capture, engine };
}

function tracked({ capture, engine }, image = null) {
  const path = engine.createFile(image);
  const tracker = capture.track(engine, path, image);
  engine.onCommit(path, () => tracker.mark());
  return { path, tracker, mirror: new Mirror() };
}

function verify(engine, { path, mirror }, sql = ROWS) {
  const [truth, whole] = read(engine, engine.exportFile(path), sql);
  assert.deepEqual(read(engine, mirror.image, sql), [truth, 'ok']);
  assert.equal(whole, 'ok');
}

const TABLE = 'CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT, b BLOB); CREATE INDEX tx ON t(x);';
const fill = (from, count, bytes) =>
  `WITH RECURSIVE n(i) AS (SELECT ${from} UNION ALL SELECT i+1 FROM n WHERE i<${from + count - 1})
   INSERT INTO t SELECT i, 'x' || i, randomblob(${bytes}) FROM n;`;

for (const pageSize of [512, 1024, 4096, 65536]) {
  test(`inserts, deletes, rollbacks, spills, vacuum, page size ${pageSize}`, async () => {
    const all = await ready();
    const file = tracked(all);
    const { engine, capture } = all;
    const scripts = [
      `PRAGMA page_size=${pageSize}; ${TABLE}`, fill(1, 500, 60), 'DELETE FROM t WHERE i%3=0', `BEGIN; ${fill(1000, 2000, 300)} ROLLBACK`,
      `PRAGMA cache_size=5; BEGIN; UPDATE t SET b=randomblob(400); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT`,
      `PRAGMA cache_size=5; BEGIN; ${fill(5000, 500, 500)} ROLLBACK`, 'DELETE FROM t WHERE i>100', 'VACUUM', fill(9000, 20, 5000),
      'DROP INDEX tx', 'PRAGMA user_version=7', 'UPDATE t SET x=upper(x)', 'DELETE FROM t; VACUUM', fill(1, 5, 10),
    ];
    for (const script of scripts) {
      engine.runScript(file.path, script);
      file.mirror.apply(file.tracker.take());
      verify(engine, file);
      assert.equal(file.tracker.take(), null);
    }
    assert.equal(capture.mode, 'capture', capture.reason);
  });
}

test('only committed states are taken, also while a transaction spills to the file', async () => {
  const all = await ready();
  const { engine } = all;
  const file = tracked(all);
  engine.runScript(file.path, TABLE + fill(1, 300, 100));
  const { _sqlite3_open, _malloc } = engine.sqlite;
  const at = engine.sqlite.stringToNewUTF8(file.path);
  const slot = _malloc(4);
  _sqlite3_open(at, slot);
  const connection = new DataView(engine.memory.buffer).getUint32(slot, true);
  const run = (sql) => assert.equal(engine.sqlite._sqlite3_exec(connection, engine.sqlite.stringToNewUTF8(sql), 0, 0, 0), 0, sql);
  run('PRAGMA journal_mode=memory; PRAGMA cache_size=5');
  run("BEGIN; UPDATE t SET x='half done', b=randomblob(900)");
  file.mirror.apply(file.tracker.take()); // pages of the open transaction are in the file by now
  const [rows, whole] = read(engine, file.mirror.image, "SELECT count(*) || '/' || sum(x='half done') FROM t");
  assert.deepEqual([rows, whole], ['300/0', 'ok']);
  assert.equal(file.tracker.take(), null);
  run('ROLLBACK');
  file.mirror.apply(file.tracker.take());
  verify(engine, file);
  run("BEGIN; UPDATE t SET x='done', b=randomblob(900); COMMIT");
  file.mirror.apply(file.tracker.take());
  verify(engine, file);
  assert.equal(read(engine, file.mirror.image, "SELECT sum(x='done') FROM t")[0], 300);
});

test('what could not be stored comes again, below what came since', async () => {
  for (const mode of ['capture', 'diff']) {
    const all = await ready();
    const { engine, capture } = all;
    const file = tracked(all);
    engine.runScript(file.path, TABLE + fill(1, 100, 100));
    file.mirror.apply(file.tracker.take());
    if (mode === 'diff') capture.distrust('asked to');
    for (const script of [fill(200, 50, 100), "UPDATE t SET x='u' WHERE i<5", 'DELETE FROM t WHERE i>20; VACUUM', fill(500, 3, 9000)]) {
      engine.runScript(file.path, script);
      file.tracker.restore(file.tracker.take()); // the store refused
      engine.runScript(file.path, "UPDATE t SET x=x||'-' WHERE i=1");
      const failed = file.tracker.take();
      file.tracker.restore(failed);
      const taken = file.tracker.take();
      assert.ok(taken);
      file.mirror.apply(taken);
      verify(engine, file);
    }
  }
});

test('an existing image is followed from where it is; a change of the page size brings the whole image', async () => {
  const all = await ready();
  const { engine, capture } = all;
  const first = tracked(all);
  engine.runScript(first.path, TABLE + fill(1, 2000, 100));
  const image = engine.exportFile(first.path);
  const file = tracked(all, image);
  file.mirror.image = image.slice();
  engine.runScript(file.path, "UPDATE t SET x='changed' WHERE i=7");
  const taken = file.tracker.take();
  assert.ok(taken.pages.size < 8, `${taken.pages.size} pages`);
  file.mirror.apply(taken);
  verify(engine, file);
  engine.runScript(file.path, 'PRAGMA page_size=1024; VACUUM');
  file.mirror.apply(file.tracker.take());
  verify(engine, file);
  assert.equal(file.mirror.image[16] * 256 + file.mirror.image[17], 1024);
  engine.runScript(file.path, fill(5000, 10, 10));
  const next = file.tracker.take();
  assert.equal(next.pageSize, 1024);
  file.mirror.apply(next);
  verify(engine, file);
  assert.equal(capture.mode, 'capture');
});

test('write-ahead logging is not captured, and loses nothing', async () => {
  const all = await ready();
  const { engine } = all;
  const file = tracked(all);
  engine.runScript(file.path, TABLE + fill(1, 100, 100));
  file.mirror.apply(file.tracker.take());
  engine.runScript(file.path, `PRAGMA journal_mode=wal; ${fill(200, 50, 100)} UPDATE t SET x='w' WHERE i<9`);
  file.mirror.apply(file.tracker.take());
  const rows = "SELECT count(*) || '/' || sum(x='w') FROM t";
  assert.deepEqual(read(engine, file.mirror.image, rows), ['150/8', 'ok']);
  engine.runScript(file.path, fill(400, 50, 100));
  file.mirror.apply(file.tracker.take());
  assert.equal(file.tracker.take(), null);
  assert.deepEqual(read(engine, file.mirror.image, rows), ['200/8', 'ok']);
  assert.equal(all.capture.mode, 'capture');
});

test('a page written unseen is found by the check, stored, and capture trusted no more', async () => {
  const all = await ready();
  const { engine, capture } = all;
  const file = tracked(all);
  engine.runScript(file.path, TABLE + fill(1, 3000, 200));
  file.mirror.apply(file.tracker.take());
  capture.listen(file.path, null); // deaf for one commit
  engine.runScript(file.path, "UPDATE t SET b=randomblob(199) WHERE i=2000");
  capture.listen(file.path, file.tracker);
  for (let i = 0; capture.mode === 'capture' && i < 50; i++) {
    engine.runScript(file.path, `UPDATE t SET b=randomblob(200) WHERE i<1000`);
    file.mirror.apply(file.tracker.take());
  }
  assert.equal(capture.mode, 'diff');
  assert.match(capture.reason, /unseen/);
  verify(engine, file, 'SELECT hex(b) FROM t WHERE i=2000');
  engine.runScript(file.path, 'DELETE FROM t WHERE i>2500');
  const taken = file.tracker.take();
  assert.ok(taken.pages.size > 0);
  file.mirror.apply(taken);
  verify(engine, file);
});

test('without wrapped imports, or with imports that behave otherwise, calibration says diff and diff works', async () => {
  for (const spoil of [null, (imports) => imports]) {
    const capture = createCapture();
    const engine = await startEngine(spoil ? { wrapImports: spoil } : capture);
    if (!spoil) capture.distrust('asked to');
    else assert.equal(capture.calibrate(engine), 'diff');
    const file = tracked({ capture, engine });
    const scripts = [TABLE, fill(1, 500, 100), 'DELETE FROM t WHERE i%2', 'VACUUM', 'PRAGMA page_size=1024; VACUUM', fill(900, 10, 10)];
    for (const script of scripts) {
      engine.runScript(file.path, script);
      file.mirror.apply(file.tracker.take());
      verify(engine, file);
      assert.equal(file.tracker.take(), null);
    }
  }
});
