// The page store against a model, over fake-indexeddb: crashes, aborts at every step, flipped bytes, fences, followers, encryption.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IDBDatabase, IDBFactory, IDBKeyRange, IDBObjectStore } from 'fake-indexeddb';
import * as pagestore from '../sqljs_dbapi/js/pagestore.mjs';
import { Locks } from './locks.mjs';

const { openStore } = pagestore;

function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

// No Web Locks: the fence alone; no broadcast unless a test asks for it.
const world = (more = {}) => ({ indexedDB: new IDBFactory(), IDBKeyRange, locks: null, broadcast: null, storage: null, ...more });
const content = (image) => Buffer.from(image ?? []);

/** An image of SQLite's shape as far as the store looks at it. */
function header(image, pageSize) {
  if (!image.length) return image;
  image.set(Buffer.from('SQLite format 3\0'));
  new DataView(image.buffer).setUint16(16, pageSize === 65536 ? 1 : pageSize);
  return image;
}

function change(image, pageSize, dice, most) {
  const count = Math.max(1, image.length / pageSize + dice(7) - 3);
  const next = new Uint8Array(count * pageSize);
  next.set(image.subarray(0, next.length));
  const pages = new Map();
  const touch = (number) => {
    const page = next.subarray(number * pageSize, (number + 1) * pageSize);
    page.fill(1 + dice(255), dice(pageSize / 2));
    if (number === 0) header(next, pageSize);
    pages.set(number, page.slice());
  };
  for (let number = image.length / pageSize; number < count; number++) touch(number);
  for (let i = dice(most); i >= 0; i--) touch(dice(count));
  return { next, commit: { pages, size: next.length, pageSize } };
}

function full(dice, pageSize, most) {
  const next = new Uint8Array((1 + dice(most)) * pageSize).map((_, i) => (i * 31 + i / pageSize) & 255);
  return { next: header(next, pageSize), commit: { full: next } };
}

for (const seed of [1, 2, 3, 4]) {
  for (const key of [null, 'open sesame']) {
    test(`random commits, crashes and takeovers, seed ${seed}${key ? ', encrypted' : ''}`, async () => {
      const dice = random(seed);
      const options = world({ key, iterations: 10, logRecords: 5 + dice(10), logBytes: 1 << 14 });
      let pageSize = 4096;
      let model = new Uint8Array(0);
      let store = await openStore('m', options);
      for (let step = 0; step < 80; step++) {
        const what = dice(20);
        if (what === 0) pageSize = [1024, 4096, 65536][dice(3)];
        const whole = what === 0 || what === 1;
        const { next, commit } = whole ? full(dice, pageSize, (600 << 10) / pageSize) : change(model, pageSize, dice, 12);
        await store.commit(commit);
        model = next;
        if (what === 2) await store.idle();
        if (what === 3) await store.close();
        if (what >= 2 && what <= 5) {
          const before = store;
          store = await openStore('m', options); // what 4, 5: the other one just vanished, perhaps in the middle of a new base
          assert.equal(store.recovered, null);
          assert.equal(content(store.image).compare(content(model)), 0, `step ${step}`);
          await assert.rejects(before.commit(change(model, pageSize, dice, 3).commit), { code: what === 3 ? 'closed' : 'fenced' });
        }
      }
      await store.idle();
      assert.ok(store.status().logRecords <= 20, 'the log was never folded into a base');
      await store.close();
      assert.equal(content(await pagestore.exportStore('m', options)).compare(content(model)), 0);
    });
  }
}

test('a commit of many records and the base after it', async () => {
  const options = world();
  const store = await openStore('m', options);
  const image = header(new Uint8Array(5 << 20).map((_, i) => i >> 7), 4096);
  const pages = new Map();
  for (let n = 0; n < image.length / 4096; n++) pages.set(n, image.subarray(n * 4096, (n + 1) * 4096));
  await store.commit({ pages, size: image.length, pageSize: 4096 });
  assert.equal(store.status().logRecords, 5);
  await store.idle();
  assert.equal(store.status().logRecords, 0);
  await store.close();
  const again = await openStore('m', options);
  assert.equal(content(again.image).compare(content(image)), 0);
  await again.close();
});

