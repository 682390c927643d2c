// Browsers to test in: started on a profile of their own, killed, and started again on the same profile.
import { accessSync, constants, readFileSync, readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from 'playwright-core';
import { launch as launchFirefox } from './firefox.mjs';
import { Python } from './python.mjs';

const EXECUTABLES = {
  chromium: ['chromium', 'chromium-browser', 'google-chrome'],
  firefox: ['firefox-esr', 'firefox'],
};

const LAUNCH = {
  async chromium(executablePath, profile) {
    const args = ['--no-sandbox', '--disable-gpu', '--disable-background-networking'];
    const context = await chromium.launchPersistentContext(profile, { executablePath, args, headless: true });
    context.version = context.browser().version();
    return context;
  },
  firefox: launchFirefox,
};

/**
 * Where a browser is on this machine.
 * @param {'chromium' | 'firefox'} kind
 * @returns {string | undefined} path of the executable
 */
export function installed(kind) {
  const named = process.env[`RUV_SWARM_${kind.toUpperCase()}`];
  const directories = (process.env.PATH ?? '').split(delimiter);
  const places = EXECUTABLES[kind].flatMap(name => directories.map(directory => join(directory, name)));
  return [named, ...places].find(path => path && executable(path));
}

function executable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** A running browser with a profile that outlives it. `driver` is Playwright's context in Chromium, firefox.mjs in Firefox. */
export class Browser {
  /** @param {'chromium' | 'firefox'} kind @param {string} profile @param {any} driver */
  constructor(kind, profile, driver) {
    Object.assign(this, { kind, profile, driver, version: driver.version });
  }

  /**
   * Start a browser, without a window.
   * @param {'chromium' | 'firefox'} kind
   * @param {string} [profile] the directory of one that an earlier browser left, not a fresh one
   * @returns {Promise<Browser>}
   */
  static async start(kind, profile) {
    const executablePath = installed(kind);
    if (!executablePath) throw new Error(`there is no ${kind} on this machine`);
    profile ??= await mkdtemp(join(tmpdir(), `ruv-swarm-${kind}-`));
    return new Browser(kind, profile, await LAUNCH[kind](executablePath, profile));
  }

  /**
   * Open a page.
   * @param {string} url
   * @returns {Promise<any>} Playwright's page; of Firefox `goto`, `evaluate`, `reload` and `close` alone
   */
  async open(url) {
    const page = await this.driver.newPage();
    await page.goto(url);
    return page;
  }

  /**
   * Open a page with Pyodide in a worker.
   * @param {string} url of the server
   * @param {{packages?: string[], output?: (descriptor: number, text: string) => void}} [options] packages: all, unless named here
   * @returns {Promise<Python>}
   */
  async python(url, { packages, output = print } = {}) {
    const python = new Python(await this.open(`${url}/harness/page.html`), output);
    await python.call('boot', { packages });
    return python;
  }

  /** Ids of the processes that work on this profile. */
  processes() {
    return readdirSync('/proc').filter(name => /^\d+$/.test(name) && commandLine(name).includes(this.profile));
  }

  /** End the browser and all its processes as the machine's power might: kill -9, no page hears of it. */
  async kill() {
    for (let ids; (ids = this.processes()).length; await sleep(5)) {
      for (const id of ids) {
        try {
          process.kill(Number(id), 'SIGKILL');
        } catch (error) {
          if (error.code !== 'ESRCH') throw error; // it went with another one
        }
      }
    }
    await this.driver.close().catch(() => {}); // for the driver to know; the browser is gone
  }

  /**
   * Start the same browser again on the profile that this one left.
   * @returns {Promise<Browser>}
   */
  restart() {
    return Browser.start(this.kind, this.profile);
  }

  /** Close the browser as its user would, and keep the profile. */
  async close() {
    await this.driver.close();
  }

  /** Remove the profile of a browser that is closed or killed. */
  async forget() {
    await rm(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

function commandLine(id) {
  try {
    return readFileSync(`/proc/${id}/cmdline`, 'utf8');
  } catch {
    return ''; // it has ended
  }
}

function print(descriptor, text) {
  (descriptor === 1 ? process.stdout : process.stderr).write(text);
}
