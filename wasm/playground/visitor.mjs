// What the tests of the playground share: its site, served, and a visitor of it in a real Chromium.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before } from 'node:test';
import { Browser, installed } from '../harness/browsers.mjs';
import { serve } from '../harness/server.mjs';
import { WASM } from '../harness/words.mjs';

const SITE = join(WASM, 'build', 'playground');
const LONG = 40_000; // ms: two cores may have a lot to do
const unbuilt = !existsSync(SITE) && 'build the site first: wasm/playground/build.py';
const missing = installed('chromium') ? unbuilt : 'there is no Chromium on this machine';
if (missing && process.env.RUV_SWARM_ALL_ENGINES) throw new Error(`${missing}, and RUV_SWARM_ALL_ENGINES is set`);
export const options = { skip: missing, timeout: 4 * LONG };

/** What the tests of a file share. */
export const site = { root: SITE, server: undefined, browser: undefined, directory: undefined, complaints: [] };

before(async () => {
  if (missing) return;
  site.server = await serve({ root: SITE });
  site.browser = await Browser.start('chromium');
  site.directory = await mkdtemp(join(tmpdir(), 'ruv-swarm-playground-'));
});

after(async () => {
  await site.browser?.close();
  await site.browser?.forget();
  await site.server?.close();
  if (site.directory) await rm(site.directory, { recursive: true });
});

afterEach(async () => {
  for (const page of site.browser?.driver.pages() ?? []) await page.close(); // those of a test that failed
  const found = site.complaints;
  site.complaints = [];
  assert.deepEqual(found, [], 'the page complained');
});

/** Open the playground in a tab, and wait until it is usable. */
export async function visit(url = site.server.url) {
  const page = await site.browser.driver.newPage();
  page.setDefaultTimeout(LONG);
  page.on('pageerror', error => site.complaints.push(error.stack ?? String(error)));
  page.on('console', message => ['error', 'warning'].includes(message.type()) && site.complaints.push(message.text()));
  await page.goto(`${url}/`);
  await ready(page);
  return page;
}

export async function ready(page) {
  await page.waitForSelector('#app:not([hidden]), #trouble:not([hidden])');
  assert.equal(await page.textContent('#trouble'), '');
}

export const text = (page, id) => page.textContent(`#${id}`);
export const count = async (page, id) => Number((await text(page, id)).replaceAll(',', ''));
export const title = (page, wanted) => page.waitForFunction(start => document.getElementById('run-title').textContent.startsWith(start), wanted);
export const stored = page => page.waitForFunction(() => document.getElementById('pill').dataset.state === 'stored');
export const terms = (page, list) =>
  page.$$eval(`#${list} > div`, rows =>
    Object.fromEntries(rows.map(({ children: [term, value] }) => [term.textContent, value.textContent.replaceAll(',', '')])));
