// Keeps one in-memory file of the engine and its stored image in step: a writer's commits go to the store, a follower's file follows.
//
// When: interval - every commit is stored before it is `interval` ms old; 0 - storing starts at once. A flush begins when its oldest commit
// is half the interval old, sooner if it is expected to take longer than the other half, and as soon as the one before has ended. So as far
// as the event loop runs, a commit is stored no later than max(interval / 2, the flush it had to wait for) + its own flush.
// Also when the page is hidden, left or frozen, on flush() and on close(). At most one change is under way, and a change that failed is
// given back, so the store never skips one. A failure in the background is kept for takeFailure(), and tried again unless it is final.

const FINAL = new Set(['fenced', 'gone', 'closed', 'readonly']);
const RETRY_LEAST = 500; // ms
const RETRY_MOST = 30_000;
const NOT_NOW = 50; // ms until a file that was busy is tried again
const SAFETY = 1.5; // a flush is expected to take this many times as long as the last ones say
const FIRST_PACE = 1 / 20_000; // ms per byte, until a flush of LARGE bytes was measured
const LARGE = 1 << 20; // bytes; what less of them takes says nothing about the pace

const problem = (code, message) => Object.assign(new Error(message), { name: 'StoreError', code });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A stored image has no log beside it: its header must not send SQLite to look for one.
function withoutWal(image) {
  if (!image?.length || (image[18] !== 2 && image[19] !== 2)) return image;
  const copy = image.slice();
  copy[18] = copy[19] = 1;
  return copy;
}

/**
 * @param {object} engine of driver.mjs
 * @param {object} capture of capture.mjs, calibrated
 * @param {object} store of pagestore.mjs or filestore.mjs, open
 * @param {{interval?: number, onFailure?: Function}} options  ms; called when there may be something to take with takeFailure()
 */
export function createKeeper(engine, capture, store, options = {}) {
  return new Keeper(engine, capture, store, options);
}

class Keeper {
  /** Of the file that connections open. */
  path;

  #engine; #capture; #store; #interval;
  #tracker = null; #unsubscribe = null; #unfollow = null;
  #seen = 0; #stored = 0; // commits
  #since = null; #underWaySince = null; // when the oldest commit was made that is not stored, ms
  #running = null; #began = 0; #timer = null; #timerAt = 0; #notBefore = 0; #retries = 0;
  #pace; #took = 0; // of flushes: ms per byte, and ms, slow ones remembered for a while
  #apart = false; // a commit was made that is not marked yet
  #failure = null; #final = null;
  #flushes = 0; #failures = 0; #lastFlush = null;
  #onFailure; #stale = false; #closing = false; #closed = false;

