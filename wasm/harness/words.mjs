// The command line of both runners: [--before CODE] -c CODE | --file FILE [ARGUMENT...] | PATH... [-- PYTEST ARGUMENT...]
import { readFileSync } from 'node:fs';
import { dirname, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const WASM = dirname(dirname(fileURLToPath(import.meta.url)));
export const TREE = dirname(WASM);

/**
 * What the words ask for, as `run` of inside.py takes it.
 * @param {string[]} words
 * @returns {{before: string, source: string | null, args: string[], browsers: string[]}} browsers: those of --browser
 */
export function parse(words) {
  const asked = { before: '', source: null, args: [], browsers: [] };
  const paths = [];
  for (let word; (word = words.shift()) !== undefined; ) {
    if (word === '--before') asked.before += `${words.shift()}\n`;
    else if (word === '--browser') asked.browsers.push(words.shift());
    else if (word === '-c') [asked.source, asked.args] = [words.shift(), ['-c', ...words.splice(0)]];
    else if (word === '--file') [asked.source, asked.args] = [readFileSync(words[0], 'utf8'), words.splice(0)];
    else if (word === '--') asked.args = words.splice(0);
    else paths.push(relative(TREE, resolve(word)));
  }
  asked.args.push(...paths);
  return asked;
}
