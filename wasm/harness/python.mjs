// Pyodide in the worker of a page, called from outside of the browser.

/** A worker of page.html with Pyodide in it. */
export class Python {
  #waiting = new Map();
  #last = 0;

  /**
   * @param {any} page one that shows page.html
   * @param {(descriptor: number, text: string) => void} output takes what Python prints: 1 is standard output, 2 errors
   */
  constructor(page, output) {
    this.page = page;
    this.#listen(output).catch(error => {
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    });
  }

  async #listen(output) {
    for (;;) {
      for (const { id, descriptor, text, value, error, died } of await this.page.evaluate(() => globalThis.harness.messages())) {
        if (died) throw new Error(died);
        if (text !== undefined) {
          output(descriptor, text);
          continue;
        }
        const { resolve, reject } = this.#waiting.get(id);
        this.#waiting.delete(id);
        if (error === undefined) resolve(value);
        else reject(new Error(error));
      }
    }
  }

  /**
   * Call one of the functions in worker.mjs.
   * @param {'boot' | 'tree' | 'run' | 'evaluate'} name
   * @param {any} [argument]
   * @returns {Promise<any>} rejected also where the browser or the page ends
   */
  call(name, argument) {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.page.evaluate(message => globalThis.harness.send(message), { id, name, argument }).catch(reject);
    });
  }

  /**
   * Run lines of Python, which may await, in a namespace that the next call finds again.
   * @param {string} source
   * @returns {Promise<any>} the value of the last line, as JavaScript has it
   */
  evaluate(source) {
    return this.call('evaluate', source);
  }
}
