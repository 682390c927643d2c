// A tree as one tar archive: what git would commit, with the changes that are not committed yet.
import { execFileSync } from 'node:child_process';
import { lstatSync, readFileSync } from 'node:fs';

const BLOCK = 512;

/**
 * Archive the files of a git work tree that are not ignored.
 * @param {string} tree its root
 * @returns {Buffer} a tar archive
 */
export function archive(tree) {
  const listed = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: tree, encoding: 'utf8' });
  const parts = [];
  for (const name of listed.split('\0').filter(Boolean)) {
    if (!lstatSync(`${tree}/${name}`, { throwIfNoEntry: false })?.isFile()) continue; // deleted, and not committed yet
    const bytes = readFileSync(`${tree}/${name}`);
    parts.push(header(name, bytes.length), bytes, Buffer.alloc(-bytes.length & (BLOCK - 1)));
  }
  return Buffer.concat([...parts, Buffer.alloc(2 * BLOCK)]);
}

/** The ustar header of a file. */
function header(name, size) {
  const cut = Buffer.byteLength(name) <= 100 ? -1 : name.indexOf('/', name.length - 101);
  const block = Buffer.alloc(BLOCK);
  const field = (text, offset) => block.write(text, offset);
  const octal = (number, digits) => number.toString(8).padStart(digits, '0');
  field(name.slice(cut + 1), 0);
  field(octal(0o644, 7), 100);
  field(octal(0, 7), 108);
  field(octal(0, 7), 116);
  field(octal(size, 11), 124);
  field(octal(0, 11), 136);
  field(' '.repeat(8), 148); // the checksum, while it is summed up
  field('0ustar\x0000', 156);
  if (cut > 0) field(name.slice(0, cut), 345);
  field(`${octal(block.reduce((sum, byte) => sum + byte, 0), 6)}\0 `, 148);
  return block;
}
