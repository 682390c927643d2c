// Pyodide on Node, without a network: node node.mjs, and the words of words.mjs. The exit code is pytest's, or Python's.
// Python is entered asynchronously, so that `run_sync` works where Node has JSPI (26). The tree is at /tree, as it is on disk.
import { mkdtempSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { boot } from './boot.mjs';
import { TREE, WASM, inShares, parse } from './words.mjs';

/** Write all of `bytes`, also to a pipe whose reader is slow. */
function write(descriptor, bytes) {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(descriptor, bytes, done);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
}

function fail(error) {
  console.error(error?.stack ?? error); // its text alone: Node would print Pyodide's source, a line of a megabyte, with it
  process.exit(1);
}

async function main(words) {
  const asked = parse([...words]);
  if (asked.jobs > 1) return inShares(process.argv[1], asked.jobs, words);
  const files = mkdtempSync(join(tmpdir(), 'ruv-swarm-node-')); // databases go where Node is, and that is not the tree
  process.chdir(files);
  process.once('exit', () => rmSync(files, { recursive: true, force: true }));
  const { loadPyodide } = await import(`${WASM}/build/wheelhouse/pyodide.mjs`);
  const { pyodide, inside } = await boot({
    loadPyodide,
    lock: JSON.parse(readFileSync(`${WASM}/build/test-lock.json`, 'utf8')),
    base: `${WASM}/build/`,
    inside: readFileSync(`${WASM}/harness/inside.py`, 'utf8'),
    write,
  });
  pyodide.FS.mkdirTree('/tree');
  pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root: TREE }, '/tree');
  pyodide.FS.chdir('/tree');
  return inside.run(asked.before, asked.source ?? undefined, pyodide.toPy(asked.args), pyodide.toPy(asked.share ?? [0, 1]));
}

process.on('uncaughtException', fail);
main(process.argv.slice(2)).then(code => process.exit(code), fail);
