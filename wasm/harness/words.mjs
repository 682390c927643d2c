// The command line of both runners: [--before CODE] -c CODE | --file FILE [ARGUMENT...] | [--jobs N] PATH... [-- PYTEST ARGUMENT...]
// --jobs: the test files are shared out to so many processes.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const WASM = dirname(dirname(fileURLToPath(import.meta.url)));
export const TREE = dirname(WASM);

/**
 * What the words ask for, as `run` of inside.py takes it.
 * @param {string[]} words
 * @returns {{before: string, source: string | null, args: string[], jobs: number, share: number[] | null, browsers: string[]}}
 *   share: which of how many, from 0, in a process that --jobs started; browsers: those of --browser
 */
export function parse(words) {
  const asked = { before: '', source: null, args: [], share: null, jobs: 1, browsers: [] };
  const paths = [];
  for (let word; (word = words.shift()) !== undefined; ) {
    if (word === '--before') asked.before += `${words.shift()}\n`;
    else if (word === '--browser') asked.browsers.push(words.shift());
    else if (word === '--jobs') asked.jobs = Number(words.shift());
    else if (word === '--share') asked.share = words.shift().split('/').map(Number);
    else if (word === '-c') [asked.source, asked.args] = [words.shift(), ['-c', ...words.splice(0)]];
    else if (word === '--file') [asked.source, asked.args] = [readFileSync(words[0], 'utf8'), words.splice(0)];
    else if (word === '--') asked.args = words.splice(0);
    else paths.push(relative(TREE, resolve(word)));
  }
  asked.args.push(...paths);
  if (asked.share) asked.jobs = 1;
  return asked;
}

/**
 * Run a runner as several processes, each with its share of the test files. The first one's output streams, the others' follows.
 * @param {string} script the runner
 * @param {number} jobs how many
 * @param {string[]} words the rest of its command line
 * @returns {Promise<number>} the first exit code that is not 0
 */
export async function inShares(script, jobs, words) {
  const running = Array.from({ length: jobs }, (_, index) => {
    const child = spawn(process.execPath, [script, '--share', `${index}/${jobs}`, ...words], {
      stdio: ['ignore', index ? 'pipe' : 'inherit', index ? 'pipe' : 'inherit'],
    });
    const output = [];
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', data => output.push(data));
    process.once('SIGINT', () => child.kill('SIGINT')).once('SIGTERM', () => child.kill('SIGTERM'));
    return new Promise(resolve => child.on('close', code => resolve({ code: code ?? 1, output: Buffer.concat(output) })));
  });
  let failed = 0;
  for (const ended of running) {
    const { code, output } = await ended;
    process.stdout.write(output);
    failed ||= code;
  }
  return failed;
}
