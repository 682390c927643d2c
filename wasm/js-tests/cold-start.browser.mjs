// From an empty browser to the first claim: what a visitor of a page waits for, part by part.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { Browser, installed } from '../harness/browsers.mjs';
import { serve } from '../harness/server.mjs';

const server = await serve();
after(() => server.close());

const FIRST_CLAIM = `
import time
started = time.perf_counter()
from ruv_swarm_store import Store
imported = time.perf_counter()
store = await Store.open_async("cold")
opened = time.perf_counter()
scout = store.agents.register("scout")
store.tasks.enqueue("crawl", {"url": "https://example.com"})
task = store.tasks.claim(scout)
claimed = time.perf_counter()
await store.close_async()
[task.type, round((imported - started) * 1000), round((opened - imported) * 1000), round((claimed - opened) * 1000)]`;

test('from an empty browser to the first claim', { skip: !installed('chromium') && 'there is no chromium on this machine' }, async () => {
  const browser = await Browser.start('chromium');
  try {
    for (const visit of ['first visit', 'next visit']) {
      const began = performance.now();
      const python = await browser.python(server.url, { packages: ['ruv-swarm-store'] });
      const booted = Math.round(performance.now() - began);
      const [type, imported, opened, claimed] = await python.evaluate(FIRST_CLAIM);
      assert.equal(type, 'crawl');
      const total = Math.round(performance.now() - began);
      console.log(
        `${visit}: ${total} ms to the first claim (Pyodide with packages ${booted}, import ${imported}, open ${opened}, register, enqueue and claim ${claimed})`,
      );
    }
  } finally {
    await browser.kill();
    await browser.forget();
  }
});