/** Makes the n-th write of the next transactions abort its transaction, and says whether it came to that. */
async function abortingAt(n, work) {
  const { put, add, delete: remove } = IDBObjectStore.prototype;
  let count = 0;
  let happened = false;
  const counted = (original) =>
    function (...args) {
      const request = original.apply(this, args);
      if (++count === n) {
        happened = true;
        this.transaction.abort();
      }
      return request;
    };
  Object.assign(IDBObjectStore.prototype, { put: counted(put), add: counted(add) });
  IDBObjectStore.prototype.delete = counted(remove);
  try {
    await work();
  } finally {
    Object.assign(IDBObjectStore.prototype, { put, add, delete: remove });
  }
  return happened;
}

for (const kind of ['pages', 'full', 'new base']) {
  test(`an abort at every step of a commit: ${kind}`, async () => {
    for (let n = 1; ; n++) {
      assert.ok(n < 100);
      const dice = random(n);
      const options = world({ logRecords: kind === 'new base' ? 3 : 1000 });
      const store = await openStore('m', options);
      let model = new Uint8Array(0);
      for (let i = 0; i < 3 + (kind === 'new base' ? 4 : 0); i++) {
        const step = i === 1 ? full(dice, 4096, 100) : change(model, 4096, dice, 5);
        await store.commit(step.commit);
        await store.idle();
        model = step.next;
      }
      const step = kind === 'full' ? full(dice, 4096, 100) : change(model, 4096, dice, 5);
      let rejected = null;
      const happened = await abortingAt(n, async () => {
        await store.commit(step.commit).then(() => (model = step.next), (error) => (rejected = error));
        await store.idle();
      });
      if (rejected) assert.equal(rejected.code, 'failed');
      if (kind !== 'new base') assert.equal(happened, rejected !== null);
      const seen = await openStore('m', { ...options, mode: 'read' });
      assert.equal(seen.recovered, null);
      assert.equal(content(seen.image).compare(content(model)), 0, `${kind}, step ${n}`);
      await seen.close();
      const next = rejected ? step : change(model, 4096, dice, 5);
      await store.commit(next.commit); // the same store goes on
      await store.close();
      const again = await openStore('m', options);
      assert.equal(content(again.image).compare(content(next.next)), 0);
      await again.close();
      if (!happened) break;
    }
  });
}

const asked = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function raw(options, name, use) {
  const database = await asked(options.indexedDB.open(`sqljs:${name}`, 1));
  const result = [];
  for (const store of ['log', 'segments']) {
    const keys = await asked(database.transaction(store).objectStore(store).getAllKeys());
    for (const key of keys) {
      const value = await asked(database.transaction(store).objectStore(store).get(key));
      result.push({ store, key, value });
    }
  }
  const write = ({ store, key }, value) => {
    const objects = database.transaction(store, 'readwrite').objectStore(store);
    return asked(value === undefined ? objects.delete(key) : objects.put(value, key));
  };
  await use(result, write);
  database.close();
}

// Two bases, the log before the current one and after it.
async function layered(key) {
  const options = world({ key, iterations: 10, logRecords: 3 });
  const images = [new Uint8Array(0)];
  const dice = random(5);
  const store = await openStore('m', options);
  for (let i = 0; i < 8; i++) {
    const step = change(images.at(-1), 512, dice, 2);
    await store.commit(step.commit);
    await store.idle();
    images.push(step.next);
  }
  const { generation } = store;
  await store.close();
  return { options, images, generation };
}

for (const key of [null, 'open sesame']) {
  test(`every flipped byte is detected and a generation opens whole${key ? ', encrypted' : ''}`, async () => {
    const stride = key ? 5 : 1;
    let detected = 0;
    let older = 0;
    for (let index = 0, count = 1; index < count; index++) {
      const { options, images, generation } = await layered(key);
      await raw(options, 'm', async (records, write) => {
        count = records.length;
        const record = records[index];
        let live = 0;
        for (let at = 0; at < record.value.length; at += stride) {
          const flipped = record.value.slice();
          flipped[at] ^= 1 << at % 8;
          await write(record, flipped);
          const store = await openStore('m', { ...options, mode: 'read' });
          const opened = store.recovered ? store.recovered.generation : generation;
          assert.equal(content(store.image).compare(content(images[opened])), 0, `${record.key} byte ${at}`);
          assert.equal(store.generation, generation);
          if (store.recovered) live++;
          if (opened < generation) older++;
          await store.close();
        }
        // A record of the fallback is not read while the current base is whole; any other is found bad whichever byte it is.
        assert.ok(live === 0 || live === Math.ceil(record.value.length / stride), `${record.key}: ${live}`);
        detected += live;
      });
      assert.ok(count >= 8);
    }
    assert.ok(detected > 100 && older > 0);
  });
}

