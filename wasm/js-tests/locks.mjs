// The locks of a browser's LockManager as far as the stores ask for them: exclusive, at once or never (ifAvailable), by force (steal).

export class Locks {
  #held = new Map();
  #queues = new Map();

  request(name, options, callback) {
    return new Promise((resolve, reject) => {
      const asked = { callback, resolve, reject };
      const queue = this.#queues.get(name) ?? [];
      this.#queues.set(name, queue);
      if (options.steal) {
        this.#held.get(name)?.reject(new DOMException('stolen', 'AbortError'));
        this.#held.delete(name);
        queue.unshift(asked);
      } else if (options.ifAvailable && this.#held.has(name)) {
        return Promise.resolve(callback(null)).then(resolve, reject);
      } else {
        queue.push(asked);
        options.signal?.addEventListener('abort', () => {
          if (!queue.includes(asked)) return;
          queue.splice(queue.indexOf(asked), 1);
          reject(options.signal.reason);
        });
      }
      this.#next(name);
    });
  }

  #next(name) {
    if (this.#held.has(name)) return;
    const asked = this.#queues.get(name).shift();
    if (!asked) return;
    this.#held.set(name, asked);
    setTimeout(async () => {
      await Promise.resolve(asked.callback({ name })).then(asked.resolve, asked.reject);
      if (this.#held.get(name) !== asked) return; // stolen
      this.#held.delete(name);
      this.#next(name);
    });
  }
}
