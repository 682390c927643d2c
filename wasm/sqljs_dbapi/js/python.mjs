/**
 * Functions of Python written in JavaScript as an extension module has them in C: over CPython's C API, which Pyodide exports.
 *
 * Pyodide's own call of a JavaScript function goes back and forth between WebAssembly and JavaScript for each of its values, each time
 * from one stack to another where Python can wait (JSPI). This way there is one call, with the addresses of Python's objects.
 */

const FAST_CALL = 0x80; // METH_FASTCALL: (self, arguments, their count)
const POINTERS_ONLY = 'iiii'; // as WebAssembly has that: three integers, and one that it returns
const KEPT_BYTES = 2 << 20; // of memory for what goes to Python, from call to call

/**
 * @param {object} module Pyodide's, `pyodide_js._module`
 * @param {number} error the address of the exception type that an exception of JavaScript becomes
 */
export function connect(module, error) {
  const allocate = (size) => {
    const at = module._malloc(size);
    if (!at) throw Object.assign(new Error('out of memory'), { noMemory: true });
    return at;
  };
  const kept = allocate(KEPT_BYTES);
  const call = (body, args, count) => {
    try {
      if (count !== body.length) throw new TypeError(`${body.name}() takes ${body.length} arguments, not ${count}`);
      const words = module.HEAPU32;
      const at = args >>> 2;
      return body(words[at], words[at + 1], words[at + 2]);
    } catch (failure) {
      if (failure?.pyodide_fatal_error || failure?.name === 'PythonError') {
        module.handle_js_error(failure); // what was raised in Python, such as KeyboardInterrupt, goes on there
        return 0;
      }
      if (module._PyErr_Occurred()) return 0;
      if (failure?.noMemory) return module._PyErr_NoMemory();
      const message = module.stringToNewUTF8(String(failure));
      module._PyErr_SetString(error, message);
      module._free(message);
      return 0;
    }
  };
  return {
    /** Put builtin functions into a dict, by their names. Each is given addresses of objects and returns that of a new one. */
    define(dict, bodies) {
      for (const body of bodies) {
        const definition = allocate(16); // a PyMethodDef: for as long as Python lives
        const name = module.stringToNewUTF8(body.name);
        const entry = module.addFunction((_, args, count) => call(body, args, count), POINTERS_ONLY);
        module.HEAPU32.set([name, entry, FAST_CALL, 0], definition >>> 2);
        const made = module._PyCFunction_NewEx(definition, 0, 0);
        module._PyDict_SetItemString(dict, name, made);
        module._Py_DecRef(made);
      }
    },
    get heap() {
      return module.HEAPU8; // another one whenever Python's memory has grown
    },
    /** The number that an int is, of 32 bits. */
    number(object) {
      const number = module._PyLong_AsLong(object);
      if (number === -1 && module._PyErr_Occurred()) throw new TypeError('not an int');
      return number;
    },
    /** Where the content of a bytes lies; its heap may have 4 GB. */
    content: (object) => module._PyBytes_AsString(object) >>> 0,
    /** How many bytes that are. */
    size(object) {
      const size = module._PyBytes_Size(object);
      if (size < 0) throw new TypeError('not bytes');
      return size;
    },
    bool: (value) => module._PyBool_FromLong(value ? 1 : 0),
    int: (number) => module._PyLong_FromDouble(number),
    /** What `marshal` reads from the first `length` bytes of this. */
    unmarshal(bytes, length) {
      const at = length > KEPT_BYTES ? allocate(length) : kept;
      const { heap } = this;
      if (length > 100) heap.set(bytes.subarray(0, length), at);
      else for (let i = 0; i < length; i++) heap[at + i] = bytes[i]; // a few are copied quicker by hand
      const object = module._PyMarshal_ReadObjectFromString(at, length);
      if (at !== kept) module._free(at);
      return object;
    },
  };
}
