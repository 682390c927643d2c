// Databases in plain files on Node: whole after every commit, opened by other SQLites, one writer.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createCapture } from '../sqljs_dbapi/js/capture.mjs';
import * as filestore from '../sqljs_dbapi/js/filestore.mjs';
import { createKeeper } from '../sqljs_dbapi/js/keeper.mjs';
import { startEngine } from './sqlite.mjs';

const capture = createCapture();
const engine = await startEngine(capture);
capture.calibrate(engine);

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'filestore-'));
const file = (name) => path.join(directory, name);
process.on('exit', () => fs.rmSync(directory, { recursive: true, force: true }));

const keep = (store) => createKeeper(engine, capture, store, { interval: 60_000 });
const image = (sql) => {
  const database = new engine.sqlite.Database();
  database.exec(sql);
  const bytes = database.export();
  database.close();
  return bytes;
};

function native(name, sql) {
  const program = 'import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(*c.execute(sys.argv[2]).fetchall()); c.commit()';
  return execFileSync('python3', ['-c', program, name, sql], { encoding: 'utf8' }).trim();
}

test('written here, opened natively, and the other way round', async () => {
  const name = file('a.db');
  const keeper = keep(await filestore.openStore(name));
  engine.runScript(keeper.path, 'CREATE TABLE t(i); INSERT INTO t VALUES(1)');
  assert.equal(keeper.flushNow(), true);
  engine.runScript(keeper.path, 'INSERT INTO t VALUES(2)');
  await keeper.close();
  assert.equal(native(name, 'PRAGMA integrity_check'), "('ok',)");
  assert.equal(native(name, 'SELECT count(*) FROM t'), '(2,)');
  native(name, 'PRAGMA journal_mode=wal');
  native(name, 'INSERT INTO t VALUES(3)');
  const again = keep(filestore.openStoreSync(name));
  engine.runScript(again.path, 'INSERT INTO t SELECT count(*)+1 FROM t');
  await again.close();
  assert.equal(native(name, 'SELECT max(i) FROM t'), '(4,)');
  assert.deepEqual(fs.readdirSync(directory).filter((it) => it.startsWith('a.db')), ['a.db']);
});

test('one writer; the lock of a dead process is free; by force the other one is fenced', async () => {
  const name = file('b.db');
  const first = await filestore.openStore(name);
  await assert.rejects(filestore.openStore(name, { mode: 'fail' }), { code: 'locked' });
  await assert.rejects(filestore.openStore(name, { mode: 'wait', timeout: 60 }), { code: 'locked' });
  assert.throws(() => filestore.openStoreSync(name), { code: 'locked' });
  await first.commit({ full: image('CREATE TABLE t(i)') });
  const follower = await filestore.openStore(name, { mode: 'follow' });
  assert.equal(follower.readOnly, true);
  await assert.rejects(follower.commit({ full: image('CREATE TABLE x(i)') }), { code: 'readonly' });
  let refreshed = false;
  follower.onRefresh(() => (refreshed = true));
  await first.commit({ full: image('CREATE TABLE t(i); INSERT INTO t VALUES(1)') });
  while (!refreshed) await sleep(10);
  assert.equal(Buffer.compare(follower.image, fs.readFileSync(name)), 0);
  const second = await filestore.openStore(name, { mode: 'steal' });
  await assert.rejects(first.commit({ full: image('CREATE TABLE lost(i)') }), { code: 'fenced' });
  await second.commit({ full: image('CREATE TABLE kept(i)') });
  await first.close();
  const promoted = follower.promote();
  await second.close();
  await promoted;
  await follower.close();
  assert.equal(native(name, 'SELECT name FROM sqlite_schema'), "('kept',)");
  const dead = spawn('true');
  await new Promise((resolve) => dead.on('exit', resolve));
  fs.writeFileSync(`${name}-lock`, `${dead.pid} gone`);
  await (await filestore.openStore(name, { mode: 'fail' })).close();
  assert.equal(fs.existsSync(`${name}-lock`), false);
});

test('a file that somebody else wrote meanwhile is not overwritten', async () => {
  const name = file('c.db');
  const store = await filestore.openStore(name);
  await store.commit({ full: image('CREATE TABLE t(i)') });
  await sleep(5);
  native(name, 'CREATE TABLE theirs(i)');
  await assert.rejects(store.commit({ full: image('CREATE TABLE ours(i)') }), { code: 'fenced' });
  await store.close();
  assert.equal(native(name, "SELECT count(*) FROM sqlite_schema WHERE name='theirs'"), '(1,)');
});

test('no SQLite file, a hot journal, a missing directory: a clear error, nothing touched', async () => {
  fs.writeFileSync(file('text'), 'x'.repeat(5000));
  await assert.rejects(filestore.openStore(file('text')), { code: 'invalid' });
  assert.equal(fs.readFileSync(file('text'), 'utf8'), 'x'.repeat(5000));
  fs.writeFileSync(file('d.db'), image('CREATE TABLE t(i)'));
  fs.writeFileSync(file('d.db-wal'), 'something');
  await assert.rejects(filestore.openStore(file('d.db')), { code: 'busy', message: /-wal/ });
  assert.equal(fs.existsSync(file('d.db-lock')), false);
  await assert.rejects(filestore.openStore(file('no/where.db')), { code: 'missing' });
  await assert.rejects(filestore.importStore(file('d.db'), image('CREATE TABLE t(i)')), { code: 'exists' });
});

