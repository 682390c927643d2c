/**
 * sql.js below a Python driver: its raw exports on one side, two byte buffers that Python owns on the other.
 *
 * A call passes only integers. What they mean lies in the buffers, in one of two forms (`wire.py` is the other end):
 *   row      tag u8 × n · slot 8 bytes × n · bytes of the texts and blobs, in order, each with a NUL behind it
 *   columns  for each column: kind u8 · positions of its nulls · its values; so that Python unpacks a column by one call
 * A slot holds an int64, a float64 or the length of a text or blob; in a row instead where it ends behind the slots, with its NUL.
 * Everything is little-endian and unaligned.
 */

const OK = 0;
const BUSY = 5;
const INTERRUPTED = 9;
const ROW = 100;
const DONE = 101;
const INTEGER = 1;
const FLOAT = 2;
const TEXT = 3;
const BLOB = 4;
const NULL = 5;
const MIXED = 6;
const CUT_TEXT = 7; // texts of which one has a NUL: their lengths come before them. Others end with a NUL each, and nothing else
const COPY_AT_ONCE = -1; // SQLITE_TRANSIENT
const HEADER = 32;
const ROWS_ROW_BY_ROW = 3; // up to so many rows are quicker to read one by one than column by column
const BATCH_BYTES = 1 << 20;
const KEPT_BYTES = 4 * BATCH_BYTES; // of memory for one column, from call to call
const EXACT = 2 ** 53;
const TWO_32 = 2 ** 32;
const ASYNC_COMMIT = 'PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY'; // a file here is memory: nothing of it survives the realm

/** One column of the rows being read: types, slots, and the bytes of its texts and blobs. */
class Column {
  constructor() {
    this.bytes = new Uint8Array(256);
    this.grow(16);
  }

  grow(rows) {
    this.types = new Uint8Array(rows);
    this.slots = new ArrayBuffer(8 * rows);
    this.floats = new Float64Array(this.slots);
    this.words = new Int32Array(this.slots);
  }

  begin(rows) {
    if (this.types.length < rows) this.grow(rows);
    if (this.bytes.length > KEPT_BYTES) this.bytes = new Uint8Array(256);
    this.seen = 0; // bit t: type t was seen
    this.used = 0;
    this.nulls = 0;
    this.hasNul = false; // inside a text
  }

  /** @param {number} end 1 for a text, which is kept with the NUL behind it */
  append(heap, at, length, end) {
    const size = length + end;
    if (this.used + size > this.bytes.length) {
      const larger = new Uint8Array(Math.max(2 * this.bytes.length, this.used + size));
      larger.set(this.bytes.subarray(0, this.used));
      this.bytes = larger;
    }
    if (size < 32) { // a short text is copied quicker by hand than through a view of it
      for (let i = 0; i < length; i++) {
        const byte = heap[at + i];
        if (byte === 0) this.hasNul = true;
        this.bytes[this.used + i] = byte;
      }
      if (end) this.bytes[this.used + length] = 0;
    } else {
      this.bytes.set(heap.subarray(at, at + length), this.used);
      if (end) {
        this.bytes[this.used + length] = 0;
        if (this.bytes.indexOf(0, this.used) < this.used + length) this.hasNul = true;
      }
    }
    this.used += size;
  }

  kind() {
    switch (this.seen & ~(1 << NULL)) {
      case 0: return NULL;
      case 1 << INTEGER: return INTEGER;
      case 1 << FLOAT: return FLOAT;
      case 1 << TEXT: return this.hasNul ? CUT_TEXT : TEXT;
      case 1 << BLOB: return BLOB;
      default: return MIXED;
    }
  }
}

/**
 * Start sql.js and the driver over it, once per realm.
 *
 * @param {object} options
 * @param {Function} options.initSqlJs what `sql-wasm-browser.js` defines
 * @param {Uint8Array} options.wasmBytes the content of its `.wasm` file
 * @param {Function} options.findLayout from `layout.mjs`
 * @param {(imports: object) => object | void} [options.wrapImports] given the wasm imports before they are used
 * @returns {Promise<object>} the engine
 */
