// Pyodide from the wheelhouse, on Node and in a browser's worker alike.

/**
 * @typedef {object} Boot
 * @property {Function} loadPyodide of the wheelhouse
 * @property {object} lock contents of test-lock.json
 * @property {string} base directory or URL, ending in a slash, that the lock's file names start at
 * @property {string} inside source of inside.py
 * @property {(descriptor: number, bytes: Uint8Array) => void} write takes output: 1 is standard output, 2 errors
 * @property {string[]} [packages] names to load instead of all that is locked
 */

/**
 * Boot Pyodide with packages of the wheelhouse.
 * @param {Boot} options
 * @returns {Promise<{pyodide: any, inside: any}>} Pyodide, and the module inside.py in it
 */
export async function boot({ loadPyodide, lock, base, inside, write, packages = Object.keys(lock.packages) }) {
  const encoder = new TextEncoder();
  const pyodide = await loadPyodide({
    lockFileContents: lock,
    packageBaseUrl: base,
    packageCacheDir: base,
    env: { HOME: '/home/pyodide', PYTHONDONTWRITEBYTECODE: '1', HYPOTHESIS_STORAGE_DIRECTORY: '/tmp/hypothesis' },
    stdout: line => write(1, encoder.encode(`${line}\n`)),
    stderr: line => write(2, encoder.encode(`${line}\n`)),
  });
  const failures = []; // Pyodide says so, and goes on without the package
  await pyodide.loadPackage(packages, { messageCallback: () => {}, errorCallback: message => failures.push(message) });
  if (failures.length) throw new Error(failures.join('\n'));
  for (const [descriptor, set] of [[1, 'setStdout'], [2, 'setStderr']]) {
    pyodide[set]({ write: bytes => (write(descriptor, bytes.slice()), bytes.length) });
  }
  const site = pyodide.runPython('import importlib, sysconfig; sysconfig.get_path("purelib")');
  pyodide.FS.writeFile(`${site}/inside.py`, inside);
  // packages come from their wheels, also where the tree is the current directory
  pyodide.runPython('import sys; sys.path[:] = [entry for entry in sys.path if entry]; importlib.invalidate_caches()');
  return { pyodide, inside: pyodide.pyimport('inside') };
}
