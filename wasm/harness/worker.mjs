// Pyodide in a module worker; page.html is the other end.
import { boot } from './boot.mjs';

const decoders = { 1: new TextDecoder(), 2: new TextDecoder() };
let pyodide, inside, namespace;

const calls = {
  /** Boot Pyodide with all packages, or with those of `packages`. */
  async boot({ packages } = {}) {
    const base = new URL('../build/', import.meta.url).href;
    const [{ loadPyodide }, lock, source] = await Promise.all([
      import(`${base}wheelhouse/pyodide.mjs`),
      fetch(`${base}test-lock.json`).then(response => response.json()),
      fetch(new URL('inside.py', import.meta.url)).then(response => response.text()),
    ]);
    const write = (descriptor, bytes) => postMessage({ descriptor, text: decoders[descriptor].decode(bytes, { stream: true }) });
    ({ pyodide, inside } = await boot({ loadPyodide, lock, base, inside: source, write, packages }));
    namespace = pyodide.toPy({});
  },

  /** Unpack the tree at /tree and go there. */
  async tree() {
    const response = await fetch('/tree.tar');
    if (!response.ok) throw new Error(await response.text());
    pyodide.unpackArchive(await response.arrayBuffer(), 'tar', { extractDir: '/tree' });
    pyodide.FS.chdir('/tree');
  },

  /** Run a program or pytest; its exit code. */
  run: ({ before, source, args, share }) => inside.run(before, source ?? undefined, pyodide.toPy(args), pyodide.toPy(share ?? [0, 1])),

  /** Run lines in a namespace that stays; the value of the last one. */
  evaluate: source => inside.evaluate(source, namespace),
};

self.onmessage = async ({ data: { id, name, argument } }) => {
  try {
    postMessage({ id, value: await calls[name](argument) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