test('a missing record is detected', async () => {
  const { options, images, generation } = await layered(null);
  let noticed = 0;
  await raw(options, 'm', async (records, write) => {
    for (const record of records) {
      await write(record, undefined);
      const store = await openStore('m', { ...options, mode: 'read' });
      const opened = store.recovered ? store.recovered.generation : generation;
      if (store.recovered) noticed++;
      assert.equal(content(store.image).compare(content(images[opened])), 0, String(record.key));
      await store.close();
      await write(record, record.value);
    }
  });
  assert.ok(noticed >= 4);
});

test('a bad segment costs nothing, a bad log record its generation; the bad image is set aside', async () => {
  for (const where of ['segment', 'log']) {
    const { options, images, generation } = await layered(null);
    await raw(options, 'm', async (records, write) => {
      const newest = records.findLast(({ store, key }) => (where === 'segment' ? store === 'segments' : typeof key === 'number'));
      const flipped = newest.value.slice();
      flipped[100] ^= 4;
      await write(newest, flipped);
    });
    const store = await openStore('m', options);
    const kept = where === 'segment' ? generation : generation - 1;
    assert.deepEqual({ generation: store.recovered.generation, lost: store.recovered.lost }, { generation: kept, lost: generation - kept });
    assert.equal(content(store.image).compare(content(images[kept])), 0);
    const step = change(images[kept], 512, random(9), 2);
    await store.commit(step.commit);
    await store.close();
    const again = await openStore('m', options);
    assert.equal(again.recovered, null);
    assert.equal(content(again.image).compare(content(step.next)), 0);
    await again.close();
    const quarantined = await pagestore.listQuarantined(options);
    assert.deepEqual(quarantined, [store.recovered.quarantined]);
    assert.deepEqual(await pagestore.listStores(options), ['m']);
    assert.equal(content(await pagestore.exportStore(quarantined[0], options)).compare(content(images[kept])), 0);
  }
});

test('where no generation is whole, opening raises and leaves everything as it is', async () => {
  const options = world();
  const store = await openStore('m', options);
  await store.commit(full(random(1), 4096, 10).commit);
  await store.close();
  await raw(options, 'm', async (records, write) => {
    const segment = records.find(({ store }) => store === 'segments');
    await write(segment, segment.value.slice(1));
  });
  await assert.rejects(openStore('m', { ...options, mode: 'read' }), { code: 'corrupt' });
  let before;
  const kept = (records) => records.filter(({ key }) => key !== 'head' && !String(key).startsWith('ended:')); // which claims write
  await raw(options, 'm', async (records) => { before = kept(records); });
  await assert.rejects(openStore('m', options), { code: 'corrupt' });
  await raw(options, 'm', async (records) => assert.deepEqual(kept(records), before));
  const aside = await pagestore.quarantineStore('m', options);
  assert.deepEqual(await pagestore.listQuarantined(options), [aside]);
  const fresh = await openStore('m', options);
  assert.equal(fresh.image, null);
  await fresh.close();
});

test('a log that went bad while open asks for the whole image', async () => {
  const options = world({ logRecords: 4 });
  const store = await openStore('m', options);
  const dice = random(3);
  let model = new Uint8Array(0);
  const commit = async (step) => { await store.commit(step.commit); model = step.next; };
  for (let i = 0; i < 3; i++) await commit(change(model, 4096, dice, 3));
  await raw(options, 'm', async (records, write) => {
    const record = records.find(({ key }) => typeof key === 'number');
    await write(record, record.value.slice(4));
  });
  await commit(change(model, 4096, dice, 3));
  await store.idle();
  assert.equal(store.needsImage, true);
  await store.commit({ full: model });
  assert.equal(store.needsImage, false);
  await store.close();
  const again = await openStore('m', options);
  assert.equal(again.recovered, null);
  assert.equal(content(again.image).compare(content(model)), 0);
  await again.close();
});

