// What the page shows of a run and of the storage. State in, DOM out; nothing is kept here but the rows on display.

const find = id => document.getElementById(id);
const number = new Intl.NumberFormat('en');
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const EVENTS = 60;
const LATE = 2000; // ms from which a commit that is not stored is worth a word
const QUEUE = { 'demo.tree': 'tree', 'demo.directory': 'directories', 'demo.file': 'files' };
const STATUSES = [['pending', 'scheduled', 'blocked'], ['assigned', 'running'], ['completed'], ['failed', 'cancelled']];
const TOTALS = ['files', 'unparsable', 'lines', 'words', 'functions', 'classes', 'imports'];

/** @param {number} count @returns {string} with separators */
export const figure = count => number.format(count);

/** @param {number} bytes @returns {string} in words of a person */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return 'not known';
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/** The last part of a run's path, without what tells it from others of that name. @param {string} path */
export const title = path => path.split('/').at(-1).replace(/-[0-9a-f]{6}$/, '') || path;

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const put = (node, text) => {
  if (node.textContent !== String(text)) node.textContent = text; // what has not changed is not read out again
};

/** Make a table's rows be those of `items`: rows that stay are kept, and the focus with them. */
function sync(body, items, key, create, update) {
  const rows = new Map(Array.from(body.children, row => [row.dataset.key, row]));
  for (const item of items) {
    let row = rows.get(key(item));
    if (!row) {
      row = create(item);
      row.dataset.key = key(item);
      body.append(row);
    }
    rows.delete(key(item));
    update(row, item);
  }
  for (const row of rows.values()) row.remove();
}

/** @param {any[]} workers @param {boolean} ours whether they can be killed from here @param {(id: string) => void} kill */
export function showAgents(workers, ours, kill) {
  const create = ({ id, name }) => {
    const button = make('button', { type: 'button', className: 'quiet', textContent: 'Kill', onclick: () => kill(id) });
    button.setAttribute('aria-label', `Kill ${name}`);
    const cells = ['status', 'number', 'doing'].map(className => make('td', { className }));
    return make('tr', {}, make('th', { scope: 'row', textContent: name }), ...cells, make('td', { className: 'act' }, button));
  };
  sync(find('agents'), workers, worker => worker.id, create, (row, { status, completed, doing, seconds }) => {
    const [, state, done, what, act] = row.cells;
    put(state, status);
    state.dataset.status = status;
    put(done, figure(completed));
    put(what, doing ? `${doing}${seconds >= 1 ? `  ${seconds.toFixed(0)} s` : ''}` : '');
    act.firstChild.disabled = !ours;
  });
  find('no-agents').hidden = workers.length > 0;
  find('agents-table').hidden = workers.length === 0;
}

/** @param {Record<string, Record<string, number>>} queue tasks by type and status */
export function showQueue(queue) {
  sync(find('queue'), Object.keys(QUEUE), type => type, type => {
    const cells = STATUSES.map(() => make('td', { className: 'number' }));
    return make('tr', {}, make('th', { scope: 'row', textContent: QUEUE[type] }), ...cells);
  }, (row, type) => {
    STATUSES.forEach((statuses, at) => {
      const count = statuses.reduce((sum, status) => sum + (queue[type]?.[status] ?? 0), 0);
      put(row.cells[at + 1], figure(count));
      row.cells[at + 1].classList.toggle('none', count === 0);
    });
  });
}

/** How many tasks are in some statuses. @param {Record<string, Record<string, number>>} queue @param {number} column of STATUSES */
export const inQueue = (queue, column) =>
  Object.values(queue).reduce((sum, counts) => sum + STATUSES[column].reduce((all, status) => all + (counts[status] ?? 0), 0), 0);

/** @param {{position: number, at: number, type: string, about: string}[]} events newer ones, oldest first */
export function showEvents(events) {
  const list = find('events');
  for (const { at, type, about } of events) {
    const kind = make('span', { className: 'kind', textContent: type });
    kind.dataset.kind = type.split('.')[0];
    const when = make('time', { textContent: clock.format(at), dateTime: new Date(at).toISOString() });
    list.prepend(make('li', {}, when, kind, make('span', { className: 'about', textContent: about })));
  }
  while (list.children.length > EVENTS) list.lastChild.remove();
  find('no-events').hidden = list.children.length > 0;
}

/** Shows none of the events on display any more. */
export const clearEvents = () => find('events').replaceChildren();

