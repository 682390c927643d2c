// The real engine (driver.mjs over the pinned sql.js) for tests in Node.

import { readFileSync } from 'node:fs';
import { start } from '../sqljs_dbapi/js/driver.mjs';
import { findLayout } from '../sqljs_dbapi/js/layout.mjs';

const dist = new URL('../node_modules/sql.js/dist/', import.meta.url);

export async function startEngine(capture) {
  const source = readFileSync(new URL('sql-wasm-browser.js', dist), 'utf8');
  const initSqlJs = new Function('module', 'exports', 'define', `${source}\nreturn initSqlJs;`)();
  const wasmBytes = readFileSync(new URL('sql-wasm.wasm', dist));
  return start({ initSqlJs, wasmBytes, findLayout, wrapImports: capture?.wrapImports });
}
