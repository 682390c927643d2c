/**
 * sql.js below a Python driver: its raw exports on one side, builtin functions of Python (`python.mjs`) on the other.
 *
 * Values travel as Python's `marshal` writes and reads them in C (version 2, little-endian): the parameters of a statement are a tuple,
 * those of many a list of tuples, and what comes of a call is what `finish` writes.
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
const UTF_8 = 1;
const TOO_LARGE = -1; // beside SQLite's codes: an integer that 64 bits do not hold
const NOT_TEXT = -2; // a text that UTF-8 does not hold, which is the message then
const [NONE, FALSE, TRUE, INT, LONG, DOUBLE, STRING, BYTES, TUPLE, LIST] = [...'NFTilgus(['].map((tag) => tag.charCodeAt(0)); // marshal's
const COPY_AT_ONCE = -1; // SQLITE_TRANSIENT
const BATCH_BYTES = 1 << 20;
const KEPT_BYTES = 4 * BATCH_BYTES; // of memory for the rows of a call, from call to call
const LARGE = 64 << 20;
const EXACT = 2 ** 53;
const TWO_32 = 2 ** 32;
const ASYNC_COMMIT = 'PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY'; // a file here is memory: nothing of it survives the realm
// what these bits of a value's flags say; a number may have its text as well, which leaves it a number
const KIND = { mask: 0x3f, null: 1, text: 2, integer: 4, integerWithText: 6, float: 8, floatWithText: 10 };
const utf8 = new TextEncoder();
const outOfMemory = () => Object.assign(new Error('out of memory'), { noMemory: true });

/** Writes values for Python. */
class Writer {
  constructor() {
    this.allocate(4096);
  }

  allocate(size) {
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
  }

  begin() {
    if (this.bytes.length > KEPT_BYTES) this.allocate(4096);
    this.used = 0;
    this.hasBytes = false; // in the place of a text
  }

  reserve(size) {
    if (this.used + size <= this.bytes.length) return;
    const { bytes } = this;
    this.allocate(Math.max(2 * bytes.length, this.used + size));
    this.bytes.set(bytes.subarray(0, this.used));
  }

  tag(tag) {
    this.reserve(1);
    this.bytes[this.used++] = tag;
  }

  /** A tag and what comes with it: an integer, or how many bytes or values follow. */
  head(tag, number) {
    this.reserve(5);
    this.bytes[this.used] = tag;
    this.view.setInt32(this.used + 1, number, true);
    this.used += 5;
  }

  integer(low, high) {
    if (high === low >> 31) return this.head(INT, low);
    const negative = high < 0; // digits of 15 bits, of the absolute value
    const lower = negative ? -low | 0 : low;
    const upper = negative ? ~high + (low === 0 ? 1 : 0) : high;
    const digits = [lower, lower >>> 15, (lower >>> 30) | (upper << 2), upper >>> 13, upper >>> 28];
    let count = 5;
    while (!(digits[count - 1] & 0x7fff)) count--;
    this.head(LONG, negative ? -count : count);
    this.reserve(10);
    for (let i = 0; i < count; i++, this.used += 2) this.view.setUint16(this.used, digits[i] & 0x7fff, true);
  }

  float(number) {
    this.reserve(9);
    this.bytes[this.used] = DOUBLE;
    this.view.setFloat64(this.used + 1, number, true);
    this.used += 9;
  }

  append(bytes, at, length) {
    this.reserve(length);
    copy(bytes, at, length, this.bytes, this.used);
    this.used += length;
  }

  string(text) {
    this.encoded(utf8.encode(text));
  }

  /** A text of which these are the bytes. */
  encoded(bytes) {
    this.head(STRING, bytes.length);
    this.append(bytes, 0, bytes.length);
  }

  blob(heap, at, length) {
    this.head(BYTES, length);
    this.append(heap, at, length);
  }

  /** A text, or a tuple of its bytes: where they are asked for, and where Python could not decode them. */
  text(heap, at, length, asBytes) {
    if (!asBytes && isText(heap, at, at + length)) {
      this.head(STRING, length);
      return this.append(heap, at, length);
    }
    this.hasBytes = true;
    this.head(TUPLE, 1);
    this.blob(heap, at, length);
  }
}