export async function start({ initSqlJs, wasmBytes, findLayout, wrapImports }) {
  let memory;
  let failed;
  const failure = new Promise((_, reject) => { failed = reject; });
  const compiled = await WebAssembly.compile(wasmBytes);
  const sqlite = await Promise.race([failure, initSqlJs({
    useOldExtensionFunctions: false,
    instantiateWasm(imports, receive) {
      WebAssembly.instantiate(compiled, wrapImports?.(imports) ?? imports).then((instance) => {
        memory = Object.values(instance.exports).find((value) => value instanceof WebAssembly.Memory);
        receive(instance, compiled);
      }).catch(failed);
      return {};
    },
  })]);

  // --- memory ----------------------------------------------------------------------------------------------------------

  let heap = new Uint8Array(0);
  let view;
  /** The heap as it is now: a view is dead once SQLite made its memory grow. */
  const refresh = () => {
    heap = new Uint8Array(memory.buffer);
    view = new DataView(memory.buffer);
  };
  const current = () => {
    if (heap.byteLength === 0) refresh();
    return view;
  };
  const utf8 = new TextEncoder();
  const withText = (text, use) => {
    const at = sqlite.stringToNewUTF8(text);
    current();
    try {
      return use(at);
    } finally {
      sqlite._free(at);
    }
  };
  const scratch = sqlite._malloc(16);
  let arena = { at: 0, size: 0 };
  /** Bytes copied into SQLite's memory, until the next call of this. */
  const place = (bytes) => {
    if (bytes.length > arena.size) {
      if (arena.at) sqlite._free(arena.at);
      arena = { at: sqlite._malloc(2 * bytes.length), size: 2 * bytes.length };
      if (!arena.at) {
        arena = { at: 0, size: 0 };
        throw new Error('out of memory');
      }
    }
    current();
    heap.set(bytes, arena.at);
    return arena.at;
  };

  // Python's two buffers. Its heap may grow too, and then a view of it is dead.
  let inProxy, outProxy, inBuffer, outBuffer, inView, outView, pending;
  const attachIn = () => {
    inBuffer?.release();
    inBuffer = inProxy.getBuffer('u8');
    inView = new DataView(inBuffer.data.buffer, inBuffer.data.byteOffset, inBuffer.data.byteLength);
  };
  const attachOut = () => {
    outBuffer?.release();
    outBuffer = outProxy.getBuffer('u8');
    outView = new DataView(outBuffer.data.buffer, outBuffer.data.byteOffset, outBuffer.data.byteLength);
  };
  const input = () => {
    if (inBuffer.data.length === 0) attachIn();
    return inBuffer.data;
  };
  /** Where `size` bytes for Python go: its buffer, or if that is too small a place from which `drain` copies them. */
  const output = (size) => {
    if (outBuffer.data.length === 0) attachOut();
    if (size <= outBuffer.data.length) return outBuffer.data;
    pending = new Uint8Array(size);
    return pending;
  };
  const viewOf = (bytes) => (bytes === outBuffer.data ? outView : new DataView(bytes.buffer));

  // --- connections and statements ----------------------------------------------------------------------------------------

  /** @type {Map<number, {path: string, functions: Map<string, number[]>, override: number}>} */
  const connections = new Map();
  /** @type {Map<number, {db: number, pointer: number, columns: number, reads: boolean, converted?: number[]}>} */
  const statements = new Map();
  /** @type {Map<string, {database: object, path: string, version: number, seen: number, watchers: Function[]}>} */
  const files = new Map();
  let watched = 0;
  let layout;

  const raw = {
    open: (path) => withText(path, (at) => {
      const code = sqlite._sqlite3_open(at, scratch);
      const db = current().getUint32(scratch, true);
      if (code !== OK) {
        const message = db ? sqlite.UTF8ToString(sqlite._sqlite3_errmsg(db)) : 'out of memory';
        sqlite._sqlite3_close_v2(db);
        throw new Error(`${code}:${message}`);
      }
      return db;
    }),
    close: (db) => sqlite._sqlite3_close_v2(db),
    exec: (db, sql) => withText(sql, (at) => sqlite._sqlite3_exec(db, at, 0, 0, 0)),
    prepare: (db, sql) => withText(sql, (at) => {
      if (sqlite._sqlite3_prepare_v2(db, at, -1, scratch, 0) !== OK) throw new Error(sqlite.UTF8ToString(sqlite._sqlite3_errmsg(db)));
      return current().getUint32(scratch, true);
    }),
  };
  refresh();
  layout = findLayout(sqlite, current, raw);

  const messageOf = (db) => sqlite.UTF8ToString(sqlite._sqlite3_errmsg(db));
  /** The extended result code: the connection keeps it, `step` and `prepare` return its low byte only. */
  const extended = (db, code) => {
    const kept = current().getInt32(db + layout.errorCode, true);
    return (kept & 0xff) === (code & 0xff) ? kept : code;
  };
  const inTransaction = (db) => current().getUint8(db + layout.autocommit) === 0;

  function open(path) {
    const db = raw.open(path);
    connections.set(db, { path, functions: new Map(), override: 0 });
    if (files.has(path)) raw.exec(db, ASYNC_COMMIT);
    return db;
  }

  function close(db) {
    const connection = connections.get(db);
    if (!connection) return OK;
    for (const [pointer, statement] of statements) if (statement.db === db) finalize(pointer);
    const code = sqlite._sqlite3_close_v2(db);
    connections.delete(db);
    for (const slots of connection.functions.values()) slots.forEach((slot) => sqlite.removeFunction(slot));
    notify();
    return code;
  }

  /** Prepare the first statement of the `length` bytes of SQL. JSON: its address, where the rest begins, names and declared types. */
  function prepare(db, length) {
    const at = place(input().subarray(0, length + 1)); // with the NUL that Python put behind it
    const code = sqlite._sqlite3_prepare_v2(db, at, length + 1, scratch, scratch + 4);
    current();
    if (code !== OK) return JSON.stringify({ code: extended(db, code), message: messageOf(db) });
    const pointer = view.getUint32(scratch, true);
    const tail = view.getUint32(scratch + 4, true) - at;
    if (!pointer) return JSON.stringify({ pointer, tail, names: [], types: [] });
    const count = sqlite._sqlite3_column_count(pointer);
    const values = view.getUint32(pointer + layout.columns, true);
    const textOf = (index) => {
      const value = values + index * layout.valueBytes;
      if ((view.getUint16(value + layout.flags, true) & 3) !== 2) return null;
      return sqlite.UTF8ToString(view.getUint32(value + layout.text, true));
    };
    const names = Array.from({ length: count }, (_, index) => sqlite.UTF8ToString(sqlite._sqlite3_column_name(pointer, index)));
    const types = names.map((_, index) => textOf(count + index));
    const sql = sqlite.UTF8ToString(at, Math.min(tail, 2000)).replace(/^(\s|--[^\n]*\n|\/\*[^]*?\*\/)*/, '');
    statements.set(pointer, { db, pointer, columns: count, reads: /^(SELECT|VALUES|EXPLAIN)\b/i.test(sql) });
    return JSON.stringify({ pointer, tail, names, types });
  }

  /** Have these columns read as the bytes that a converter is given, whatever their type. */
  function convert(pointer, columns) {
    statements.get(pointer).converted = columns.length ? columns : undefined;
  }

  function finalize(pointer) {
    statements.delete(pointer);
    return sqlite._sqlite3_finalize(pointer);
  }

  // --- binding -------------------------------------------------------------------------------------------------------------

  function bindInteger(pointer, index, low, high) {
    const code = sqlite._sqlite3_bind_int(pointer, index, low);
    if (code === OK && high !== low >> 31) {
      // sqlite3_bind_int64 is not exported: the upper half is written where the lower half has just appeared
      current();
      const at = view.getUint32(pointer + layout.parameters, true) + (index - 1) * layout.valueBytes;
      if (view.getInt32(at, true) !== low || view.getInt32(at + 4, true) !== low >> 31) throw new Error('a bound integer is not where it was');
      view.setInt32(at + 4, high, true);
    }
    return code;
  }

  function bindBytes(pointer, index, type, at, length) {
    const bind = type === TEXT ? sqlite._sqlite3_bind_text : sqlite._sqlite3_bind_blob;
    return bind(pointer, index, at, length, COPY_AT_ONCE);
  }

  /** Bind the row that lies at the start of the input. */
  function bindRow(pointer, count) {
    const bytes = input();
    const words = inView;
    const slots = count;
    let size = 0;
    let nulls = false;
    for (let i = 0; i < count; i++) {
      const type = bytes[i];
      if (type === TEXT || type === BLOB) size = words.getUint32(slots + 8 * i, true);
      else if (type === NULL) nulls = true;
    }
    const tail = size ? place(bytes.subarray(slots + 8 * count, slots + 8 * count + size)) : 0;
    let start = 0;
    if (nulls) sqlite._sqlite3_clear_bindings(pointer);
    for (let i = 0; i < count; i++) {
      const slot = slots + 8 * i;
      let code = OK;
      switch (bytes[i]) {
        case INTEGER: code = bindInteger(pointer, i + 1, words.getInt32(slot, true), words.getInt32(slot + 4, true)); break;
        case FLOAT: code = sqlite._sqlite3_bind_double(pointer, i + 1, words.getFloat64(slot, true)); break;
        case NULL: break;
        default: {
          const end = words.getUint32(slot, true);
          code = bindBytes(pointer, i + 1, bytes[i], tail + start, end - start - 1);
          start = end;
        }
      }
      if (code !== OK) return code;
    }
    return OK;
  }

  // --- stepping ------------------------------------------------------------------------------------------------------------

  const packers = []; // one for each level: a function that SQLite calls may run statements of its own
  let depth = 0;
  const interrupted = new Set(); // connections whose running statement is to fail
  const leave = () => {
    depth--;
    if (depth === 0) interrupted.clear();
  };

  function readColumn(column, pointer, index, row, asBlob) {
    let type = sqlite._sqlite3_column_type(pointer, index);
    if (asBlob && type !== NULL) type = BLOB;
    column.types[row] = type;
    column.seen |= 1 << type;
    switch (type) {
      case INTEGER: {
        const number = sqlite._sqlite3_column_double(pointer, index);
        const low = number | 0;
        if (low === number) {
          column.words[2 * row] = low;
          column.words[2 * row + 1] = low >> 31;
        } else if (number < EXACT && number > -EXACT) {
          const high = Math.floor(number / TWO_32);
          column.words[2 * row] = number - high * TWO_32;
          column.words[2 * row + 1] = high;
        } else { // no double holds it: sqlite3_column_int64 is not exported, its decimal digits are
          const text = sqlite.UTF8ToString(sqlite._sqlite3_column_text(pointer, index));
          new DataView(column.slots).setBigInt64(8 * row, BigInt(text), true);
        }
        break;
      }
      case FLOAT:
        column.floats[row] = sqlite._sqlite3_column_double(pointer, index);
        break;
      case NULL:
        column.nulls++;
        column.words[2 * row] = 0;
        column.words[2 * row + 1] = 0;
        break;
      default: {
        const at = type === TEXT ? sqlite._sqlite3_column_text(pointer, index) : sqlite._sqlite3_column_blob(pointer, index);
        const length = sqlite._sqlite3_column_bytes(pointer, index);
        current();
        column.append(heap, at, length, type === TEXT ? 1 : 0);
        column.words[2 * row] = length;
        column.words[2 * row + 1] = 0;
      }
    }
  }

  /** Step `statement` for at most `limit` rows, and write them. It is reset when it ends, well or not. */
  function pull(statement, limit) {
    const { pointer, columns: count, converted } = statement;
    const columns = (packers[depth] ??= []);
    while (columns.length < count) columns.push(new Column());
    for (let i = 0; i < count; i++) columns[i].begin(limit);
    let rows = 0;
    let code;
    depth++;
    try {
      code = sqlite._sqlite3_step(pointer);
      while (code === ROW) {
        for (let i = 0; i < count; i++) readColumn(columns[i], pointer, i, rows, converted?.includes(i));
        rows++;
        if (rows >= limit) break;
        let size = 0;
        for (let i = 0; i < count; i++) size += columns[i].used;
        if (size > BATCH_BYTES && rows > 1) break; // one large row does not end there: a result of one row is to end at once
        code = sqlite._sqlite3_step(pointer);
      }
    } finally {
      leave();
    }
    return finish(statement, code, columns, rows);
  }

  /** Reset what has ended, tell who watches, and write what came of it. */
  function finish(statement, code, columns, rows, changes) {
    const { db, pointer } = statement;
    let message;
    if (code !== ROW && code !== DONE) {
      message = utf8.encode(messageOf(db));
      code = extended(db, code);
      const connection = connections.get(db);
      if (connection?.override) {
        code = connection.override;
        connection.override = 0;
      }
      sqlite._sqlite3_reset(pointer);
    } else if (code === DONE) {
      changes ??= sqlite._sqlite3_changes(db);
      const reset = sqlite._sqlite3_reset(pointer);
      if (reset !== OK) {
        message = utf8.encode(messageOf(db));
        code = extended(db, reset);
      }
    }
    if (watched && code !== ROW && !(statement.reads && !rows) && !inTransaction(db)) notify();
    const byRow = rows <= ROWS_ROW_BY_ROW;
    const payload = message ? message.length + sizeOf(statement, columns, rows, byRow) : sizeOf(statement, columns, rows, byRow);
    const bytes = output(HEADER + payload);
    const words = viewOf(bytes);
    current();
    words.setInt32(0, code, true);
    words.setUint32(4, rows, true);
    words.setInt32(8, changes ?? 0, true);
    words.setUint8(12, inTransaction(db) ? 1 : 0);
    words.setUint8(13, byRow ? 1 : 0);
    words.setUint16(14, 0, true);
    words.setInt32(16, view.getInt32(db + layout.lastRowid, true), true);
    words.setInt32(20, view.getInt32(db + layout.lastRowid + 4, true), true);
    words.setUint32(24, message ? message.length : 0, true);
    words.setUint32(28, 0, true);
    if (message) bytes.set(message, HEADER);
    const at = HEADER + (message ? message.length : 0);
    if (rows) {
      if (byRow) writeRows(bytes, words, at, statement.columns, columns, rows);
      else writeColumns(bytes, words, at, statement.columns, columns, rows);
    }
    return HEADER + payload;
  }

  function sizeOf(statement, columns, rows, byRow) {
    if (!rows) return 0;
    let size = byRow ? 10 * rows * statement.columns : 0; // at most: not all values have a NUL
    for (let i = 0; i < statement.columns; i++) {
      const column = columns[i];
      size += column.used;
      if (byRow) continue;
      const kind = column.kind();
      size += 5 + (kind !== MIXED && kind !== NULL ? 4 * column.nulls : 0);
      if (kind === INTEGER || kind === FLOAT) size += 8 * rows;
      else if (kind === TEXT) size += 4;
      else if (kind === BLOB || kind === CUT_TEXT) size += 4 + 4 * rows;
      else if (kind === MIXED) size += 4 + 9 * rows;
    }
    return size;
  }

  function writeRows(bytes, words, at, count, columns, rows) {
    const offsets = new Array(count).fill(0);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < count; i++) bytes[at + i] = columns[i].types[row];
      at += count;
      const start = at + 8 * count;
      let tail = start;
      for (let i = 0; i < count; i++) {
        const column = columns[i];
        let low = column.words[2 * row];
        if (column.types[row] === TEXT || column.types[row] === BLOB) {
          bytes.set(column.bytes.subarray(offsets[i], offsets[i] + low), tail);
          offsets[i] += low + (column.types[row] === TEXT ? 1 : 0);
          tail += low + 1;
          bytes[tail - 1] = 0;
          low = tail - start;
        }
        words.setInt32(at, low, true);
        words.setInt32(at + 4, column.words[2 * row + 1], true);
        at += 8;
      }
      at = tail;
    }
  }

  function writeColumns(bytes, words, at, count, columns, rows) {
    for (let i = 0; i < count; i++) {
      const column = columns[i];
      const kind = column.kind();
      bytes[at] = kind;
      const nulls = kind === MIXED || kind === NULL ? 0 : column.nulls;
      words.setUint32(at + 1, nulls, true);
      at += 5;
      if (nulls) {
        for (let row = 0; row < rows; row++) {
          if (column.types[row] !== NULL) continue;
          words.setUint32(at, row, true);
          at += 4;
        }
      }
      if (kind === NULL) continue;
      if (kind === MIXED) {
        bytes.set(column.types.subarray(0, rows), at);
        at += rows;
      }
      if (kind === BLOB || kind === CUT_TEXT) {
        for (let row = 0; row < rows; row++) words.setUint32(at + 4 * row, column.words[2 * row], true);
        at += 4 * rows;
      } else if (kind !== TEXT) {
        bytes.set(new Uint8Array(column.slots, 0, 8 * rows), at);
        at += 8 * rows;
      }
      if (kind === INTEGER || kind === FLOAT) continue;
      words.setUint32(at, column.used, true);
      at += 4;
      bytes.set(column.bytes.subarray(0, column.used), at);
      at += column.used;
    }
  }

  /** Bind the row of `parameters` values in the input, and pull at most `limit` rows. */
  function run(pointer, parameters, limit) {
    const statement = statements.get(pointer);
    if (parameters) {
      const code = bindRow(pointer, parameters);
      if (code !== OK) return finish(statement, code, [], 0);
    }
    return pull(statement, limit);
  }

  const more = (pointer, limit) => pull(statements.get(pointer), limit);

  /** Run a statement once for each of `rows` rows of `count` values, which lie in the input as `length` bytes of columns. */
  function batch(pointer, rows, count, length) {
    const statement = statements.get(pointer);
    const { db } = statement;
    const data = sqlite._malloc(length); // a copy: a function that SQLite calls may use the input
    if (!data) throw new Error('out of memory');
    current();
    heap.set(input().subarray(0, length), data);
    const columns = readColumns(data, rows, count);
    let code = DONE;
    let changes = 0;
    let row = 0;
    depth++;
    try {
      for (; row < rows; row++) {
        code = OK;
        for (let i = 0; i < count && code === OK; i++) code = bindCell(pointer, i, row, columns[i]);
        if (code !== OK) break;
        do code = sqlite._sqlite3_step(pointer); while (code === ROW);
        if (code !== DONE) break;
        changes += sqlite._sqlite3_changes(db);
        if (row < rows - 1 && (code = sqlite._sqlite3_reset(pointer)) !== OK) break;
      }
    } finally {
      leave();
      sqlite._free(data);
    }
    const size = finish(statement, code, [], 0, changes);
    if (code === DONE) sqlite._sqlite3_clear_bindings(pointer);
    return size;
  }

  function readColumns(at, rows, count) {
    const columns = [];
    for (let i = 0; i < count; i++) {
      const kind = heap[at];
      const nulls = view.getUint32(at + 1, true);
      at += 5;
      const column = { kind, isNull: undefined, types: 0, slots: 0, lengths: 0, bytes: 0 };
      if (nulls) {
        column.isNull = new Uint8Array(rows);
        for (let k = 0; k < nulls; k++) column.isNull[view.getUint32(at + 4 * k, true)] = 1;
        at += 4 * nulls;
      }
      if (kind === MIXED) {
        column.types = at;
        at += rows;
      }
      if (kind === BLOB || kind === CUT_TEXT) {
        column.lengths = at;
        at += 4 * rows;
      } else if (kind !== NULL && kind !== TEXT) {
        column.slots = at;
        at += 8 * rows;
      }
      if (kind !== INTEGER && kind !== FLOAT && kind !== NULL) {
        column.bytes = at + 4;
        at += 4 + view.getUint32(at, true);
      }
      columns.push(column);
    }
    return columns;
  }

  function bindCell(pointer, index, row, column) {
    if (heap.byteLength === 0) refresh();
    let type = column.kind;
    if (type === MIXED) type = heap[column.types + row];
    if (type === NULL || column.isNull?.[row]) return sqlite._sqlite3_bind_text(pointer, index + 1, 0, 0, 0); // no text is NULL
    switch (type) {
      case INTEGER: {
        const at = column.slots + 8 * row;
        return bindInteger(pointer, index + 1, view.getInt32(at, true), view.getInt32(at + 4, true));
      }
      case FLOAT: return sqlite._sqlite3_bind_double(pointer, index + 1, view.getFloat64(column.slots + 8 * row, true));
      default: {
        const at = column.bytes;
        const isText = type !== BLOB;
        let length;
        if (column.kind === TEXT) length = heap.indexOf(0, at) - at;
        else length = view.getUint32(column.lengths ? column.lengths + 4 * row : column.slots + 8 * row, true);
        column.bytes += length + (isText ? 1 : 0);
        return bindBytes(pointer, index + 1, isText ? TEXT : BLOB, at, length);
      }
    }
  }

  /** Copy what did not fit into Python's buffer, now that it is larger. */
  function drain() {
    const bytes = pending;
    pending = undefined;
    if (outBuffer.data.length === 0) attachOut();
    outBuffer.data.set(bytes);
  }

  // --- functions written in Python -----------------------------------------------------------------------------------------

  let dispatch; // (callback, instance, count) => bytes of the result in the input, or minus the code of an error
  let failureOf; // () => the message of that error

  function readArguments(count, argv) {
    const columns = [];
    let size = 10 * count;
    for (let i = 0; i < count; i++) {
      current();
      const value = view.getUint32(argv + 4 * i, true);
      const column = new Column();
      column.begin(1);
      const type = sqlite._sqlite3_value_type(value);
      column.types[0] = type;
      if (type === INTEGER) {
        const number = sqlite._sqlite3_value_double(value);
        const exact = number < EXACT && number > -EXACT ? BigInt(number) : BigInt(sqlite.UTF8ToString(sqlite._sqlite3_value_text(value)));
        new DataView(column.slots).setBigInt64(0, exact, true);
      } else if (type === FLOAT) column.floats[0] = sqlite._sqlite3_value_double(value);
      else if (type !== NULL) {
        const at = type === TEXT ? sqlite._sqlite3_value_text(value) : sqlite._sqlite3_value_blob(value);
        const length = sqlite._sqlite3_value_bytes(value);
        current();
        column.append(heap, at, length, type === TEXT ? 1 : 0);
        column.words[0] = length;
        column.words[1] = 0;
      }
      size += column.used;
      columns.push(column);
    }
    const bytes = output(size);
    writeRows(bytes, viewOf(bytes), 0, count, columns, 1);
    return size;
  }

  function giveResult(context) {
    const bytes = input();
    switch (bytes[0]) {
      case INTEGER: sqlite._sqlite3_result_int64(context, inView.getBigInt64(1, true)); break;
      case FLOAT: sqlite._sqlite3_result_double(context, inView.getFloat64(1, true)); break;
      case NULL: sqlite._sqlite3_result_null(context); break;
      default: {
        const length = inView.getUint32(1, true) - 1;
        const give = bytes[0] === TEXT ? sqlite._sqlite3_result_text : sqlite._sqlite3_result_blob;
        const at = place(bytes.subarray(9, 9 + length)) || scratch;
        give(context, at, length, COPY_AT_ONCE);
      }
    }
  }

  /** Call Python; true when it gave a result. A raised exception becomes the statement's error. */
  function call(db, context, callback, instance, count, argv) {
    const size = readArguments(count, argv);
    const code = dispatch(callback, instance, count, size);
    const connection = connections.get(db);
    const refused = code < 0 ? -code : interrupted.has(db) ? INTERRUPTED : 0;
    if (!refused) return true;
    if (connection) {
      connection.override = refused === 1 ? 0 : refused;
    }
    interrupted.delete(db);
    withText(code < 0 ? failureOf() : 'interrupted', (at) => sqlite._sqlite3_result_error(context, at, -1));
    return false;
  }

  /**
   * @param {number} callback what Python is called with: for an aggregate this steps, `callback + 1` ends
   * @param {boolean} aggregate
   * @param {boolean} remove whether there is to be no such function any more
   */
  function createFunction(db, name, count, flags, callback, aggregate, remove) {
    const slots = [];
    let scalar = 0;
    let step = 0;
    let final = 0;
    if (!remove && aggregate) {
      step = sqlite.addFunction((context, argc, argv) => {
        const state = sqlite._sqlite3_aggregate_context(context, 8);
        current();
        let instance = view.getInt32(state, true);
        const fresh = instance === 0;
        if (fresh) {
          instance = ++instances;
          view.setInt32(state, instance, true);
        }
        call(db, context, callback, fresh ? -instance : instance, argc, argv);
      }, 'viii');
      final = sqlite.addFunction((context) => {
        const state = sqlite._sqlite3_aggregate_context(context, 8);
        const instance = current().getInt32(state, true);
        if (call(db, context, callback + 1, instance, 0, 0)) giveResult(context);
      }, 'vi');
      slots.push(step, final);
    } else if (!remove) {
      scalar = sqlite.addFunction((context, argc, argv) => {
        if (call(db, context, callback, 0, argc, argv)) giveResult(context);
      }, 'viii');
      slots.push(scalar);
    }
    const code = withText(name, (at) => sqlite._sqlite3_create_function_v2(db, at, count, flags, 0, scalar, step, final, 0));
    if (code !== OK) {
      slots.forEach((slot) => sqlite.removeFunction(slot));
      return extended(db, code);
    }
    const { functions } = connections.get(db);
    const key = `${name.toLowerCase()}/${count}`;
    functions.get(key)?.forEach((slot) => sqlite.removeFunction(slot));
    functions.set(key, slots);
    return OK;
  }
  let instances = 0;

  // --- files in memory -----------------------------------------------------------------------------------------------------

  /** @param {Uint8Array | null} bytes a database image */
  function createFile(bytes) {
    const database = new sqlite.Database(bytes?.length ? bytes : undefined);
    const path = `/${database.filename}`;
    raw.exec(database.db, ASYNC_COMMIT);
    files.set(path, { database, path, version: 0, seen: 0, watchers: [] });
    return path;
  }

  const fileOf = (path) => {
    const file = files.get(path);
    if (!file) throw new Error(`no such file: ${path}`);
    return file;
  };

  function removeFile(path) {
    const file = fileOf(path);
    if (file.version) sqlite._sqlite3_finalize(file.version);
    if (file.watchers.length) watched--;
    files.delete(path);
    file.database.close();
  }

  /** Whether a connection has changed the file and not committed yet. */
  function inWriteTransaction(path) {
    const { db } = fileOf(path).database;
    if (raw.exec(db, 'BEGIN IMMEDIATE') === BUSY) return true;
    raw.exec(db, 'ROLLBACK');
    return false;
  }

  function exportFile(path) {
    const { database } = fileOf(path);
    if (inWriteTransaction(path)) throw new Error('busy');
    return database.export();
  }

  function number(db, sql) {
    const pointer = raw.prepare(db, sql);
    try {
      return sqlite._sqlite3_step(pointer) === ROW ? sqlite._sqlite3_column_double(pointer, 0) : 0;
    } finally {
      sqlite._sqlite3_finalize(pointer);
    }
  }

  function fileSize(path) {
    const { db } = fileOf(path).database;
    return number(db, 'PRAGMA page_count') * number(db, 'PRAGMA page_size');
  }

  /** Run a script on a file by a connection of its own. */
  function runScript(path, sql) {
    const db = raw.open(path);
    try {
      if (raw.exec(db, sql) !== OK) throw new Error(messageOf(db));
    } finally {
      raw.close(db);
    }
    notify();
  }

  /** Put another database image in the place of a file, which idle connections may have open. */
  function replaceFile(path, bytes) {
    const { database } = fileOf(path);
    const source = new sqlite.Database(bytes);
    try {
      const backup = backupBegin(database.db, 'main', source.db, 'main');
      const code = backup ? sqlite._sqlite3_backup_step(backup, -1) : OK;
      if (backup) sqlite._sqlite3_backup_finish(backup);
      if (code !== DONE) throw new Error(code === BUSY ? 'busy' : messageOf(database.db));
    } finally {
      source.close();
    }
  }

  /** The file's data version: it changes whenever another connection commits a change. undefined while it is locked. */
  function dataVersion(file) {
    const code = sqlite._sqlite3_step(file.version);
    const version = code === ROW ? sqlite._sqlite3_column_double(file.version, 0) : undefined;
    sqlite._sqlite3_reset(file.version);
    return version;
  }

  /** Have `callback()` called after each commit that changed the file; gives a function that ends this. */
  function onCommit(path, callback) {
    const file = fileOf(path);
    if (!file.version) {
      file.version = raw.prepare(file.database.db, 'PRAGMA data_version');
      file.seen = dataVersion(file);
    }
    if (file.watchers.push(callback) === 1) watched++;
    return () => {
      const index = file.watchers.indexOf(callback);
      if (index < 0) return;
      file.watchers.splice(index, 1);
      if (!file.watchers.length && files.get(path) === file) watched--;
    };
  }

  function notify() {
    if (!watched) return;
    for (const file of files.values()) {
      if (!file.watchers.length) continue;
      const version = dataVersion(file);
      if (version === undefined || version === file.seen) continue;
      file.seen = version;
      for (const callback of [...file.watchers]) callback();
    }
  }

  // --- backup --------------------------------------------------------------------------------------------------------------

  /** Begin to copy one database into another: the address of the backup, or 0 with the error in the target connection. */
  function backupBegin(target, targetName, source, sourceName) {
    return withText(targetName, (to) => withText(sourceName, (from) => sqlite._sqlite3_backup_init(target, to, source, from)));
  }

  function backupEnd(backup) {
    const code = sqlite._sqlite3_backup_finish(backup);
    notify();
    return code;
  }

  return {
    sqlite, memory,
    setBuffers(toEngine, toPython) {
      inProxy = toEngine.copy();
      outProxy = toPython.copy();
      attachIn();
      attachOut();
    },
    setDispatch(call_, message) {
      dispatch = call_.copy();
      failureOf = message.copy();
    },
    open, close, prepare, convert, finalize, run, more, batch, drain,
    reset: (pointer) => sqlite._sqlite3_reset(pointer),
    errorCode: (db) => current().getInt32(db + layout.errorCode, true),
    errorMessage: messageOf,
    inTransaction,
    totalChanges: (db) => current().getBigInt64(db + layout.totalChanges, true),
    interrupt(db) {
      if (depth) interrupted.add(db);
    },
    createFunction,
    backupBegin, backupStep: (backup, pages) => sqlite._sqlite3_backup_step(backup, pages), backupEnd,
    createFile, removeFile, replaceFile, exportFile, fileSize, inWriteTransaction, onCommit, runScript,
    connectionCount: (path) => [...connections.values()].filter((connection) => connection.path === path).length,
  };
}