test('a browser that found its own files corrupt and deleted them is reported, not taken for an empty store', async () => {
  const factory = new IDBFactory();
  const open = (...call) => {
    const request = factory.open(...call);
    const loss = { dataLoss: 'total', dataLossMessage: 'checksum mismatch' };
    const tell = (listener) => request.addEventListener('upgradeneeded', () => listener(loss));
    return Object.defineProperty(request, 'onupgradeneeded', { set: tell, get: () => null });
  };
  const options = world({ indexedDB: { open } });
  const store = await openStore('m', options);
  assert.match(store.recovered.reason, /corrupt.*checksum mismatch/);
  assert.equal(store.recovered.lost, null);
  await store.commit(full(random(1), 4096, 3).commit);
  await store.close();
  const again = await openStore('m', options);
  assert.equal(again.recovered, null);
  await again.close();
});

test('quota: a clear error, nothing changed, and the store goes on', async () => {
  const options = world();
  const store = await openStore('m', options);
  const step = change(new Uint8Array(0), 4096, random(1), 3);
  const { put } = IDBObjectStore.prototype;
  IDBObjectStore.prototype.put = function () {
    this.transaction.abort();
    Object.defineProperty(this.transaction, 'error', { value: new DOMException('full', 'QuotaExceededError'), configurable: true });
  };
  try {
    await assert.rejects(store.commit(step.commit), { code: 'quota', message: /quota/ });
  } finally {
    IDBObjectStore.prototype.put = put;
  }
  assert.equal(store.generation, 0);
  await store.commit(step.commit);
  await store.close();
});

test('one commit at a time, pages that fit, SQLite files only', async () => {
  const options = world();
  const store = await openStore('m', options);
  const step = change(new Uint8Array(0), 4096, random(1), 3);
  const first = store.commit(step.commit);
  await assert.rejects(store.commit(step.commit), { code: 'busy' });
  await first;
  await assert.rejects(store.commit({ pages: new Map([[0, new Uint8Array(512)]]), size: 512, pageSize: 512 }), { code: 'invalid' });
  await assert.rejects(store.commit({ full: new Uint8Array(4096) }), { code: 'invalid' });
  const cut = full(random(1), 4096, 10).next;
  await assert.rejects(pagestore.importStore('n', cut.subarray(0, cut.length - 1), options), { code: 'invalid' });
  await assert.rejects(pagestore.importStore('m', full(random(1), 4096, 10).next, options), { code: 'exists' });
  await assert.rejects(pagestore.exportStore('x', options), { code: 'missing' });
  await store.close();
  await pagestore.removeStore('m', options);
  assert.deepEqual(await pagestore.listStores(options), []);
});

test('encryption: wrong key, no key, a key too many; nothing readable is stored', async () => {
  const options = world({ iterations: 10 });
  const secret = 'the eagle has landed';
  const store = await openStore('m', { ...options, key: 'right' });
  const page = new Uint8Array(4096);
  page.set(Buffer.from(secret));
  await store.commit({ pages: new Map([[0, page]]), size: 4096, pageSize: 4096 });
  await store.commit({ full: header(page.slice(), 4096) });
  await store.close();
  let before;
  await raw(options, 'm', async (records) => {
    before = records;
    for (const { key, value } of records) {
      assert.equal(Buffer.from(value).includes('SQLite'), false);
      assert.equal(Buffer.from(value).includes('eagle'), false);
      if (!String(key).startsWith('key')) assert.equal(Buffer.from(value).includes('generation'), false, String(key));
    }
  });
  await assert.rejects(openStore('m', { ...options, key: 'wrong' }), { code: 'key' });
  await assert.rejects(openStore('m', options), { code: 'key' });
  await raw(options, 'm', async (records) => assert.deepEqual(records, before));
  const plain = await openStore('p', options);
  await plain.commit({ full: header(page.slice(), 4096) });
  await plain.close();
  await assert.rejects(openStore('p', { ...options, key: 'right' }), { code: 'key' });
  // One key record may go bad.
  await raw(options, 'm', async (records, write) => write(records.find(({ key }) => key === 'key'), new Uint8Array(64)));
  const again = await openStore('m', { ...options, key: 'right' });
  assert.equal(content(again.image).compare(content(header(page.slice(), 4096))), 0);
  await again.close();
});

