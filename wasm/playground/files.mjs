// The visitor's files: taken from a drop or a file chooser, and kept in IndexedDB, so that a run can go on after a reload.

const DATABASE = 'ruv-swarm-playground';
const SKIPPED = new Set(['__pycache__', 'node_modules', 'site-packages']);
const belongs = path => path.endsWith('.py') && path.split('/').every(name => !name.startsWith('.') && !SKIPPED.has(name));

/**
 * @typedef {object} Tree
 * @property {string} name
 * @property {{path: string, bytes: Uint8Array}[]} files paths are relative, with slashes
 */

/**
 * The Python files of a drop: files, directories with what is in them, zip files.
 * @param {DataTransfer} transfer
 * @param {(bytes: Uint8Array) => Promise<{path: string, bytes: Uint8Array}[]>} unzip
 * @returns {Promise<Tree>}
 */
export async function fromDrop(transfer, unzip) {
  const entries = Array.from(transfer.items, item => item.webkitGetAsEntry?.()).filter(Boolean); // before anything is awaited
  if (!entries.length) return fromChooser([...transfer.files], unzip);
  const found = [];
  for (const entry of entries) await collect(entry, '', found);
  return tree(found, unzip);
}

async function collect(entry, above, found) {
  const path = above + entry.name;
  if (entry.isFile) {
    if (!belongs(path) && !path.endsWith('.zip')) return;
    found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  if (SKIPPED.has(entry.name) || entry.name.startsWith('.')) return;
  const reader = entry.createReader();
  for (let some; (some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
    for (const each of some) await collect(each, `${path}/`, found);
  }
}

/**
 * The Python files of a file chooser.
 * @param {Iterable<File>} files
 * @param {(bytes: Uint8Array) => Promise<{path: string, bytes: Uint8Array}[]>} unzip
 * @returns {Promise<Tree>}
 */
export function fromChooser(files, unzip) {
  return tree(Array.from(files, file => ({ path: file.webkitRelativePath || file.name, file })), unzip);
}

async function tree(found, unzip) {
  const files = [];
  for (const { path, file } of found) {
    if (path.endsWith('.zip')) files.push(...(await unzip(await content(file))).filter(each => belongs(each.path)));
    else if (belongs(path)) files.push({ path, bytes: await content(file) });
  }
  if (!files.length) throw new Error('There are no Python files in there.');
  const top = files[0].path.split('/', 1)[0];
  const under = files.every(({ path }) => path.startsWith(`${top}/`));
  const name = under ? top : (found.length === 1 ? found[0].path.replace(/\.\w+$/, '') : 'my-files');
  const inside = under ? files.map(({ path, bytes }) => ({ path: path.slice(top.length + 1), bytes })) : files;
  return { name: await distinct(name, files), files: inside };
}

const content = async file => new Uint8Array(await file.arrayBuffer());

/**
 * A name that tells this content from another of the same name: a run goes on over the files that it began with.
 * @param {string} name
 * @param {{path: string, bytes: Uint8Array}[]} files
 * @returns {Promise<string>} ends in a dash and six hexadecimal digits
 */
export async function distinct(name, files) {
  const sorted = files.toSorted((a, b) => (a.path < b.path ? -1 : 1));
  const blob = new Blob(sorted.flatMap(({ path, bytes }) => [`${path}\0${bytes.length}\0`, bytes]));
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', await blob.arrayBuffer()));
  return `${name.replace(/[^\w.-]+/g, '-')}-${Array.from(hash.subarray(0, 3), byte => byte.toString(16).padStart(2, '0')).join('')}`;
}

function transact(mode, act) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore('trees', { keyPath: 'name' });
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction('trees', mode);
      const request = act(transaction.objectStore('trees'));
      transaction.oncomplete = () => (database.close(), resolve(request?.result));
      transaction.onabort = () => (database.close(), reject(transaction.error));
    };
  });
}

/** Keep a tree, and none before it. @param {Tree} tree */
export const keep = tree => transact('readwrite', store => (store.clear(), store.put(tree)));

/** The tree that is kept. @returns {Promise<Tree | undefined>} */
export const kept = async () => (await transact('readonly', store => store.getAll()))[0];