  constructor(engine, capture, store, { interval = 1000, onFailure = null }) {
    this.#engine = engine;
    this.#capture = capture;
    this.#store = store;
    this.#interval = interval;
    this.#onFailure = onFailure;
    this.#pace = store.commitSync ? 0 : FIRST_PACE; // nothing is committed while a file is written: half of the interval will do
    const image = withoutWal(store.image);
    this.path = engine.createFile(image);
    if (store.readOnly) this.#unfollow = store.onRefresh(() => this.#follow());
    else this.#write(image);
    globalThis.document?.addEventListener('visibilitychange', this.#onHidden);
    globalThis.document?.addEventListener('freeze', this.#onLeave);
    globalThis.window?.addEventListener?.('pagehide', this.#onLeave);
  }

  /** Until its commits are captured it is a follower, though the store may have the lock already. */
  get readOnly() { return this.#tracker === null; }
  get store() { return this.#store; }
  /** Whether there are commits that are not stored. */
  get pending() { return this.#seen > this.#stored; }

  #write(image) {
    const inWriteTransaction = (path) => this.#apart || this.#engine.inWriteTransaction(path); // then take() leaves out what is not marked
    this.#tracker = this.#capture.track({ ...this.#engine, inWriteTransaction }, this.path, image);
    this.#store.forgetImage();
    this.#unsubscribe = this.#engine.onCommit(this.path, () => this.#committed());
  }

  #committed() {
    this.#storeApart();
    this.#tracker.mark();
    this.#seen++;
    this.#since ??= Date.now();
    this.#schedule();
  }

  // -- When

  #due() {
    const expected = SAFETY * Math.max(this.#took, this.#tracker.pendingBytes * this.#pace);
    const wait = Math.min(this.#interval / 2, Math.max(0, this.#interval - expected));
    return Math.max(this.#notBefore, this.#since + wait);
  }

  // Whether there is nothing to begin, or nothing may.
  get #idle() { return this.#since === null || this.#running || this.#final || this.#closing; }

  #schedule() {
    if (this.#idle) return;
    const due = this.#due();
    const wait = due - Date.now();
    if (wait <= 0) return this.#background();
    if (this.#timer !== null && this.#timerAt <= due) return;
    clearTimeout(this.#timer);
    this.#timerAt = due;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#background();
    }, wait);
  }

  // What became due while a statement kept the event loop from it is stored without that statement's commit: it may be a VACUUM, of which
  // the storing takes longer than the time that is left.
  #storeApart() {
    if (this.#idle || this.#store.commitSync || this.#store.needsImage || Date.now() < this.#due()) return;
    this.#apart = true;
    this.#background();
    this.#apart = false;
  }

  #background(leaving = false) { this.#once(leaving).catch(() => {}); } // #once has kept the failure

  #onHidden = () => { if (globalThis.document.visibilityState === 'hidden') this.#onLeave(); };
  #onLeave = () => { if (!this.#running && this.#tracker && !this.#final) this.#background(true); };

  // -- What

  // Takes the next change from the tracker: {taken, upTo}; taken is null where there is none. Throws 'busy' where it cannot now.
  #begin() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const upTo = this.#seen;
    let taken;
    try {
      taken = this.#take();
    } catch (error) {
      throw this.#failed(error);
    }
    if (taken === undefined) {
      if (!this.#apart) {
        this.#notBefore = Date.now() + NOT_NOW;
        this.#schedule();
      }
      throw problem('busy', 'a write transaction is open: nothing can be stored before it ends');
    }
    this.#underWaySince = this.#since;
    this.#since = null;
    return { taken, upTo };
  }

  // One change from the tracker to the store. It is taken, and its storing begun, before anything is awaited.
  async #once(leaving = false) {
    if (this.#store.commitSync) return this.#onceSync();
    const { taken, upTo } = this.#begin();
    if (taken === null) return this.#done(upTo);
    const bytes = taken.full?.length ?? taken.pages.size * taken.pageSize;
    const started = performance.now();
    this.#began = Date.now();
    this.#running = this.#store.commit({ ...taken, leaving }).then(
      () => {
        this.#learn(bytes, performance.now() - started);
        this.#done(upTo, true);
      },
      (error) => { throw this.#failed(error, taken); },
    );
    return this.#running;
  }

  // A slower flush counts at once, a quicker one little by little.
  #learn(bytes, took) {
    this.#took = Math.max(took, this.#took / 2);
    if (bytes >= LARGE) this.#pace = Math.max(took / bytes, (this.#pace + took / bytes) / 2);
  }

  #onceSync() {
    const { taken, upTo } = this.#begin();
    try {
      if (taken) this.#store.commitSync(taken);
    } catch (error) {
      throw this.#failed(error, taken);
    }
    this.#done(upTo, taken !== null);
  }

  #take() {
    const taken = this.#tracker.take();
    if (!taken || !this.#store.needsImage || taken.full) return taken;
    if (!this.#engine.inWriteTransaction(this.path)) return { ...taken, full: this.#engine.exportFile(this.path) };
    if (!this.#store.wholeOnly) return taken;
    this.#tracker.restore(taken);
    return undefined;
  }

  #done(upTo, flushed = false) {
    this.#running = null;
    this.#stored = upTo;
    this.#underWaySince = null;
    this.#failure = null;
    this.#notBefore = 0;
    this.#retries = 0;
    if (flushed) {
      this.#lastFlush = Date.now();
      this.#flushes++;
    }
    this.#schedule();
  }

  #failed(error, taken) {
    this.#running = null;
    if (taken) this.#tracker.restore(taken);
    this.#since = this.#underWaySince ?? this.#since ?? Date.now();
    this.#underWaySince = null;
    this.#failure = error;
    this.#failures++;
    if (FINAL.has(error.code)) this.#final = error;
    this.#notBefore = Date.now() + Math.min(RETRY_MOST, Math.max(this.#interval, RETRY_LEAST) * 2 ** this.#retries++);
    this.#schedule();
    this.#onFailure?.();
    return error;
  }

  /** The failure of a flush that nobody waited for, once; one that is final, or the store's own, always. null: all is well. */
  takeFailure() {
    const failure = this.#failure ?? this.#final ?? this.#store.failure;
    this.#failure = null;
    return failure;
  }

  /** Resolves when everything that was committed before the call is stored; rejects with the reason why it is not. */
  async flush() {
    if (this.#final) throw this.#final;
    if (this.#closed) throw problem('closed', 'the database is closed');
    if (!this.#tracker) return;
    const target = this.#seen;
    // What is under way was perhaps taken before; if it fails its pages come with the next one.
    if (this.#running) await this.#running.catch(() => {});
    while (this.#running && this.#stored < target) await this.#running.catch(() => {});
    if (this.#final) throw this.#final;
    if (this.#running) return; // another one took all of it since
    try {
      await this.#once();
    } catch (error) {
      this.#failure = null; // told here
      throw error;
    }
  }

  /** flush() without waiting, where the store is synchronous (files); elsewhere false. */
  flushNow() {
    if (!this.#store.commitSync) return false;
    if (this.#final) throw this.#final;
    if (!this.#tracker) return true;
    try {
      this.#onceSync();
    } catch (error) {
      this.#failure = null; // told here
      throw error;
    }
    return true;
  }

  // -- Followers

  #follow() {
    this.#stale = true;
    this.#catchUp();
  }

  // Puts the store's image into the file; a reader in the middle of a query is waited for.
  #catchUp() {
    if (!this.#stale || this.#closed) return true;
    try {
      if (this.#store.image) this.#engine.replaceFile(this.path, withoutWal(this.#store.image));
      this.#stale = false;
    } catch (error) {
      if (error.message !== 'busy') {
        this.#failure = error;
        this.#onFailure?.();
        return false;
      }
      setTimeout(() => this.#catchUp(), NOT_NOW);
    }
    return !this.#stale;
  }

  /** Makes a follower the writer; see the store's promote(). */
  async promote(options) {
    if (!this.readOnly) return;
    await this.#store.promote(options);
    while (!this.#catchUp()) await pause(NOT_NOW);
    if (!this.readOnly) return; // somebody else has asked for it, too
    this.#unfollow?.();
    this.#unfollow = null;
    this.#write(withoutWal(this.#store.image));
  }

  // -- Whole images

  /** The last committed state as a plain SQLite file. */
  export() { return this.#engine.exportFile(this.path); }

  /** Puts another image in the place of this one and stores it. */
  async replace(image) {
    if (this.readOnly) throw problem('readonly', 'a followed database cannot be replaced');
    this.#engine.replaceFile(this.path, withoutWal(image));
    this.#seen++;
    this.#since ??= Date.now();
    await this.flush();
  }

  /** Where it stands: the store's status, and sizes in bytes, times in ms. */
  status() {
    const oldest = this.#underWaySince ?? this.#since;
    const stored = this.#store.status();
    return {
      ...stored,
      readOnly: this.readOnly,
      capture: this.#capture.mode,
      captureReason: this.#capture.reason,
      interval: this.#interval,
      pendingCommits: this.#seen - this.#stored,
      pendingBytes: this.#tracker?.pendingBytes ?? 0,
      lag: oldest === null ? 0 : Date.now() - oldest,
      lastFlush: this.#lastFlush,
      flushing: this.#running ? Date.now() - this.#began : 0,
      flushTook: this.#took,
      flushes: this.#flushes,
      failures: this.#failures,
      failure: (this.#failure ?? this.#final)?.message ?? stored.failure,
      recovered: this.#store.recovered,
    };
  }

  /**
   * Stores what is open and lets the next writer in. When that fails for now (no room), the database stays open and the failure is raised,
   * unless `discard`. When it fails for good (fenced), it closes and raises.
   */
  async close({ discard = false } = {}) {
    if (this.#closed) return;
    this.#closing = true;
    let failure = null;
    if (!discard && this.#tracker) {
      const unsaved = this.#seen > this.#stored;
      try {
        if (!this.#final || unsaved) do await this.flush(); while (this.pending); // what was committed meanwhile, too
      } catch (error) {
        failure = error;
        if (!FINAL.has(error.code)) {
          this.#closing = false;
          this.#schedule();
          throw error;
        }
      }
    }
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#running?.catch(() => {});
    globalThis.document?.removeEventListener('visibilitychange', this.#onHidden);
    globalThis.document?.removeEventListener('freeze', this.#onLeave);
    globalThis.window?.removeEventListener?.('pagehide', this.#onLeave);
    this.#unfollow?.();
    this.#unsubscribe?.();
    this.#tracker?.stop();
    await this.#store.close();
    if (failure) throw failure;
  }
}
