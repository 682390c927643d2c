// The playground as its visitors have it, in a real Chromium: `node --test`, after `python wasm/playground/build.py`.
// PYTHON names a native Python that can import ruv_swarm_store from this tree (python3 otherwise).
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { inflateRawSync } from 'node:zlib';
import { TREE } from '../harness/words.mjs';
import { count, options, ready, site, stored, terms, text, title, visit } from './visitor.mjs';

/** The database, as a visitor gets it. */
async function exported(page, name) {
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#export')]);
  const path = join(site.directory, name);
  await download.saveAs(path);
  return path;
}

/** Run lines of native Python, which print JSON. */
function native(source, ...args) {
  const env = { ...process.env, PYTHONPATH: TREE };
  return JSON.parse(execFileSync(process.env.PYTHON ?? 'python3', ['-c', source, ...args], { encoding: 'utf8', env }));
}

const LOOK = `
import json, sqlite3, sys
from ruv_swarm_store import Store, schema
from ruv_swarm_store.demo import run
with sqlite3.connect(sys.argv[1]) as plain:
    [integrity] = [row[0] for row in plain.execute("PRAGMA integrity_check")]
    foreign = plain.execute("PRAGMA foreign_key_check").fetchall()
plain.close()
with Store.open(sys.argv[1]) as store:
    root, ended = run.latest(store)
    totals, _ = run.Run(store, root).add_up()
    counted = {"files": totals.files, "lines": totals.lines, "words": totals.words}
    counted |= {"tasks": store.tasks.count(), "events": store.events.count()}
    whole = {"integrity": integrity, "foreign": foreign, "check": store.check(), "audit": run.Run(store, root).audit()}
    print(json.dumps({**whole, **counted, "ended": ended}))
`;

const MAKE = `
import json, sys
from ruv_swarm_store import NewEvent, Store
with Store.open(sys.argv[1]) as store:
    maker = store.agents.register("maker", name="native-1")
    store.tasks.enqueue_many([("job", {"n": n}) for n in range(7)])
    store.events.append("made", [NewEvent("made.here", {"path": "natively"}), NewEvent("made.there", {})], type="making")
    store.messages.publish("greeting", {"text": "from a file"}, sender=maker)
print("true")
`;

/** The files of a zip archive without a comment: what the playground's sample is. */
async function unzipped(url) {
  const zip = Buffer.from(await (await fetch(url)).arrayBuffer());
  const end = zip.length - 22;
  const files = new Map();
  for (let at = zip.readUInt32LE(end + 16), left = zip.readUInt16LE(end + 10); left; left--) {
    const packed = zip.readUInt32LE(at + 20);
    const [name, extra, comment] = [28, 30, 32].map(offset => zip.readUInt16LE(at + offset));
    const local = zip.readUInt32LE(at + 42);
    const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
    files.set(zip.toString('utf8', at + 46, at + 46 + name), inflateRawSync(zip.subarray(start, start + packed)));
    at += 46 + name + extra + comment;
  }
  return files;
}

/** Files, lines and words, counted once more. */
function recount(files) {
  const total = { files: 0, lines: 0, words: 0 };
  for (const bytes of files) {
    const source = bytes.toString('latin1');
    total.files += 1;
    total.lines += source.split(/\r\n|\r|\n/).length - Number(/(^|[\r\n])$/.test(source));
    total.words += source.split(/[ \t\n\r\x0b\f]+/).filter(Boolean).length;
  }
  return total;
}

test('a cold visitor: the swarm runs to its end, its totals are right and outlive a reload, the export is whole', options, async () => {
  const page = await visit();
  assert.equal(await text(page, 'role'), 'writer');
  assert.equal(await text(page, 'lock'), 'this tab');
  assert.equal(await text(page, 'offline'), 'ready');
  await page.click('#start');
  await title(page, 'Indexing');
  await page.click('#agents tr:first-child button'); // the first agent is killed in the middle of its work
  await page.waitForFunction(() => document.querySelector('#agents tr th')?.textContent === 'indexer-2');
  await page.selectOption('#pace', '0');
  await title(page, 'Indexed');

  const counted = recount((await unzipped(`${site.server.url}/sample.zip`)).values());
  const shown = await terms(page, 'totals');
  assert.deepEqual({ files: Number(shown.files), lines: Number(shown.lines), words: Number(shown.words) }, counted);
  assert.match(await text(page, 'verdict'), /^The swarm and the recount agree/);
  assert.equal(await count(page, 'retries'), 1);
  await stored(page);

  const before = [await terms(page, 'counts'), shown];
  await page.reload();
  await ready(page);
  await title(page, 'Indexed');
  assert.deepEqual([await terms(page, 'counts'), await terms(page, 'totals')], before);

  const found = native(LOOK, await exported(page, 'whole.sqlite'));
  const expected = { integrity: 'ok', foreign: [], check: [], ended: true, audit: [], ...counted };
  assert.deepEqual(found, { ...expected, tasks: Number(before[0].tasks), events: Number(before[0].events) });
});

