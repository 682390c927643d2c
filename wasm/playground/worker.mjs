// Pyodide in a module worker, with the store and the swarm in it; app.mjs is the other end.

const FILES = '/files';
let pyodide;
let session;

const tell = (name, value) => postMessage({ tell: name, value });

/** Write a tree's files where the swarm finds them; the directory's path. */
function place({ name, files }) {
  const directory = `${FILES}/${name}`;
  if (!pyodide.FS.analyzePath(directory).exists) {
    for (const { path, bytes } of files) {
      const file = `${directory}/${path}`;
      pyodide.FS.mkdirTree(file.slice(0, file.lastIndexOf('/')));
      pyodide.FS.writeFile(file, bytes);
    }
  }
  return directory;
}

const calls = {
  /** Start Python and open the store. */
  async boot({ packages }) {
    tell('step', 'Starting Python');
    const base = new URL('wheelhouse/', import.meta.url).href;
    const { loadPyodide } = await import(`${base}pyodide.mjs`);
    const env = { HOME: '/home/pyodide', PYTHONDONTWRITEBYTECODE: '1' };
    pyodide = await loadPyodide({ indexURL: base, packageBaseUrl: base, packages, env });
    tell('step', 'Loading the swarm');
    const source = await (await fetch(new URL('session.py', import.meta.url))).text();
    pyodide.FS.writeFile('/home/pyodide/session.py', source);
    const module = pyodide.pyimport('session');
    session = module.Session((name, json) => tell(name, JSON.parse(json)));
    tell('step', 'Opening the store');
    await session.open();
  },

  /** Take files over; what they are, as `start` wants to know it. */
  place(tree) {
    pyodide.FS.mkdirTree(FILES);
    return place(tree);
  },

  /** Unpack a zip file's Python files. */
  async unzip({ bytes }) {
    const directory = '/tmp/unzipped';
    pyodide.runPython(`import shutil; shutil.rmtree("${directory}", ignore_errors=True)`);
    pyodide.unpackArchive(bytes, 'zip', { extractDir: directory });
    const files = [];
    const walk = (at) => {
      for (const name of pyodide.FS.readdir(at)) {
        const path = `${at}/${name}`;
        if (name === '.' || name === '..') continue;
        if (pyodide.FS.isDir(pyodide.FS.stat(path).mode)) walk(path);
        else if (name.endsWith('.py')) files.push({ path: path.slice(directory.length + 1), bytes: pyodide.FS.readFile(path) });
      }
    };
    walk(directory);
    return files;
  },

  start: ({ path, agents, pace }) => session.start(path, agents, pace),
  order: ({ agents, pace }) => session.order(agents, pace),
  stop: () => session.stop(),
  kill: ({ agent }) => session.kill(agent),
  giveUp: () => session.give_up(),
  flush: () => session.flush(),
  open: ({ mode }) => session.open(mode),
  handOver: () => session.hand_over(),
  forget: () => session.forget(),
  replace: ({ bytes }) => session.replace(pyodide.toPy(bytes)),

  /** The database as a SQLite file. */
  export() {
    const content = session.export();
    const bytes = content.toJs();
    content.destroy();
    return bytes;
  },
};

self.onmessage = async ({ data: { id, name, argument } }) => {
  try {
    postMessage({ id, value: await calls[name](argument ?? {}) });
  } catch (error) {
    postMessage({ id, error: reason(error) });
  }
};

/** What went wrong, without the way Python took there. */
function reason(error) {
  const lines = String(error?.message ?? error).trim().split('\n');
  const last = lines.findLastIndex(line => /^[\w.]+(Error|Exception|Conflict|Mismatch|Unavailable|Unsupported|\w+): /.test(line));
  return last < 0 ? lines.at(-1) : lines.slice(last).join(' ').replace(/^[\w.]+: /, '');
}
