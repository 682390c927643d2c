// Keeps every file of one build, by the hash of its content: a newer build downloads what has changed, and comes to life as a whole.
// build.py puts the list of files in place of this one: {name: {hash, size, type}}.
const FILES = {};

const CACHE = 'ruv-swarm-playground';
const AT_ONCE = 4;
const home = self.registration.scope;
const kept = hash => `${home}content/${hash}`;

self.addEventListener('install', event => event.waitUntil(download()));
self.addEventListener('activate', event => event.waitUntil(Promise.all([forgetOthers(), self.clients.claim()])));
self.addEventListener('message', event => {
  if (event.data === 'activate') self.skipWaiting();
  if (event.data === 'claim') event.waitUntil(self.clients.claim());
});

self.addEventListener('fetch', event => {
  const { method, url } = event.request;
  const path = url.split(/[?#]/, 1)[0];
  const file = method === 'GET' && path.startsWith(home) && FILES[decodeURIComponent(path.slice(home.length)) || 'index.html'];
  if (file) event.respondWith(answer(file, event.request));
});

async function answer(file, request) {
  const cache = await caches.open(CACHE);
  return (await cache.match(kept(file.hash))) ?? fetch(request);
}

async function download() {
  const cache = await caches.open(CACHE);
  const there = new Set((await cache.keys()).map(({ url }) => url));
  const missing = Object.entries(FILES).filter(([, { hash }]) => !there.has(kept(hash)));
  const total = missing.reduce((sum, [, { size }]) => sum + size, 0);
  let done = 0;
  let told = 0;
  const count = bytes => {
    done += bytes;
    if (performance.now() - told < 100 && done < total) return;
    told = performance.now();
    tell({ done, total });
  };
  const workers = Array.from({ length: AT_ONCE }, async () => {
    for (let next; (next = missing.shift()); ) await keep(cache, ...next, count);
  });
  await Promise.all(workers);
}

async function keep(cache, name, { hash, type }, count) {
  for (const freshness of ['no-cache', 'reload']) {
    const response = await fetch(`${home}${encodeURI(name)}`, { cache: freshness });
    if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
    const parts = [];
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      count(value.length);
    }
    const content = new Blob(parts, { type });
    if ((await digest(content)) === hash) {
      await cache.put(kept(hash), new Response(content, { headers: { 'Content-Type': type } }));
      return;
    }
    count(-content.size);
  }
  throw new Error(`${name} is not that of this build`);
}

async function digest(content) {
  const bytes = new Uint8Array(await crypto.subtle.digest('SHA-256', await content.arrayBuffer()));
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');
}

async function forgetOthers() {
  const cache = await caches.open(CACHE);
  const ours = new Set(Object.values(FILES).map(({ hash }) => kept(hash)));
  await Promise.all((await cache.keys()).filter(({ url }) => !ours.has(url)).map(request => cache.delete(request)));
}

async function tell(message) {
  for (const client of await self.clients.matchAll({ includeUncontrolled: true, type: 'window' })) client.postMessage(message);
}
