/**
 * Where SQLite keeps what sql.js does not export: found by experiment when the engine starts, never assumed.
 *
 * sql.js exports no `sqlite3_extended_errcode`, `_last_insert_rowid`, `_get_autocommit`, `_total_changes`, `_bind_int64` and
 * `_column_decltype`. All of them only read or write a field of a structure whose address we hold. Each field is found here by
 * letting SQLite change it several times and keeping the one offset that always agreed; anything but exactly one is an error.
 */

const ROW = 100;
const CONNECTION_BYTES = 1024;
const STATEMENT_BYTES = 512;
const UNIQUE = 2067;
const NOT_NULL = 1299;
const CHECK = 275;
// a row of t holds one of these, so that no other field is equal by chance
const ROW_IDS = [0x1122_3344_5566_7788n, -0x0102_0304_0506_0708n, 0x0fed_cba9_8765_4321n];

/**
 * @typedef {object} Layout offsets in bytes
 * @property {number} autocommit in a connection: u8, 1 outside a transaction
 * @property {number} errorCode in a connection: i32, the extended result code of the last call
 * @property {number} lastRowid in a connection: i64
 * @property {number} totalChanges in a connection: i64
 * @property {number} parameters in a statement: pointer to its array of bound values
 * @property {number} columns in a statement: pointer to its array of column names, followed by as many declared types
 * @property {number} valueBytes size of one such value; its integer is its first field
 * @property {number} text in a value: pointer to its text
 * @property {number} flags in a value: u16, of which some bits say what it is
 * @property {number} length in a value: i32, how many bytes its text has
 * @property {number} encoding in a value: u8, 1 where its text is UTF-8
 * @property {number} row in a statement: pointer to the values of the row that it has stepped to
 */

/**
 * @param {object} sqlite the raw exports of sql.js
 * @param {() => DataView} memory its memory, now
 * @param {{open(path: string): number, close(db: number): void, exec(db: number, sql: string): number,
 *   prepare(db: number, sql: string): number}} use
 * @param {{mask: number, null: number, text: number, integer: number, float: number}} kinds what a value's flags are said to be
 * @returns {Layout}
 */
export function findLayout(sqlite, memory, use, kinds) {
  const db = use.open(':memory:');
  const only = (what, candidates) => {
    if (candidates.length !== 1) throw new Error(`sql.js keeps ${what} at ${candidates.length} places; this build is not known to the driver`);
    return candidates[0];
  };
  const must = (sql) => {
    if (use.exec(db, sql) !== 0) throw new Error(`sql.js refused ${sql}`);
  };
  const mustFail = (sql) => {
    if (use.exec(db, sql) === 0) throw new Error(`sql.js accepted ${sql}`);
  };
  /** The offsets at which `read` equals what each experiment says, after each of them. */
  const search = (what, bytes, align, read, experiments) => {
    let candidates = Array.from({ length: bytes / align }, (_, index) => index * align);
    for (const [act, expected] of experiments) {
      act();
      const view = memory();
      candidates = candidates.filter((offset) => read(view, db + offset) === expected);
    }
    return only(what, candidates);
  };
  const i64 = (view, at) => view.getBigInt64(at, true);
  const i32 = (view, at) => view.getInt32(at, true);
  const u8 = (view, at) => view.getUint8(at);

  must('CREATE TABLE t (a KIND_OF_A UNIQUE, b OTHER_KIND NOT NULL CHECK (b <> 7))');
  const lastRowid = search('the last row id', CONNECTION_BYTES, 8, i64,
    ROW_IDS.map((id) => [() => must(`INSERT INTO t (rowid, a, b) VALUES (${id}, ${id}, 1)`), id]));
  const totalChanges = search('the number of changes', CONNECTION_BYTES, 8, i64, [
    [() => must('UPDATE t SET b = 2'), 6n],
    [() => must('UPDATE t SET b = 3'), 9n],
    [() => must(`DELETE FROM t WHERE rowid = ${ROW_IDS[2]}`), 10n],
  ]);
  const autocommit = search('the transaction state', CONNECTION_BYTES, 1, u8, [
    [() => {}, 1], [() => must('BEGIN'), 0], [() => must('COMMIT'), 1], [() => must('SAVEPOINT s'), 0],
    [() => must('UPDATE t SET b = 4'), 0], [() => must('RELEASE s'), 1], [() => must('BEGIN IMMEDIATE'), 0], [() => must('ROLLBACK'), 1],
  ]);
  const errorCode = search('the error code', CONNECTION_BYTES, 4, i32, [
    [() => mustFail('UPDATE t SET a = 1'), UNIQUE],
    [() => mustFail('UPDATE t SET b = NULL'), NOT_NULL],
    [() => mustFail('UPDATE t SET b = 7'), CHECK],
    [() => mustFail('UPDATE t SET a = 1'), UNIQUE],
  ]);

  const { parameters, valueBytes } = findParameters(sqlite, memory, use, db, only);
  const { columns, text, flags } = findColumns(sqlite, memory, use, db, only, valueBytes);
  use.close(db);
  const { row, length, encoding } = findRow(sqlite, memory, use, only, kinds, { valueBytes, text, flags });
  return { autocommit, errorCode, lastRowid, totalChanges, parameters, valueBytes, columns, text, flags, row, length, encoding };
}

function inside(view, at, bytes) {
  return at > 0 && at % 4 === 0 && at + bytes <= view.byteLength;
}