test('followers see every commit, through new bases and changes of page size, and take over', async () => {
  const options = world({ broadcast: BroadcastChannel, logRecords: 4 });
  const writer = await openStore('m', options);
  const follower = await openStore('m', { ...options, mode: 'follow' });
  assert.equal(follower.readOnly, true);
  const dice = random(8);
  let model = new Uint8Array(0);
  let pageSize = 4096;
  await assert.rejects(follower.commit(change(model, 4096, dice, 2).commit), { code: 'readonly' });
  for (let i = 0; i < 40; i++) {
    if (i === 20) pageSize = 1024;
    const step = i % 20 === 0 ? full(dice, pageSize, 100) : change(model, pageSize, dice, 4);
    await writer.commit(step.commit);
    model = step.next;
    if (i % 7 === 3) continue; // falls behind
    await new Promise((resolve) => {
      const timer = setInterval(() => follower.generation === writer.generation && (clearInterval(timer), resolve()), 2);
    });
    assert.equal(content(follower.image).compare(content(model)), 0, `commit ${i}`);
  }
  const step = change(model, pageSize, dice, 4);
  await writer.commit(step.commit);
  await writer.close();
  await follower.promote();
  assert.equal(content(follower.image).compare(content(step.next)), 0);
  const last = change(step.next, pageSize, dice, 4);
  await follower.commit(last.commit);
  await follower.close();
  assert.equal(content(await pagestore.exportStore('m', options)).compare(content(last.next)), 0);
});

test('a second writer by force fences the first, who changes nothing more', async () => {
  const options = world();
  const first = await openStore('m', options);
  const step = change(new Uint8Array(0), 4096, random(1), 3);
  await first.commit(step.commit);
  const second = await openStore('m', { ...options, mode: 'steal' });
  await assert.rejects(first.commit(change(step.next, 4096, random(2), 3).commit), { code: 'fenced' });
  await assert.rejects(first.commit(change(step.next, 4096, random(2), 3).commit), { code: 'fenced' });
  assert.match(first.status().failure, /another writer/);
  const next = change(step.next, 4096, random(3), 3);
  await second.commit(next.commit);
  await second.close();
  assert.equal(content(await pagestore.exportStore('m', options)).compare(content(next.next)), 0);
});

test('a writer that was taken over changes nothing as it leaves, though nobody has told it yet', async () => {
  for (const times of [1, 2]) { // by how many, one after the other
    const locks = new Locks();
    const options = world({ locks });
    const deaf = { request: (...words) => locks.request(...words).catch(() => new Promise(() => {})) };
    const first = await openStore('m', { ...options, locks: deaf });
    const step = change(new Uint8Array(0), 4096, random(1), 3);
    await first.commit(step.commit);
    let last;
    for (let time = 0; time < times; time++) last = await openStore('m', { ...options, mode: 'steal', locks: deaf });
    await assert.rejects(first.commit({ ...change(step.next, 4096, random(2), 3).commit, leaving: true }));
    const next = change(step.next, 4096, random(3), 3);
    await last.commit(next.commit);
    await last.commit({ pages: new Map(), size: next.next.length, pageSize: 4096, leaving: true }); // which is no bar to itself
    await last.close();
    assert.equal(content(await pagestore.exportStore('m', options)).compare(content(next.next)), 0);
  }
});

test('writers that end without a close leave one record, not one each', async () => {
  const options = world({ locks: new Locks() });
  for (let time = 0; time < 5; time++) {
    const vanished = await openStore('m', { ...options, locks: new Locks() }); // its lock is free again
    await vanished.commit(change(new Uint8Array(0), 4096, random(time), 3).commit);
  }
  await raw(options, 'm', async (records) => {
    assert.equal(records.filter(({ key }) => String(key).startsWith('ended:')).length, 1);
  });
});

test('a follower misses no commit that was stored while it opened', async () => {
  const options = world({ key: 'open sesame', iterations: 10 });
  const writer = await openStore('m', options);
  const step = change(new Uint8Array(0), 4096, random(1), 3);
  await writer.commit(step.commit);
  const next = change(step.next, 4096, random(2), 3);
  const { subtle } = globalThis.crypto;
  const decrypt = async (algorithm, ...words) => {
    if (Buffer.from(algorithm.additionalData).toString() === 'delta:1:0') await writer.commit(next.commit);
    return subtle.decrypt(algorithm, ...words);
  };
  const crypto = { importKey: subtle.importKey.bind(subtle), deriveKey: subtle.deriveKey.bind(subtle), decrypt };
  const follower = await openStore('m', { ...options, mode: 'read', broadcast: BroadcastChannel, crypto: { subtle: crypto } });
  assert.equal(content(follower.image).compare(content(next.next)), 0);
  await follower.close();
  await writer.close();
});