/** Copy bytes: a few are copied quicker by hand than through a view of them. */
function copy(from, start, length, to, at) {
  if (length > 100) to.set(from.subarray(start, start + length), at);
  else for (let i = 0; i < length; i++) to[at + i] = from[start + i];
}

/** Whether bytes are UTF-8 as Python has it: without surrogates, and nothing longer than it must be. */
function isText(bytes, at, end) {
  while (at < end) {
    const first = bytes[at++];
    if (first < 0x80) continue;
    const more = first < 0xc2 || first > 0xf4 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
    if (!more || at + more > end) return false;
    const least = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
    const most = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
    if (bytes[at] < least || bytes[at] > most) return false;
    for (let i = 1; i < more; i++) if ((bytes[at + i] & 0xc0) !== 0x80) return false;
    at += more;
  }
  return true;
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
  const place = (bytes, start, length) => {
    if (length > arena.size) {
      if (arena.at) sqlite._free(arena.at);
      const size = length < LARGE ? 2 * length : length;
      arena = { at: sqlite._malloc(size), size };
      if (!arena.at) {
        arena = { at: 0, size: 0 };
        throw outOfMemory();
      }
    }
    current();
    copy(bytes, start, length, heap, arena.at);
    return arena.at;
  };

  let python; // what `connect` of python.mjs made
  /** The content of a bytes of Python's, in SQLite's memory until the next call of `place`. */
  const receive = (object, size) => place(python.heap, python.content(object), size);
  const give = ({ bytes, used }) => python.unmarshal(bytes, used);

  // --- connections and statements ----------------------------------------------------------------------------------------

  /** @type {Map<number, {path: string, functions: Map<string, number[]>, override: number}>} */
  const connections = new Map();
  /** @type {Map<number, {db: number, pointer: number, columns: number, names: number, reads: boolean, changed: boolean,
   *   converted?: number[]}>} */
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
  layout = findLayout(sqlite, current, raw, KIND);

  const messageOf = (db) => sqlite.UTF8ToString(sqlite._sqlite3_errmsg(db));
  /** The extended result code: the connection keeps it, `step` and `prepare` return its low byte only. */
  const extended = (db, code) => {
    const kept = current().getInt32(db + layout.errorCode, true);
    return (kept & 0xff) === (code & 0xff) ? kept : code;
  };
  const isOpen = (db) => current().getUint8(db + layout.autocommit) === 0; // a transaction

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

  /** Prepare the first statement of some SQL: (its address or 0, where the rest begins, names, declared types, result code, error). */
  function prepare(connection, text) {
    const db = python.number(connection);
    const size = python.size(text);
    const at = receive(text, size + 1); // with the NUL behind every bytes
    const code = sqlite._sqlite3_prepare_v2(db, at, size + 1, scratch, scratch + 4);
    current();
    const pointer = code === OK ? view.getUint32(scratch, true) : 0;
    const tail = code === OK ? view.getUint32(scratch + 4, true) - at : 0;
    const writer = begin(6);
    writer.head(INT, pointer);
    writer.head(INT, tail);
    const count = describe(writer, pointer);
    writer.head(INT, code === OK ? OK : extended(db, code));
    if (code === OK) writer.tag(NONE);
    else writer.string(messageOf(db));
    if (pointer) {
      const sql = sqlite.UTF8ToString(at, Math.min(tail, 2000)).replace(/^(\s|--[^\n]*\n|\/\*[^]*?\*\/)*/, '');
      const reads = /^(SELECT|VALUES|EXPLAIN)\b/i.test(sql);
      statements.set(pointer, { db, pointer, columns: count, names: namesOf(pointer), reads, changed: false });
    }
    return give(writer);
  }

  /** Where the names of a statement's columns are: elsewhere once SQLite has prepared it anew, for the schema was changed. */
  const namesOf = (pointer) => current().getUint32(pointer + layout.columns, true);

  /** Write names and declared types of a statement's columns; gives how many there are. */
  function describe(writer, pointer) {
    const count = pointer && sqlite._sqlite3_column_count(pointer);
    writer.head(LIST, count);
    for (let i = 0; i < count; i++) writer.string(sqlite.UTF8ToString(sqlite._sqlite3_column_name(pointer, i)));
    const values = count && namesOf(pointer) + count * layout.valueBytes; // the types are behind the names
    writer.head(LIST, count);
    for (let i = 0; i < count; i++) {
      const value = values + i * layout.valueBytes;
      if ((view.getUint16(value + layout.flags, true) & 3) !== 2) writer.tag(NONE);
      else writer.string(sqlite.UTF8ToString(view.getUint32(value + layout.text, true)));
    }
    return count;
  }

  /** (names, declared types) of a statement's columns as they are now. */
  function describeAgain(pointer) {
    const writer = begin(2);
    describe(writer, python.number(pointer));
    return give(writer);
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
      const found = view.getInt32(at, true) === low && view.getInt32(at + 4, true) === low >> 31;
      if (!found) throw new Error('a bound integer is not where it was');
      view.setInt32(at + 4, high, true);
    }
    return code;
  }

  let next = 0; // where in SQLite's memory the next value to bind lies
  let refused; // the bytes of a text that cannot be bound

  /** Bind the next tuple or list of values. */
  function bindRow(pointer) {
    current();
    const count = view.getInt32(next + 1, true);
    next += 5;
    let code = OK;
    for (let i = 1; i <= count && code === OK; i++) code = bindValue(pointer, i);
    return code;
  }

  function bindValue(pointer, index) {
    current();
    const tag = heap[next++];
    const at = next;
    switch (tag) {
      case INT:
        next += 4;
        return bindInteger(pointer, index, view.getInt32(at, true), view.getInt32(at, true) >> 31);
      case LONG: return bindLong(pointer, index);
      case DOUBLE:
        next += 8;
        return sqlite._sqlite3_bind_double(pointer, index, view.getFloat64(at, true));
      case NONE: return sqlite._sqlite3_bind_text(pointer, index, 0, 0, 0); // no text is NULL
      case STRING:
      case BYTES: {
        const length = view.getInt32(at, true);
        next += 4 + length;
        if (tag === BYTES) return sqlite._sqlite3_bind_blob(pointer, index, at + 4, length, COPY_AT_ONCE);
        if (isText(heap, at + 4, next)) return sqlite._sqlite3_bind_text(pointer, index, at + 4, length, COPY_AT_ONCE);
        refused = heap.slice(at + 4, next);
        return NOT_TEXT;
      }
      default: return sqlite._sqlite3_bind_int(pointer, index, tag === TRUE ? 1 : 0);
    }
  }

  /** Bind an integer of more than 32 bits: digits of 15, their number negative if it is. */
  function bindLong(pointer, index) {
    const size = view.getInt32(next, true);
    const count = Math.abs(size);
    const digit = (i) => (i < count ? view.getUint16(next + 4 + 2 * i, true) : 0);
    const low = digit(0) | (digit(1) << 15) | (digit(2) << 30);
    const high = (digit(2) >> 2) | (digit(3) << 13) | (digit(4) << 28);
    const fits = count < 5 || (count === 5 && (digit(4) < 8 || (digit(4) === 8 && size < 0 && low === 0 && high === 1 << 31)));
    next += 4 + 2 * count;
    if (!fits) return TOO_LARGE;
    return size < 0 ? bindInteger(pointer, index, -low | 0, ~high + (low === 0 ? 1 : 0)) : bindInteger(pointer, index, low, high);
  }

  // --- stepping ------------------------------------------------------------------------------------------------------------

  const writers = []; // one for each level: a function that SQLite calls may run statements of its own
  let depth = 0;
  const interrupted = new Set(); // connections whose running statement is to fail
  let raised; // in Python, past `dispatch`
  /** What was raised in Python while a statement ran goes on when SQLite has ended it: not through its frames. */
  const goOn = (pointer) => {
    if (raised === undefined) return;
    const error = raised;
    raised = undefined;
    sqlite._sqlite3_reset(pointer);
    throw error;
  };
  const leave = () => {
    depth--;
    if (depth === 0 && interrupted.size) interrupted.clear();
  };

  /** Read a value where SQLite has it, which takes a call for each that is not there as it is wanted. */
  function readValue(writer, value, pointer, index, asBytes) {
    switch (view.getUint16(value + layout.flags, true) & KIND.mask) {
      case KIND.integer:
      case KIND.integerWithText: return writer.integer(view.getInt32(value, true), view.getInt32(value + 4, true));
      case KIND.float:
      case KIND.floatWithText: return writer.float(view.getFloat64(value, true));
      case KIND.null: return writer.tag(NONE);
      case KIND.text:
        if (view.getUint8(value + layout.encoding) !== UTF_8) break;
        return writer.text(heap, view.getUint32(value + layout.text, true), view.getInt32(value + layout.length, true), asBytes);
      default:
    }
    return readColumn(writer, pointer, index, asBytes);
  }

  function readColumn(writer, pointer, index, asBytes, converted) {
    const type = sqlite._sqlite3_column_type(pointer, index);
    if (converted && type !== NULL) {
      const at = sqlite._sqlite3_column_blob(pointer, index);
      const length = sqlite._sqlite3_column_bytes(pointer, index);
      current();
      return writer.blob(heap, at, length);
    }
    switch (type) {
      case INTEGER: {
        const number = sqlite._sqlite3_column_double(pointer, index);
        if (isExact(number)) return writer.integer(number | 0, Math.floor(number / TWO_32));
        // no double holds it: sqlite3_column_int64 is not exported, its decimal digits are
        return writeDigits(writer, sqlite._sqlite3_column_text(pointer, index));
      }
      case FLOAT: return writer.float(sqlite._sqlite3_column_double(pointer, index));
      case NULL: return writer.tag(NONE);
      default: {
        const at = type === TEXT ? sqlite._sqlite3_column_text(pointer, index) : sqlite._sqlite3_column_blob(pointer, index);
        const length = sqlite._sqlite3_column_bytes(pointer, index);
        current();
        if (type === TEXT) writer.text(heap, at, length, asBytes);
        else writer.blob(heap, at, length);
      }
    }
  }

  const isExact = (number) => number < EXACT && number > -EXACT;
  const writeDigits = (writer, at) => {
    const number = BigInt(sqlite.UTF8ToString(at));
    writer.integer(Number(BigInt.asIntN(32, number)), Number(number >> 32n));
  };

  /** Step `statement` for at most `limit` rows, and write them. It is reset when it ends, well or not. */
  function pull(statement, limit) {
    const { pointer, converted } = statement;
    const asBytes = limit < 0;
    const most = Math.abs(limit);
    const writer = beginAnswer();
    let rows = 0;
    let code;
    depth++;
    try {
      code = sqlite._sqlite3_step(pointer);
      const names = namesOf(pointer);
      if (names !== statement.names) {
        statement.changed = true;
        statement.names = names;
        statement.columns = sqlite._sqlite3_column_count(pointer);
      }
      const count = statement.columns;
      while (code === ROW) {
        writer.head(TUPLE, count);
        current();
        if (converted) for (let i = 0; i < count; i++) readColumn(writer, pointer, i, asBytes, converted.includes(i));
        else {
          let value = view.getUint32(pointer + layout.row, true);
          for (let i = 0; i < count; i++, value += layout.valueBytes) readValue(writer, value, pointer, i, asBytes);
        }
        rows++;
        if (rows >= most) break;
        if (writer.used > BATCH_BYTES && rows > 1) break; // one large row does not end there: a result of one row is to end at once
        code = sqlite._sqlite3_step(pointer);
      }
    } finally {
      leave();
    }
    goOn(pointer);
    return finish(statement, code, writer, rows);
  }

  /** A writer with the beginning of a tuple of `count` values. */
  function begin(count) {
    const writer = (writers[depth] ??= new Writer());
    writer.begin();
    writer.head(TUPLE, count);
    return writer;
  }

  /** A writer with the beginning of an answer: a tuple, and in it a list of rows. */
  function beginAnswer() {
    const writer = begin(8);
    writer.head(LIST, 0);
    return writer;
  }

  /**
   * Reset what has ended, tell who watches, and give what came of it:
   * (rows, result code, changes, in a transaction, last row id, rows have bytes that are not values yet, error message or None, whether
   * the columns are others than were told).
   */
  function finish(statement, code, writer, rows, changes) {
    const { db, pointer, converted } = statement;
    let message;
    if (code < 0) {
      message = refused;
      sqlite._sqlite3_reset(pointer);
    } else if (code !== ROW && code !== DONE) {
      message = utf8.encode(messageOf(db));
      code = extended(db, code);
      const connection = connections.get(db);
      if (connection?.override) {
        code = connection.override;
        connection.override = 0;
      }
      sqlite._sqlite3_reset(pointer);
    } else if (code === DONE) {
      changes ??= statement.reads ? 0 : sqlite._sqlite3_changes(db);
      const reset = sqlite._sqlite3_reset(pointer);
      if (reset !== OK) {
        message = utf8.encode(messageOf(db));
        code = extended(db, reset);
      }
    }
    const open = isOpen(db);
    if (watched && code !== ROW && !(statement.reads && !rows) && !open) notify();
    current();
    writer.view.setInt32(6, rows, true);
    writer.head(INT, code);
    writer.head(INT, changes ?? 0);
    writer.tag(open ? TRUE : FALSE);
    writer.integer(view.getInt32(db + layout.lastRowid, true), view.getInt32(db + layout.lastRowid + 4, true));
    writer.tag(writer.hasBytes || converted ? TRUE : FALSE);
    if (message) {
      writer.encoded(message);
      refused = undefined;
    } else writer.tag(NONE);
    writer.tag(statement.changed ? TRUE : FALSE);
    statement.changed = false;
    return give(writer);
  }

  /** Bind the parameters, if there are bytes of them, and pull at most `limit` rows; minus as many have bytes for texts. */
  function run(pointer, parameters, limit) {
    const statement = statements.get(python.number(pointer));
    const size = python.size(parameters);
    if (size) {
      next = receive(parameters, size);
      const code = bindRow(statement.pointer);
      if (code !== OK) return finish(statement, code, beginAnswer(), 0);
    }
    return pull(statement, python.number(limit));
  }

  /** Run a statement once for each of the rows of parameters. */
  function batch(address, parameters) {
    const statement = statements.get(python.number(address));
    const { db, pointer } = statement;
    const size = python.size(parameters);
    const data = sqlite._malloc(size); // its own: a function that SQLite calls may run statements as well
    if (!data) throw outOfMemory();
    current();
    const from = python.content(parameters);
    heap.set(python.heap.subarray(from, from + size), data);
    const rows = view.getInt32(data + 1, true);
    let at = data + 5;
    let code = DONE;
    let changes = 0;
    depth++;
    try {
      for (let row = 0; row < rows; row++) {
        next = at;
        code = bindRow(pointer);
        at = next;
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
    goOn(pointer);
    const answer = finish(statement, code, beginAnswer(), 0, changes);
    if (code === DONE) sqlite._sqlite3_clear_bindings(pointer);
    return answer;
  }

  function inTransaction(db) {
    return python.bool(isOpen(python.number(db)));
  }

  function totalChanges(db) {
    return python.int(Number(current().getBigInt64(python.number(db) + layout.totalChanges, true)));
  }

  // --- functions written in Python -----------------------------------------------------------------------------------------

  let dispatch; // (callback, instance, whether there are bytes for texts) => 0, or minus the code of an error
  let failureOf; // () => the message of that error

  let passed; // the writer of the tuple of arguments, which Python takes
  let result; // where in SQLite's memory a tuple of the result lies, which Python gave

  function passArguments(count, argv) {
    const writer = begin(count);
    for (let i = 0; i < count; i++) {
      const value = current().getUint32(argv + 4 * i, true);
      const type = sqlite._sqlite3_value_type(value);
      if (type === INTEGER) {
        const number = sqlite._sqlite3_value_double(value);
        if (isExact(number)) writer.integer(number | 0, Math.floor(number / TWO_32));
        else writeDigits(writer, sqlite._sqlite3_value_text(value));
      } else if (type === FLOAT) writer.float(sqlite._sqlite3_value_double(value));
      else if (type === NULL) writer.tag(NONE);
      else {
        const at = type === TEXT ? sqlite._sqlite3_value_text(value) : sqlite._sqlite3_value_blob(value);
        const length = sqlite._sqlite3_value_bytes(value);
        current();
        if (type === TEXT) writer.text(heap, at, length, false);
        else writer.blob(heap, at, length);
      }
    }
    passed = writer;
  }

  function takeArguments() {
    return give(passed);
  }

  function giveResult(value) {
    result = receive(value, python.size(value));
    return python.int(OK);
  }

  /** Set the one value of the tuple that Python gave as the result. */
  function setResult(context) {
    current();
    const tag = heap[result + 5];
    const at = result + 6;
    switch (tag) {
      case INT: sqlite._sqlite3_result_int64(context, BigInt(view.getInt32(at, true))); break;
      case LONG: {
        const size = view.getInt32(at, true);
        let number = 0n;
        for (let i = Math.abs(size) - 1; i >= 0; i--) number = (number << 15n) | BigInt(view.getUint16(at + 4 + 2 * i, true));
        sqlite._sqlite3_result_int64(context, size < 0 ? -number : number);
        break;
      }
      case DOUBLE: sqlite._sqlite3_result_double(context, view.getFloat64(at, true)); break;
      case NONE: sqlite._sqlite3_result_null(context); break;
      case STRING:
      case BYTES: {
        const set = tag === STRING ? sqlite._sqlite3_result_text : sqlite._sqlite3_result_blob;
        set(context, at + 4, view.getInt32(at, true), COPY_AT_ONCE);
        break;
      }
      default: sqlite._sqlite3_result_int64(context, tag === TRUE ? 1n : 0n);
    }
  }

  /** Call Python; true when it gave a result. A raised exception becomes the statement's error. */
  function call(db, context, callback, instance, count, argv) {
    passArguments(count, argv);
    let code;
    try {
      code = dispatch(callback, instance, passed.hasBytes);
    } catch (error) {
      raised = error;
      code = -1;
    }
    const connection = connections.get(db);
    const refused = code < 0 ? -code : interrupted.has(db) ? INTERRUPTED : 0;
    if (!refused) return true;
    if (connection) {
      connection.override = refused === 1 ? 0 : refused;
    }
    interrupted.delete(db);
    withText(code < 0 && raised === undefined ? failureOf() : 'interrupted', (at) => sqlite._sqlite3_result_error(context, at, -1));
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
        if (call(db, context, callback + 1, instance, 0, 0)) setResult(context);
      }, 'vi');
      slots.push(step, final);
    } else if (!remove) {
      scalar = sqlite.addFunction((context, argc, argv) => {
        if (call(db, context, callback, 0, argc, argv)) setResult(context);
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
      depth++; // what they run writes its answers beside the one that is being written
      try {
        for (const callback of [...file.watchers]) callback();
      } finally {
        depth--;
      }
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
    /** Put into a dict of Python's what it calls often; before anything else that it calls. */
    attach(connected, dict) {
      python = connected;
      python.define(dict, [run, batch, prepare, describeAgain, takeArguments, giveResult, inTransaction, totalChanges]);
    },
    setDispatch(call_, message) {
      dispatch = call_.copy();
      failureOf = message.copy();
    },
    open, close, convert, finalize,
    /** Give up what a statement had still to give: where it changes something, that commits. */
    reset(pointer) {
      const code = sqlite._sqlite3_reset(pointer);
      notify();
      return code;
    },
    errorCode: (db) => current().getInt32(db + layout.errorCode, true),
    errorMessage: messageOf,
    interrupt(db) {
      if (depth) interrupted.add(db);
    },
    createFunction,
    backupBegin, backupStep: (backup, pages) => sqlite._sqlite3_backup_step(backup, pages), backupEnd,
    createFile, removeFile, replaceFile, exportFile, fileSize, inWriteTransaction, onCommit, runScript,
    connectionCount: (path) => [...connections.values()].filter((connection) => connection.path === path).length,
  };
}