test('kill -9 at any moment leaves one whole commit, the last acknowledged or a later one', async () => {
  const name = file('k.db');
  const writer = `
    import { importStore, openStore } from ${JSON.stringify(new URL('../sqljs_dbapi/js/filestore.mjs', import.meta.url).href)};
    import fs from 'node:fs';
    const store = await openStore(${JSON.stringify(name)}, { mode: 'wait' });
    const base = new Uint8Array(fs.readFileSync(${JSON.stringify(file('base.db'))}));
    for (let i = Number(process.argv[1]);; i++) {
      new DataView(base.buffer).setUint32(60, i); // PRAGMA user_version
      base.fill(i & 255, base.length - 4000, base.length);
      await store.commit({ full: base });
      process.stdout.write(i + '\\n');
    }`;
  const sql = 'CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(2000000)); CREATE TABLE u(x); INSERT INTO u VALUES(zeroblob(100000))';
  fs.writeFileSync(file('base.db'), image(sql));
  let last = 0;
  for (let kill = 0; kill < 8; kill++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', writer, String(last + 1)]);
    let said = '';
    child.stdout.on('data', (data) => (said += data));
    let complaint = '';
    child.stderr.on('data', (data) => (complaint += data));
    while (!said && child.exitCode === null) await sleep(5);
    assert.equal(complaint, '');
    await sleep(Math.random() * 60);
    child.kill('SIGKILL');
    await new Promise((resolve) => child.on('close', resolve));
    const acknowledged = Number(said.trim().split('\n').at(-1));
    const bytes = await filestore.exportStore(name);
    const version = new DataView(bytes.buffer).getUint32(60);
    assert.ok(version >= acknowledged, `${acknowledged} was acknowledged, ${version} is there`);
    assert.ok(bytes.subarray(bytes.length - 4000).every((byte) => byte === (version & 255)), 'a mixture of two commits');
    last = version;
  }
  assert.ok(last > 8);
});

/** What is called of `fs` by these names while `work` runs; `call` may throw, or else the real one is called. */
async function spying(names, work, call = () => {}) {
  const real = Object.fromEntries(names.map((name) => [name, fs[name]]));
  const calls = [];
  for (const name of names) {
    fs[name] = (...words) => {
      calls.push([name, words]);
      call(name, words);
      return real[name](...words);
    };
  }
  try {
    await work();
  } finally {
    Object.assign(fs, real);
  }
  return calls;
}

test('the content is flushed before the name is given to it, and the name after', async () => {
  const name = file('e.db');
  const store = await filestore.openStore(name);
  const names = ['openSync', 'fsyncSync', 'renameSync'];
  const calls = await spying(names, () => store.commit({ full: image('CREATE TABLE t(i)') }));
  const opened = calls.filter(([it]) => it === 'openSync').map(([, [where]]) => where);
  assert.deepEqual(calls.map(([it]) => it), ['openSync', 'fsyncSync', 'renameSync', 'openSync', 'fsyncSync']);
  assert.deepEqual(calls[2][1], [opened[0], name]);
  assert.equal(opened[1], directory);
  await store.close();
});

test('a directory that cannot be opened is no failure: the file is in its place', async () => {
  const store = await filestore.openStore(file('f.db'));
  const refuse = (_, [where]) => {
    if (where === directory) throw Object.assign(new Error('EPERM'), { code: 'EPERM' });
  };
  await spying(['openSync'], async () => {
    for (let i = 0; i < 2; i++) await store.commit({ full: image(`CREATE TABLE t${i}(i)`) });
  }, refuse);
  await store.close();
  assert.equal(native(file('f.db'), 'SELECT name FROM sqlite_schema'), "('t1',)");
});

test('a file keeps its mode', async () => {
  const name = file('g.db');
  fs.writeFileSync(name, image('CREATE TABLE t(i)'));
  fs.chmodSync(name, 0o664);
  const umask = process.umask(0o022);
  try {
    const store = await filestore.openStore(name);
    await store.commit({ full: image('CREATE TABLE u(i)') });
    await store.close();
  } finally {
    process.umask(umask);
  }
  assert.equal(fs.statSync(name).mode & 0o777, 0o664);
});

test('a follower that cannot read for now says so, forgets it, and leaves no lock where it could not take over', async () => {
  const name = file('h.db');
  const writer = await filestore.openStore(name);
  await writer.commit({ full: image('CREATE TABLE t(i)') });
  const follower = keep(await filestore.openStore(name, { mode: 'follow' }));
  fs.writeFileSync(`${name}-wal`, 'somebody else is at it');
  await writer.commit({ full: image('CREATE TABLE t(i); CREATE TABLE u(i)') });
  while (follower.status().failure === null) await sleep(10);
  assert.match(follower.status().failure, /-wal/);
  assert.equal(follower.takeFailure(), null); // what it has can be read
  await writer.close();
  await assert.rejects(follower.promote(), { code: 'busy' });
  assert.equal(follower.readOnly, true);
  assert.equal(fs.existsSync(`${name}-lock`), false);
  fs.rmSync(`${name}-wal`);
  await follower.promote();
  assert.equal(follower.status().failure, null);
  engine.runScript(follower.path, 'INSERT INTO u VALUES(1)');
  await follower.flush();
  await follower.close();
  assert.equal(native(name, 'SELECT count(*) FROM u'), '(1,)');
});
