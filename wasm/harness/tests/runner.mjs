// A runner as a command: what it prints, when, and what it exits with.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const HARNESS = dirname(dirname(fileURLToPath(import.meta.url)));

/** Run a runner; what it printed with the time of each piece in ms, and its exit code. */
function run(...words) {
  const child = spawn(process.execPath, words, { cwd: HARNESS });
  const pieces = [];
  child.stdout.on('data', data => pieces.push({ at: performance.now(), text: String(data) }));
  let errors = '';
  child.stderr.on('data', data => (errors += data));
  return new Promise(resolve => {
    child.on('close', code => resolve({ code, pieces, errors, output: pieces.map(piece => piece.text).join('') }));
  });
}

/**
 * Test a runner.
 * @param {string} name of the engine
 * @param {string[]} words the runner's file, and what chooses the engine
 * @param {string | false} skip why it cannot be tested here
 */
export function testRunner(name, words, skip) {
  test(`${name}: output streams, arguments and the exit code of a program pass`, { skip }, async () => {
    const before = 'import builtins; builtins.x = "before"';
    const program = 'import asyncio, sys\nprint("first é", sys.argv[1:])\nawait asyncio.sleep(1)\nprint("last", x)\nsys.exit(7)';
    const { code, pieces, output, errors } = await run(...words, '--before', before, '-c', program, 'a', '--b');
    assert.equal(output, "first é ['a', '--b']\nlast before\n", errors);
    assert.equal(code, 7);
    assert.ok(pieces.at(-1).at - pieces[0].at > 800, 'the first line came when it was printed');
  });

  test(`${name}: a failing test fails the run, and pytest's arguments pass`, { skip }, async () => {
    const directory = mkdtempSync(`${HARNESS}/tests/.failing-`);
    try {
      const source = ['wrong(): assert 1 == 2', 'right(): assert True', 'other(): assert False'].map(line => `def test_${line}\n`).join('');
      writeFileSync(`${directory}/test_failing.py`, source);
      const quick = ['-p', 'no:hypothesispytest']; // it takes seconds to import
      const { code, output } = await run(...words, `${directory}/test_failing.py`, '--', '-q', '-k', 'not other', ...quick);
      assert.match(output, /1 failed, 1 passed, 1 deselected/);
      assert.equal(code, 1);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}
