// The page: starts the worker that has the store and the swarm, passes on what the visitor wants, shows what comes back.
import { Chart } from './chart.mjs';
import { distinct, fromChooser, fromDrop, keep, kept } from './files.mjs';
import { serveOffline } from './offline.mjs';
import * as panels from './panels.mjs';

const PACKAGES = ['ruv-swarm-store', 'sqljs-dbapi'];
const HAND_OVER = 4000; // ms for the other tab to hand over before it is made to
const find = id => document.getElementById(id);
const news = text => (find('news').textContent = text);
const tabs = new BroadcastChannel('ruv-swarm-playground');

let worker;
const calls = new Map();
const trees = {};
let scene = { state: 'empty' };
let storage = null;
let busy = false;
let moving = false;
let usable = false;

// -- The worker

function call(name, argument, transfer = []) {
  const id = crypto.randomUUID();
  return new Promise((resolve, reject) => {
    calls.set(id, { resolve, reject });
    worker.postMessage({ id, name, argument }, transfer);
  });
}

function startWorker() {
  worker = new Worker('worker.mjs', { type: 'module', name: 'swarm' });
  worker.onerror = event => trouble(event.message || 'The worker did not start.');
  worker.onmessage = ({ data: { id, tell, value, error } }) => {
    if (tell) return told[tell](value);
    const { resolve, reject } = calls.get(id);
    calls.delete(id);
    return error === undefined ? resolve(value) : reject(new Error(error));
  };
}

const told = {
  step: text => (find('boot-step').textContent = text),
  trouble,
  scene(next) {
    const before = scene.state;
    scene = next;
    showScene();
    if (before !== scene.state) announce(before);
  },
  storage(status) {
    storage = status;
    panels.showStorage(status);
    enable();
  },
  /** The other tab is gone: this one writes now. */
  turn() {
    news('This tab writes the store now.');
    if (usable) goOn().catch(failed);
  },
  /** Another tab took over by force. */
  async fenced() {
    if (moving) return;
    moving = true;
    await call('open', { mode: 'follow' }).catch(failed);
    moving = false;
  },
};

function trouble(text) {
  find('trouble').textContent = text;
  find('trouble').hidden = !text;
}

const failed = error => trouble(error.message);

/** Do what a button is for; the others wait meanwhile. */
async function act(doing) {
  trouble('');
  busy = true;
  enable();
  try {
    return await doing();
  } catch (error) {
    return failed(error);
  } finally {
    busy = false;
    enable();
  }
}

// -- What is shown

const throughput = new Chart(find('throughput'), { label: 'Throughput in tasks per second', series: ['done'] });
const depth = new Chart(find('depth'), { label: 'Tasks in the queue', series: ['held', 'waiting'], least: 10 });

const STATES = {
  empty: () => 'No run yet',
  running: name => `Indexing ${name}`,
  elsewhere: name => `Another tab is indexing ${name}`,
  stopped: name => `Stopped while indexing ${name}`,
  interrupted: name => `Interrupted while indexing ${name}`,
  finished: name => `Indexed ${name}`,
  failed: name => `Indexing ${name} came to no good end`,
};

function showScene() {
  const { state, run, files, queue = {}, workers = [], elapsed, said, stage, events, counts, outcome } = scene;
  const effort = outcome?.effort;
  const rate = effort?.seconds ? effort.tasks / effort.seconds : (scene.rate ?? 0);
  const seconds = elapsed ?? effort?.seconds;
  find('run-title').textContent = STATES[state](run ? panels.title(run.path) : '');
  find('stage').textContent = stage ?? said.at(-1) ?? '';
  find('progress').max = files?.known || 1;
  find('progress').value = files?.indexed ?? 0;
  find('indexed').textContent = panels.figure(files?.indexed ?? 0);
  find('known').textContent = panels.figure(files?.known ?? 0);
  find('rate').textContent = panels.figure(Math.round(rate));
  find('waiting').textContent = panels.figure(panels.inQueue(queue, 0) + panels.inQueue(queue, 1));
  find('retries').textContent = panels.figure(scene.retries ?? 0);
  find('elapsed').textContent = seconds === undefined ? '–' : `${seconds.toFixed(1)} s`;
  if (state === 'running' || state === 'elsewhere') {
    throughput.push([rate]);
    depth.push([panels.inQueue(queue, 1), panels.inQueue(queue, 0)]);
  }
  panels.showAgents(workers, state === 'running', agent => call('kill', { agent }).catch(failed));
  panels.showQueue(queue);
  panels.showEvents(events);
  panels.showCounts(counts);
  panels.showOutcome(outcome, run?.path ?? '');
  enable();
}

