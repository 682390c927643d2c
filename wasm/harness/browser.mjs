// Pyodide in a worker of a real browser, without a network: node browser.mjs [--browser NAME], and the words of words.mjs.
// The tree is unpacked at /tree, a copy. The exit code is pytest's, or Python's: of the first browser that fails.
// A browser that is not installed is left out with a note; Chromium only where RUV_SWARM_ALL_ENGINES is not set.
import { Browser, installed } from './browsers.mjs';
import { serve } from './server.mjs';
import { inShares, parse } from './words.mjs';

async function run(kind, asked) {
  const server = await serve();
  const browser = await Browser.start(kind);
  const interrupted = () => browser.kill().finally(() => process.exit(130));
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    console.error(`${kind} ${browser.version}`);
    const python = await browser.python(server.url);
    await python.call('tree');
    return await python.call('run', asked);
  } finally {
    await browser.close();
    await browser.forget();
    await server.close();
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
}

async function main(words) {
  const { browsers, ...asked } = parse([...words]);
  if (asked.jobs > 1) return inShares(process.argv[1], asked.jobs, words);
  let failed = 0;
  for (const kind of browsers.length ? browsers : ['chromium', 'firefox']) {
    if (installed(kind)) {
      const code = await run(kind, asked);
      failed ||= code;
    } else if (process.env.RUV_SWARM_ALL_ENGINES && kind === 'chromium') {
      console.error(`There is no ${kind} here, and RUV_SWARM_ALL_ENGINES is set.`);
      failed ||= 1;
    } else console.error(`NOTE: there is no ${kind} on this machine: nothing was tested in it.`);
  }
  return failed;
}

process.exitCode = await main(process.argv.slice(2));