test('followers hear of a commit even if its writer is gone before it hears that it is stored', async () => {
  for (const leaving of [true, false]) {
    const options = world({ broadcast: BroadcastChannel, locks: new Locks() });
    const writer = await openStore('m', options);
    const step = change(new Uint8Array(0), 4096, random(1), 3);
    await writer.commit(step.commit);
    const follower = await openStore('m', { ...options, mode: 'follow' });
    const { transaction } = IDBDatabase.prototype;
    IDBDatabase.prototype.transaction = function (stores, mode, ...words) {
      const begun = transaction.call(this, stores, mode, ...words);
      if (mode === 'readwrite') Object.defineProperty(begun, 'oncomplete', { set() {} });
      return begun;
    };
    const next = change(step.next, 4096, random(2), 3);
    try {
      writer.commit({ ...next.commit, leaving }); // of which nobody hears the end
      for (let looked = 0; follower.generation < 2 && looked < 500; looked++) await new Promise((resolve) => setTimeout(resolve, 2));
    } finally {
      IDBDatabase.prototype.transaction = transaction;
    }
    assert.equal(content(follower.image).compare(content(next.next)), 0);
    await follower.close();
  }
});

test('an empty key is refused: it would store everything readable', async () => {
  for (const key of ['', new Uint8Array(0)]) await assert.rejects(openStore('m', world({ key })), { code: 'invalid', message: /empty/ });
});

test('where the page is not served over https it works, and says that it cannot encrypt', async () => {
  const { randomUUID } = globalThis.crypto;
  Object.defineProperty(globalThis.crypto, 'randomUUID', { value: undefined, configurable: true, writable: true });
  try {
    const crypto = { getRandomValues: (bytes) => globalThis.crypto.getRandomValues(bytes) };
    const options = world({ crypto });
    const store = await openStore('m', options);
    await store.commit(change(new Uint8Array(0), 4096, random(1), 3).commit);
    await store.close();
    await assert.rejects(openStore('n', { ...options, key: 'open sesame' }), { code: 'unavailable' });
  } finally {
    globalThis.crypto.randomUUID = randomUUID;
  }
});

test('whether the browser evicts: what the page asked, and in a worker, which cannot ask, what is true now', async () => {
  const until = async (store, wanted) => {
    for (let looked = 0; store.status().persisted !== wanted && looked < 100; looked++) {
      await new Promise((resolve) => setTimeout(resolve, 30)); // the browser is asked anew once a second
    }
    return store.status().persisted;
  };
  let persisted = false;
  const page = { persisted: async () => persisted, persist: async () => (persisted = true) };
  const unasked = await openStore('m', world({ storage: page, persist: false }));
  assert.equal(await until(unasked, false), false);
  const asked = await openStore('m', world({ storage: page }));
  assert.equal(await until(asked, true), true);
  persisted = false;
  const worker = await openStore('m', world({ storage: { persisted: async () => persisted } }));
  assert.equal(await until(worker, false), false);
  persisted = true; // the page has asked
  assert.equal(await until(worker, true), true);
  for (const store of [unasked, asked, worker]) await store.close();
});

test('strict is what IndexedDB is asked for, and relaxed what it is asked for otherwise', async () => {
  const { transaction } = IDBDatabase.prototype;
  const asked = [];
  IDBDatabase.prototype.transaction = function (stores, mode, options) {
    if (mode === 'readwrite') asked.push(options?.durability);
    return transaction.call(this, stores, mode, options);
  };
  try {
    for (const strict of [true, false]) {
      asked.length = 0;
      const store = await openStore('m', world({ strict }));
      await store.commit(change(new Uint8Array(0), 4096, random(1), 3).commit);
      await store.commit({ full: full(random(2), 4096, 9).next });
      assert.deepEqual(new Set(asked), new Set([strict ? 'strict' : 'relaxed']));
      await store.close();
    }
  } finally {
    IDBDatabase.prototype.transaction = transaction;
  }
});
