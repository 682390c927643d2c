// Firefox as it is shipped, driven by WebDriver BiDi: the few calls of Playwright's that the harness makes. Playwright itself
// sends commands that a Firefox ESR does not know.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import WebSocket from 'ws';

// no request of its own, nothing that asks its user
const PREFERENCES = {
  'app.normandy.enabled': false,
  'app.update.disabledForTesting': true,
  'browser.shell.checkDefaultBrowser': false,
  'datareporting.policy.dataSubmissionEnabled': false,
  'network.captive-portal-service.enabled': false,
  'network.connectivity-service.enabled': false,
  'services.settings.server': 'data:,',
  'toolkit.telemetry.enabled': false,
};

/**
 * Start Firefox without a window.
 * @param {string} executablePath
 * @param {string} profile directory
 * @returns {Promise<Firefox>}
 */
export async function launch(executablePath, profile) {
  const lines = Object.entries(PREFERENCES).map(([name, value]) => `user_pref(${JSON.stringify(name)}, ${JSON.stringify(value)});\n`);
  writeFileSync(`${profile}/user.js`, lines.join(''));
  const browser = spawn(executablePath, ['--headless', '--no-remote', '--profile', profile, '--remote-debugging-port=0'], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const ended = once(browser, 'exit');
  const url = await new Promise((resolve, reject) => {
    createInterface({ input: browser.stderr }).on('line', line => {
      const listening = /WebDriver BiDi listening on (ws:\S+)/.exec(line);
      if (listening) resolve(`${listening[1]}/session`);
    });
    ended.then(() => reject(new Error('Firefox ended before it listened')));
  });
  const socket = new WebSocket(url);
  await once(socket, 'open');
  const firefox = new Firefox(socket, ended);
  firefox.version = (await firefox.send('session.new', { capabilities: {} })).capabilities.browserVersion;
  return firefox;
}

/** A running Firefox. */
class Firefox {
  #waiting = new Map();
  #last = 0;

  constructor(socket, ended) {
    Object.assign(this, { socket, ended });
    socket.on('message', data => {
      const { id, type, result, error, message } = JSON.parse(data);
      const call = this.#waiting.get(id);
      if (!call) return; // an event
      this.#waiting.delete(id);
      if (type === 'success') call.resolve(result);
      else call.reject(new Error(`${error}: ${message}`));
    });
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('Firefox has ended'));
      this.#waiting.clear();
    });
  }

  /** Send a command of the protocol; its result. */
  send(method, params) {
    return new Promise((resolve, reject) => {
      const id = ++this.#last;
      if (this.socket.readyState !== WebSocket.OPEN) return reject(new Error('Firefox has ended'));
      this.#waiting.set(id, { resolve, reject });
      return this.socket.send(JSON.stringify({ id, method, params }));
    });
  }

  /** Open an empty page. */
  async newPage() {
    const { context } = await this.send('browsingContext.create', { type: 'tab' });
    return new Page(this, context);
  }

  /** Close it as its user would. */
  async close() {
    await this.send('browser.close', {});
    await this.ended;
  }
}

/** A page: Playwright's `goto`, `evaluate`, `reload` and `close`. */
class Page {
  constructor(firefox, context) {
    Object.assign(this, { firefox, context });
  }

  /** Go to `url` and wait until it is loaded. */
  async goto(url) {
    await this.firefox.send('browsingContext.navigate', { context: this.context, url, wait: 'complete' });
  }

  /** Load the page again. */
  async reload() {
    await this.firefox.send('browsingContext.reload', { context: this.context, wait: 'complete' });
  }

  /** Call a function in the page with one argument; both that and what it returns have to be JSON. */
  async evaluate(callable, argument) {
    const body = typeof callable === 'function' ? `(${callable})(JSON.parse(text))` : `(${callable})`;
    const { type, result, exceptionDetails } = await this.firefox.send('script.callFunction', {
      functionDeclaration: `async text => JSON.stringify(await ${body})`,
      arguments: [{ type: 'string', value: JSON.stringify(argument ?? null) }],
      awaitPromise: true,
      target: { context: this.context },
    });
    if (type === 'exception') throw new Error(exceptionDetails.text);
    return result.type === 'string' ? JSON.parse(result.value) : undefined;
  }

  /** Close the page; its `pagehide` is heard. */
  async close() {
    await this.firefox.send('browsingContext.close', { context: this.context });
  }
}