function announce(before) {
  if (before === 'empty' && scene.state !== 'running') return;
  news(find('run-title').textContent + (scene.outcome ? `. ${find('verdict').textContent}` : ''));
}

function enable() {
  const follows = storage?.read_only ?? true;
  const running = scene.state === 'running';
  const open = ['stopped', 'interrupted'].includes(scene.state);
  find('start').hidden = running;
  find('stop').hidden = !running;
  find('stop').disabled = busy || Boolean(scene.stage);
  find('start').textContent = open ? 'Go on' : 'Start';
  find('start').disabled = busy || follows || (open && !treeOf(scene.run.path));
  find('give-up').hidden = !open || follows;
  find('give-up').disabled = busy;
  find('tree').disabled = running || open || follows;
  for (const id of ['choose-directory', 'choose-files']) find(id).disabled = running || follows || busy;
  for (const id of ['agent-number', 'pace']) find(id).disabled = follows;
  for (const id of ['import', 'forget', 'flush']) find(id).disabled = busy || follows;
  find('export').disabled = busy;
  find('take-over').disabled = busy;
}

// -- Runs

/** The tree of a run, if its files are here. */
const treeOf = path => Object.values(trees).find(({ path: here }) => here === path);

async function addTree(tree, label) {
  trees[tree.name] = { ...tree, label, path: await call('place', tree) };
  const option = ({ name, label: text, files }) => new Option(`${text} (${panels.figure(files.length)} files)`, name);
  find('tree').replaceChildren(...Object.values(trees).map(option));
  find('tree').value = tree.name;
}

const wanted = () => ({ agents: find('agent-number').valueAsNumber, pace: Number(find('pace').value) });

async function start() {
  const open = ['stopped', 'interrupted'].includes(scene.state);
  const { path } = open ? treeOf(scene.run.path) : trees[find('tree').value];
  await call('start', { path, ...wanted() });
}

/** Go on with a run that a reload or a crash has interrupted. */
async function goOn() {
  if (scene.state !== 'interrupted') return;
  if (treeOf(scene.run.path)) await start();
  else trouble(`The files of the unfinished run, ${panels.title(scene.run.path)}, are not here: give it up, or drop them again.`);
}

async function take(tree) {
  await addTree(tree, tree.name.replace(/-[0-9a-f]{6}$/, ''));
  await keep(tree);
  news(`${tree.files.length} files are ready to be indexed.`);
}

const unzip = bytes => call('unzip', { bytes }, [bytes.buffer]);

// -- Databases

