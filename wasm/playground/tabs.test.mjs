// The playground in two tabs, without a network, and when there is a newer build of it: `node --test`, after
// `python wasm/playground/build.py`.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { serve } from '../harness/server.mjs';
import { options, ready, site, stored, terms, text, title, visit } from './visitor.mjs';

test('two tabs: the second follows, takes over by asking, and takes the place of a tab that closes', options, async () => {
  const first = await visit();
  const second = await visit();
  assert.equal(await text(second, 'role'), 'follower, read only');
  assert.equal(await text(second, 'lock'), 'another tab');
  assert.equal(await second.isDisabled('#start'), true);
  await first.selectOption('#tree', { index: 0 }); // the sample, which takes long enough to be followed
  await first.click('#start');
  await title(second, 'Another tab is indexing');
  await title(first, 'Indexed');
  await title(second, 'Indexed'); // it has followed
  await stored(first);

  await second.click('#take-over');
  await second.waitForFunction(() => document.getElementById('role').textContent === 'writer');
  await first.waitForFunction(() => document.getElementById('role').textContent === 'follower, read only');
  await second.click('#start');
  await title(second, 'Indexing');
  await title(second, 'Indexed');
  await stored(second);
  const before = await terms(second, 'counts');

  await second.close();
  await first.waitForFunction(() => document.getElementById('role').textContent === 'writer');
  const tasksAre = tasks => document.querySelector('#counts > div:nth-child(2) dd').textContent.replaceAll(',', '') === tasks;
  await first.waitForFunction(tasksAre, before.tasks);
});

test('a newer build is downloaded whole or not at all, and takes over when the visitor says so', options, async () => {
  const copy = join(site.directory, 'site');
  await cp(site.root, copy, { recursive: true });
  const newer = await serve({ root: copy });
  try {
    const page = await visit(newer.url);
    const { width } = page.viewportSize();
    await page.setViewportSize({ width: 360, height: 740 });
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 360, 'a phone has to scroll sideways');
    await page.setViewportSize({ width, height: 720 });

    const style = `${await readFile(join(copy, 'style.css'), 'utf8')}/* newer */`;
    const worker = await readFile(join(copy, 'service-worker.js'), 'utf8');
    const hash = bytes => createHash('sha256').update(bytes).digest('hex');
    const [before, after] = [hash(await readFile(join(copy, 'style.css'))), hash(style)];
    await writeFile(join(copy, 'service-worker.js'), worker.replace(before, after)); // the list is there before the file
    const update = () => page.evaluate(async () => (await navigator.serviceWorker.ready).update().then(({ installing }) => installing &&
      new Promise(resolve => installing.addEventListener('statechange', () => resolve(installing.state)))));
    assert.equal(await update(), 'redundant');
    assert.equal(await page.isHidden('#renewed'), true);
    await writeFile(join(copy, 'style.css'), style);
    assert.equal(await update(), 'installed');
    await page.waitForSelector('#renewed:not([hidden])');
    assert.doesNotMatch(await page.evaluate(() => fetch('style.css').then(response => response.text())), /newer/);
    await Promise.all([page.waitForEvent('load'), page.click('#renew')]);
    await ready(page);
    assert.match(await page.evaluate(() => fetch('style.css').then(response => response.text())), /newer/);
    site.complaints = site.complaints.filter(each => !/style\.css is not that of this build/.test(each)); // so it is meant to complain
  } finally {
    await newer.close();
  }
});

test('a tab that does not answer is made to hand over: its writes are fenced off, and it follows', options, async () => {
  const first = await visit();
  const second = await visit();
  await first.evaluate(() => setTimeout(() => { for (const until = Date.now() + 9000; Date.now() < until; ); }));
  await second.click('#take-over');
  await second.waitForFunction(() => document.getElementById('role').textContent === 'writer');
  await first.waitForFunction(() => document.getElementById('role').textContent === 'follower, read only');
  await second.selectOption('#tree', { index: 0 });
  await second.click('#start');
  await title(first, 'Another tab is indexing');
  await title(second, 'Indexed');
  await title(first, 'Indexed');
});

test('without a network the page opens again, with what was stored', options, async () => {
  const page = await visit();
  await page.selectOption('#pace', '0');
  await page.click('#start');
  await title(page, 'Indexing');
  await title(page, 'Indexed');
  await stored(page);
  const before = await terms(page, 'counts');
  const { url } = site.server;
  await site.server.close();
  try {
    await page.goto(`${url}/`);
    await ready(page);
    assert.deepEqual(await terms(page, 'counts'), before);
    await page.click('#start');
    await title(page, 'Indexing');
    await title(page, 'Indexed');
    assert.ok(Number((await terms(page, 'counts')).tasks) > Number(before.tasks));
  } finally {
    site.server = null;
  }
  const looking = /service-worker\.js|ERR_CONNECTION_REFUSED|Failed to update a ServiceWorker/; // the browser did, for a newer one
  site.complaints = site.complaints.filter(each => !looking.test(each));
});
