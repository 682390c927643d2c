// The library under the storage tests: a browser is killed and comes back; and what is served can be installed from.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { after, test } from 'node:test';
import { Browser, installed } from '../browsers.mjs';
import { serve } from '../server.mjs';
import { WASM } from '../words.mjs';

const server = await serve();
after(() => server.close());

const store = value =>
  new Promise((resolve, reject) => {
    const opening = indexedDB.open('kept');
    opening.onupgradeneeded = () => opening.result.createObjectStore('values');
    opening.onerror = reject;
    opening.onsuccess = () => {
      const transaction = opening.result.transaction('values', 'readwrite', { durability: 'strict' });
      transaction.objectStore('values').put(value, 'value');
      transaction.oncomplete = () => resolve(value);
    };
  });

const load = () =>
  new Promise((resolve, reject) => {
    const opening = indexedDB.open('kept');
    opening.onerror = reject;
    opening.onsuccess = () => {
      const request = opening.result.transaction('values').objectStore('values').get('value');
      request.onsuccess = () => resolve(request.result);
    };
  });

for (const kind of ['chromium', 'firefox']) {
  const skip = !installed(kind) && `there is no ${kind} on this machine`;

  test(`${kind}: what was stored before kill -9 is there when the browser starts again`, { skip }, async () => {
    let browser = await Browser.start(kind);
    try {
      const page = await browser.open(`${server.url}/harness/page.html`);
      assert.equal(await page.evaluate(store, 42), 42);
      const cut = assert.rejects(page.evaluate(() => new Promise(() => {})));
      await browser.kill();
      assert.deepEqual(browser.processes(), []);
      await cut;
      browser = await browser.restart();
      assert.equal(await (await browser.open(`${server.url}/harness/page.html`)).evaluate(load), 42);
    } finally {
      await browser.kill();
      await browser.forget();
    }
  });

  test(`${kind}: Python keeps its names between calls, reports errors, and ends with the browser`, { skip }, async () => {
    const browser = await Browser.start(kind);
    try {
      const python = await browser.python(server.url, { packages: [] });
      assert.deepEqual(await python.evaluate('import asyncio\nawait asyncio.sleep(0)\nx = 3\n[1, {"a": x}]'), [1, { a: 3 }]);
      assert.equal(await python.evaluate('x + 1'), 4);
      await assert.rejects(python.evaluate('1 / 0'), /ZeroDivisionError/);
      const cut = assert.rejects(python.evaluate('await asyncio.sleep(60)'));
      await browser.kill();
      await cut;
    } finally {
      await browser.kill();
      await browser.forget();
    }
  });
}

/** What a page of its own does with Pyodide: no harness, no lock file but the one beside pyodide.mjs. */
const installs = {
  'the wheelhouse, hosted as it is, needs no option': async ({ wheelhouse }) => {
    const { loadPyodide } = await import(`${wheelhouse}/pyodide.mjs`);
    const pyodide = await loadPyodide();
    const errorCallback = message => {
      throw new Error(message);
    };
    await pyodide.loadPackage('ruv-swarm-store', { messageCallback: () => {}, errorCallback });
    return pyodide;
  },
  "micropip installs our wheels from their URLs, and what they need from the wheelhouse's lock": async ({ wheelhouse, ours }) => {
    const { loadPyodide } = await import(`${wheelhouse}/pyodide.mjs`);
    const pyodide = await loadPyodide({ packages: ['micropip'] });
    await pyodide.pyimport('micropip').install(pyodide.toPy(ours));
    return pyodide;
  },
  'micropip installs every wheel from its URL into a plain Pyodide': async ({ plain, wheelhouse, wheels }) => {
    const { loadPyodide } = await import(`${plain}/pyodide.mjs`);
    const pyodide = await loadPyodide();
    await pyodide.loadPackage(wheels.find(wheel => wheel.includes('/micropip-')), { messageCallback: () => {} });
    await pyodide.pyimport('micropip').install(pyodide.toPy(wheels.filter(wheel => !wheel.includes('/micropip-'))));
    return pyodide;
  },
};

const PROVEN = `
import importlib.metadata, sqlalchemy, sqljs_dbapi
from sqlalchemy.engine import make_url
import ruv_swarm_store
dialect = make_url("sqlite+sqljs://").get_dialect()
f"{dialect.name}+{dialect.driver} {importlib.metadata.version('ruv-swarm-store')} {importlib.metadata.version('sqljs-dbapi')}"
`;

for (const [name, install] of Object.entries(installs)) {
  test(name, { skip: !installed('chromium') && 'there is no chromium on this machine' }, async () => {
    const names = readdirSync(`${WASM}/build/wheelhouse`).filter(file => file.endsWith('.whl'));
    const wheelhouse = `${server.url}/build/wheelhouse`;
    const wheels = names.map(file => `${wheelhouse}/${file}`);
    const ours = wheels.filter(wheel => /\/(ruv_swarm_store|sqljs_dbapi)-/.test(wheel));
    assert.equal(ours.length, 2);
    const browser = await Browser.start('chromium');
    try {
      const page = await browser.open(`${server.url}/build/wheelhouse/package.json`); // a page with nothing in it
      const strangers = [];
      page.on('request', request => request.url().startsWith(server.url) || strangers.push(request.url()));
      const places = JSON.stringify({ wheelhouse, ours, wheels, plain: `${server.url}/node_modules/pyodide` });
      const result = await page.evaluate(`(${install})(${places}).then(pyodide => pyodide.runPython(${JSON.stringify(PROVEN)}))`);
      assert.equal(result, 'sqlite+sqljs 0.1.0 0.1.0');
      assert.deepEqual(strangers, [], 'nothing was fetched from elsewhere');
    } finally {
      await browser.close();
      await browser.forget();
    }
  });
}
