// A server on 127.0.0.1 for the browser runner and the tests: `wasm/` under /, the tree as one archive at /tree.tar.
import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, normalize } from 'node:path';
import { archive } from './archive.mjs';
import { TREE, WASM } from './words.mjs';

const TYPES = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.json': 'application/json',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
};

/**
 * Serve until closed, at a port that the system chooses.
 * @param {{headers?: Record<string, string>, root?: string}} [options] headers of every answer; root: the directory instead of `wasm/`
 * @returns {Promise<{url: string, close: () => Promise<void>}>} url: without a slash at its end
 */
export async function serve({ headers = {}, root = WASM } = {}) {
  const server = createServer((request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://127.0.0.1').pathname));
    const always = { 'Cache-Control': 'no-cache', ...headers };
    const head = (status, type, more) => response.writeHead(status, { 'Content-Type': type, ...more, ...always });
    const answer = (status, type, body) => head(status, type).end(body);
    if (path === '/tree.tar') return answer(200, 'application/x-tar', archive(TREE));
    if (path === '/favicon.ico') return answer(204, 'image/x-icon');
    const file = root + path + (path.endsWith('/') ? 'index.html' : '');
    const found = statSync(file, { throwIfNoEntry: false });
    if (!found?.isFile()) return answer(404, 'text/plain', `there is no ${path}\n`);
    const type = TYPES[extname(file)] ?? 'application/octet-stream';
    head(200, type, { 'Content-Length': found.size });
    return createReadStream(file).pipe(response);
  });
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () =>
      new Promise(resolve => {
        server.close(resolve);
        server.closeAllConnections();
      }),
  };
}