test('a reload in the middle of a run: it goes on by itself, and every file is indexed once', options, async () => {
  const page = await visit();
  await page.selectOption('#pace', '0.1');
  await page.click('#start');
  await title(page, 'Indexing');
  await page.waitForFunction(() => Number(document.getElementById('indexed').textContent) >= 10);
  await page.reload();
  await ready(page);
  await title(page, 'Indexing');
  await page.selectOption('#pace', '0');
  await title(page, 'Indexed');
  assert.match(await text(page, 'effort'), /in 2 sessions/);
  await stored(page);
  assert.deepEqual(native(LOOK, await exported(page, 'resumed.sqlite')).audit, []);
});

test('a native database, imported: its content is there, and what it replaces is asked about', options, async () => {
  const path = join(site.directory, 'native.db');
  native(MAKE, path);
  const page = await visit();
  await page.setInputFiles('#database', path);
  if ((await terms(page, 'counts')).agents !== '0') await page.click('#sure button[value=yes]'); // an empty store is not asked about
  await page.waitForFunction(() => document.querySelector('#counts > div:nth-child(2) dd').textContent === '7');
  const { agents, tasks, events, messages } = await terms(page, 'counts');
  assert.deepEqual({ agents, tasks, events, messages }, { agents: '1', tasks: '7', events: '2', messages: '1' });
  assert.match(await text(page, 'events'), /made\.there.*made\.here.*natively/s);
  await page.reload();
  await ready(page);
  assert.equal((await terms(page, 'counts')).tasks, '7');

  const none = { name: 'not.sqlite', mimeType: 'application/octet-stream', buffer: Buffer.from('this is no database') };
  await page.setInputFiles('#database', none);
  await page.click('#sure button[value=yes]');
  await page.waitForSelector('#trouble:not([hidden])');
  assert.match(await text(page, 'trouble'), /not a (SQLite )?database/i);
  await page.reload();
  await ready(page);
  assert.equal((await terms(page, 'counts')).tasks, '7'); // what was there still is
  await page.click('#forget');
  await page.click('#sure button[value=yes]');
  await page.waitForFunction(() => document.querySelector('#counts > div:nth-child(2) dd').textContent === '0');
});

test('a folder that is dropped on the page is indexed, and is still there after a reload', options, async () => {
  const folder = join(site.directory, 'project');
  await mkdir(join(folder, 'inner', '.hidden'), { recursive: true });
  await writeFile(join(folder, 'one.py'), 'import os\n\n\ndef one():\n    return os\n');
  await writeFile(join(folder, 'inner', 'two.py'), 'class Two:\n    pass\n');
  await writeFile(join(folder, 'inner', '.hidden', 'three.py'), 'no = "is not indexed"\n');
  await writeFile(join(folder, 'notes.txt'), 'neither is this\n');
  const page = await visit();
  const devtools = await site.browser.driver.newCDPSession(page);
  for (const type of ['dragEnter', 'dragOver', 'drop']) {
    await devtools.send('Input.dispatchDragEvent', { type, x: 300, y: 300, data: { items: [], files: [folder], dragOperationsMask: 1 } });
  }
  await page.waitForFunction(() => document.getElementById('tree').selectedOptions[0].textContent.endsWith('(2 files)'));
  await page.click('#start');
  await title(page, 'Indexed');
  const { files, lines, functions, classes, imports } = await terms(page, 'totals');
  assert.deepEqual([files, lines, functions, classes, imports], ['2', '7', '1', '1', '1']);
  await page.reload();
  await ready(page);
  assert.match(await page.$eval('#tree', select => select.selectedOptions[0].textContent), /\(2 files\)$/);
});