/** @param {Record<string, number>} counts rows by noun */
export function showCounts(counts) {
  sync(find('counts'), Object.entries(counts), ([noun]) => noun, ([noun]) => make('div', {}, make('dt', { textContent: noun }), make('dd')),
    (row, [, count]) => put(row.lastChild, figure(count)));
}

/** @param {any} outcome what the run noted at its end, or nothing @param {string} path */
export function showOutcome(outcome, path) {
  const panel = find('outcome');
  panel.hidden = !outcome;
  if (!outcome || panel.dataset.of === JSON.stringify(outcome)) return;
  panel.dataset.of = JSON.stringify(outcome);
  const good = Boolean(outcome.totals);
  find('verdict').className = good ? 'good' : 'bad';
  const agree = () => `The swarm and the recount agree on ${figure(outcome.totals.files)} files of ${title(path)}.`;
  put(find('verdict'), good ? agree() : `Ended: ${outcome.reason}`);
  find('findings').hidden = !good;
  if (!good) return;
  const { totals, effort, parse_time: times, slowest } = outcome;
  const entry = (name, value) => make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: figure(value) }));
  find('totals').replaceChildren(...TOTALS.map(name => entry(name, totals[name])));
  const modules = Object.entries(totals.modules).sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).slice(0, 8);
  find('modules').replaceChildren(...modules.map(([name, count]) => bar(name, count, modules[0][1], figure(count))));
  find('slowest').replaceChildren(...slowest.slice(0, 8).map(({ path: file, milliseconds }) =>
    bar(file, milliseconds, slowest[0].milliseconds, `${milliseconds.toFixed(1)} ms`)));
  const rate = effort.seconds ? `${figure(Math.round(effort.tasks / effort.seconds))} tasks/s` : '';
  const parsing = times ? ` Parsing a file: p50 ${times.p50.toFixed(1)} ms, p95 ${times.p95.toFixed(1)} ms.` : '';
  put(find('effort'), `${figure(effort.tasks)} tasks by ${effort.workers} agents in ${effort.seconds.toFixed(1)} s, ${rate}` +
    `${effort.sessions > 1 ? `, in ${effort.sessions} sessions` : ''}; done again: ${effort.retries}.${parsing}`);
}

function bar(name, value, most, text) {
  const filled = make('span', { className: 'bar' });
  filled.style.inlineSize = `${(100 * value) / most}%`;
  const label = make('span', { className: 'name', textContent: name, title: name });
  return make('li', {}, label, make('span', { className: 'number', textContent: text }), filled);
}

const ago = then => {
  const seconds = (Date.now() - then) / 1000;
  if (seconds < 60) return seconds < 1 ? 'just now' : `${Math.floor(seconds)} s ago`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : clock.format(then);
};

function pending({ pending_bytes: bytes, pending_commits: commits }) {
  if (!commits) return 'nothing';
  return `${bytes ? `${size(bytes)}, ` : ''}${figure(commits)} commit${commits === 1 ? '' : 's'}`;
}

/** @param {any} status of the storage; see `sqljs_dbapi.storage.Status` */
export function showStorage(status) {
  const { read_only: follows, failure } = status;
  const locks = { held: 'this tab', other: 'another tab', none: 'nobody', unsupported: 'this browser has no locks' };
  put(find('role'), follows ? 'follower, read only' : 'writer');
  put(find('lock'), locks[status.lock] ?? status.lock);
  put(find('flushed'), follows ? 'by the other tab' : status.last_flush ? ago(status.last_flush) : 'nothing to store yet');
  put(find('lag'), follows ? '—' : `${Math.round(status.lag)} ms`);
  put(find('pending'), follows ? '—' : pending(status));
  put(find('size'), size(status.size));
  put(find('generation'), figure(status.generation));
  put(find('room'), status.quota ? `${size(status.usage)} of ${size(status.quota)}` : 'not known');
  put(find('persisted'), { true: 'kept until you clear it', false: 'may be evicted' }[status.persisted] ?? 'the browser does not say');
  const pill = find('pill');
  const state = failure ? 'failed' : follows ? 'follows' : status.pending_commits ? 'pending' : 'stored';
  pill.dataset.state = state;
  const storing = status.lag < LATE ? 'Storing…' : `Storing, ${Math.round(status.lag / 1000)} s behind`;
  put(pill, { failed: 'Not stored', follows: 'Following another tab', pending: storing, stored: 'Everything is stored' }[state]);
  find('failure').hidden = !failure;
  put(find('failure'), failure ? `The browser did not store it: ${failure}` : '');
  find('follower').hidden = !follows;
}