function findParameters(sqlite, memory, use, db, only) {
  // a cursor and a function's arguments: their arrays would share the address of the values if they were empty
  const statement = use.prepare(db, "SELECT ?1, ?2, ?3 FROM json_each('[0]')");
  const magic = [0x1234567, -0x2345678, 0x3456789];
  magic.forEach((value, index) => sqlite._sqlite3_bind_int(statement, index + 1, value));
  const view = memory();
  const found = [];
  for (let offset = 0; offset < STATEMENT_BYTES; offset += 4) {
    const values = view.getUint32(statement + offset, true);
    for (let stride = 16; stride <= 128; stride += 8) {
      const isThere = (value, index) => view.getBigInt64(values + index * stride, true) === BigInt(value);
      if (inside(view, values, 3 * stride) && magic.every(isThere)) found.push({ parameters: offset, valueBytes: stride });
    }
  }
  const place = only('bound values', found);
  // what is written there must be what SQLite reads
  memory().setBigInt64(memory().getUint32(statement + place.parameters, true) + place.valueBytes, ROW_IDS[0], true);
  if (sqlite._sqlite3_step(statement) !== ROW) throw new Error('sql.js cannot run a statement');
  if (sqlite.UTF8ToString(sqlite._sqlite3_column_text(statement, 1)) !== String(ROW_IDS[0])) only('a bound integer', []);
  sqlite._sqlite3_finalize(statement);
  return place;
}

function findColumns(sqlite, memory, use, db, only, valueBytes) {
  // the names of a pragma's columns are constants, those of a table's are copies: a value keeps them differently
  const statements = ['SELECT a, 1, b, NULL, b FROM t', 'PRAGMA database_list'].map((sql) => use.prepare(db, sql));
  const view = memory();
  const valuesOf = (statement, offset) => view.getUint32(statement + offset, true);
  const textAt = (values, index, text) => view.getUint32(values + index * valueBytes + text, true);
  const found = [];
  for (let offset = 0; offset < STATEMENT_BYTES; offset += 4) {
    for (let text = 0; text < valueBytes; text += 4) {
      const agrees = (statement) => {
        const values = valuesOf(statement, offset);
        return inside(view, values, 4 * valueBytes)
          && [0, 1].every((column) => textAt(values, column, text) === sqlite._sqlite3_column_name(statement, column));
      };
      if (statements.every(agrees)) found.push({ columns: offset, text });
    }
  }
  const place = only('column names', found);
  // the declared types come after the names; an expression has none
  const values = valuesOf(statements[0], place.columns);
  const declared = [5, 7, 9].map((index) => sqlite.UTF8ToString(textAt(values, index, place.text)));
  if (declared.join() !== 'KIND_OF_A,OTHER_KIND,OTHER_KIND') only('declared types', []);
  const flags = Array.from({ length: valueBytes / 2 }, (_, index) => 2 * index).filter((flag) =>
    [2, 1, 2, 1, 2].every((expected, column) => (view.getUint16(values + (5 + column) * valueBytes + flag, true) & 3) === expected));
  statements.forEach((statement) => sqlite._sqlite3_finalize(statement));
  return { ...place, flags: only('what a value is', flags) };
}

function findRow(sqlite, memory, use, only, kinds, { valueBytes, text, flags }) {
  const encodings = [['UTF-8', 1], ['UTF-16le', 2], ['UTF-16be', 3]];
  const texts = ['some text', 'é', ''];
  const databases = encodings.map(([name, expected]) => {
    const db = use.open(':memory:');
    const script = `PRAGMA encoding='${name}'; CREATE TABLE t (a, b, c, d, e, f);
      INSERT INTO t VALUES (${ROW_IDS[0]}, 0.1, NULL, ${texts.map((value) => `'${value}'`).join()}),
        (${ROW_IDS[1]}, -1e300, NULL, ${texts.map((value) => `'${value}'`).join()})`;
    if (use.exec(db, script) !== 0) throw new Error('sql.js cannot fill a table');
    return { db, expected, statement: use.prepare(db, 'SELECT * FROM t ORDER BY rowid') };
  });
  const utf8 = databases[0].statement;
  let rows = Array.from({ length: STATEMENT_BYTES / 4 }, (_, index) => 4 * index);
  let lengths = Array.from({ length: valueBytes / 4 }, (_, index) => 4 * index);
  let bytes = Array.from({ length: valueBytes }, (_, index) => index);
  for (const [integer, float] of [[ROW_IDS[0], 0.1], [ROW_IDS[1], -1e300]]) {
    for (const { statement } of databases) if (sqlite._sqlite3_step(statement) !== ROW) only('a row', []);
    const view = memory();
    const at = (statement, row, index) => view.getUint32(statement + row, true) + index * valueBytes;
    const kind = (row, index) => view.getUint16(at(utf8, row, index) + flags, true) & kinds.mask;
    rows = rows.filter((row) => inside(view, at(utf8, row, 0), 6 * valueBytes)
      && kind(row, 0) === kinds.integer && view.getBigInt64(at(utf8, row, 0), true) === integer
      && kind(row, 1) === kinds.float && view.getFloat64(at(utf8, row, 1), true) === float
      && kind(row, 2) === kinds.null
      && texts.every((_, i) => kind(row, 3 + i) === kinds.text
        && view.getUint32(at(utf8, row, 3 + i) + text, true) === sqlite._sqlite3_column_text(utf8, 3 + i)));
    const row = only('the values of a row', rows);
    lengths = lengths.filter((offset) => texts.every((_, i) =>
      view.getInt32(at(utf8, row, 3 + i) + offset, true) === sqlite._sqlite3_column_bytes(utf8, 3 + i)));
    bytes = bytes.filter((offset) => databases.every(({ statement, expected }) =>
      texts.every((_, i) => view.getUint8(at(statement, row, 3 + i) + offset) === expected)));
  }
  for (const { db, statement } of databases) {
    sqlite._sqlite3_finalize(statement);
    use.close(db);
  }
  return { row: rows[0], length: only('the length of a text', lengths), encoding: only('the encoding of a text', bytes) };
}