async function exportDatabase() {
  const bytes = await call('export');
  const url = URL.createObjectURL(new Blob([bytes], { type: 'application/vnd.sqlite3' }));
  Object.assign(document.createElement('a'), { href: url, download: 'swarm.sqlite' }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

async function importDatabase(file) {
  const empty = scene.state === 'empty' && Object.values(scene.counts ?? {}).every(count => count === 0);
  const warning = `${file.name} takes the place of everything in the store. Export it first if you want to keep it.`;
  if (!empty && !(await sure('Replace what is stored?', warning, 'Replace'))) return;
  const bytes = new Uint8Array(await file.arrayBuffer());
  panels.clearEvents();
  await call('replace', { bytes }, [bytes.buffer]);
  news(`${file.name} is in the store.`);
}

async function forget() {
  const warning = 'The store of this page is emptied: agents, tasks, events and all. Exports you have made stay.';
  if (!(await sure('Forget everything?', warning, 'Forget'))) return;
  panels.clearEvents();
  await call('forget');
}

function sure(title, text, yes) {
  const dialog = find('sure');
  find('sure-title').textContent = title;
  find('sure-text').textContent = text;
  find('sure-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }));
}

// -- Several tabs

/** Become the writer: the other tab is asked, and made to when it does not answer. */
async function takeOver() {
  tabs.postMessage('hand over');
  const until = performance.now() + HAND_OVER;
  while (storage.read_only && performance.now() < until) await new Promise(resolve => setTimeout(resolve, 100));
  if (storage.read_only) await call('open', { mode: 'steal' });
}

tabs.onmessage = async ({ data }) => {
  if (data !== 'hand over' || !storage || storage.read_only || moving) return;
  moving = true;
  await call('handOver').catch(failed);
  moving = false;
};

// -- The visitor

function listen() {
  find('controls').addEventListener('submit', event => (event.preventDefault(), act(start)));
  find('stop').addEventListener('click', () => act(() => call('stop')));
  find('give-up').addEventListener('click', () => act(() => call('giveUp')));
  find('flush').addEventListener('click', () => act(() => call('flush')));
  find('export').addEventListener('click', () => act(exportDatabase));
  find('forget').addEventListener('click', () => act(forget));
  find('take-over').addEventListener('click', () => act(takeOver));
  for (const [button, input] of [['choose-directory', 'directory'], ['choose-files', 'files'], ['import', 'database']]) {
    find(button).addEventListener('click', () => find(input).click());
  }
  const chosen = (id, doing) => find(id).addEventListener('change', async ({ target }) => {
    await act(() => doing([...target.files]));
    target.value = ''; // the same one may be chosen again
  });
  for (const id of ['directory', 'files']) chosen(id, async files => take(await fromChooser(files, unzip)));
  chosen('database', ([file]) => importDatabase(file));
  find('agent-number').addEventListener('input', () => {
    find('agents-count').textContent = find('agent-number').value;
    call('order', wanted()).catch(failed);
  });
  find('pace').addEventListener('change', () => call('order', wanted()).catch(failed));

  let inside = 0;
  const over = change => find('drop').classList.toggle('over', (inside = Math.max(0, change)) > 0);
  addEventListener('dragenter', event => (event.preventDefault(), over(inside + 1)));
  addEventListener('dragleave', () => over(inside - 1));
  addEventListener('dragover', event => event.preventDefault());
  addEventListener('drop', event => {
    event.preventDefault();
    over(0);
    const [file] = event.dataTransfer.files;
    if (storage?.read_only) return trouble('Another tab writes the store: take over first.');
    if (/\.(sqlite3?|db)$/.test(file?.name ?? '')) return act(() => importDatabase(file));
    if (scene.state === 'running') return trouble('Stop the run first.');
    const tree = fromDrop(event.dataTransfer, unzip);
    return act(async () => take(await tree));
  });

  // A hidden page may never be seen again, and a worker is not told.
  const store = () => storage && !storage.read_only && call('flush').catch(() => {}); // what fails is shown by the storage's state
  document.addEventListener('visibilitychange', () => document.visibilityState === 'hidden' && store());
  addEventListener('pagehide', store);
}

async function begin() {
  if (!isSecureContext) throw new Error('Open this page over https, or from localhost: elsewhere browsers keep storage and locks from it.');
  const offline = await serveOffline(
    (done, total) => {
      Object.assign(find('boot-progress'), { max: total, value: done });
      find('boot-step').textContent = `Downloading: ${(done / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
    },
    activate => {
      find('renewed').hidden = false;
      find('renew').onclick = activate;
    },
  );
  find('offline').textContent = offline ? `no: ${offline}` : 'ready';
  find('boot-progress').removeAttribute('value');
  startWorker();
  await call('boot', { packages: PACKAGES });
  const packed = new Uint8Array(await (await fetch('sample.zip')).arrayBuffer());
  const files = await unzip(packed);
  await addTree({ name: await distinct('ruv_swarm_store', files), files }, 'Sample: our own source');
  const own = await kept().catch(() => undefined);
  if (own) await addTree(own, own.name.replace(/-[0-9a-f]{6}$/, ''));
  listen();
  find('boot').hidden = true;
  find('app').hidden = false;
  find('main').removeAttribute('aria-busy');
  usable = true;
  navigator.storage?.persist?.(); // a worker cannot ask; the panel says what came of it
  if (!storage.read_only) await goOn();
}

begin().catch(error => {
  find('boot-step').textContent = 'It did not start.';
  find('boot-progress').hidden = true;
  failed(error);
});
