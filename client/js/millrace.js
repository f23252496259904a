/**
 * Millrace for JavaScript: Node 20 and browsers, no dependencies. The same contract as the Python client's.
 *
 *   exposure, click, … ──► queue ──► batches, one after the other ──► intake: kept, duplicate, refused
 *                                       429, 503, no answer: the same again, later
 *
 * Ids are texts, or numbers that JavaScript holds exactly; 7 and "7" are the same. Times are Unix milliseconds.
 *
 * @typedef {string | number} Id
 * @typedef {string | number | boolean | null | (string | number)[]} Value
 * @typedef {{item_id: Id, attributes: Record<string, Value>, born_ms?: number, gone?: boolean, expires_ms?: number}} Item
 * @typedef {{item_id: Id, changes: Record<string, Value>, gone?: boolean}} ItemChange
 * @typedef {{user_id: Id, attributes: Record<string, Value>, sessions?: Id[]}} User
 * @typedef {{item_id: Id, position: number, score: number | null, source?: string, reasons?: object[]}} PlacedItem
 * @typedef {object} Page An answer of the scorer, with the user it was asked for. JSON keeps it whole.
 * @property {string | null} request_id null: made without the model; there is nothing to report about it
 * @property {Id | null} user_id
 * @property {PlacedItem[]} items best first
 * @property {number} ts_ms
 * @property {string} arm
 * @property {string[]} notes
 * @property {string} [cursor] of the next part of a list
 * @typedef {object} Asked What a request for a page may say; see docs/reference/http-api.md.
 * @property {number} [size]
 * @property {Id} [session] what the user was as a guest
 * @property {Record<string, Value>} [context]
 * @property {Id[]} [exclude]
 * @property {Record<string, unknown>} [only]
 * @property {Record<string, unknown>} [not]
 * @property {Record<string, number>} [caps]
 * @property {("bought" | "clicked" | "seen")[]} [hide]
 * @property {boolean} [explain]
 * @property {number} [list]
 * @property {string} [cursor]
 * @property {object} [rerank]
 * @typedef {{status: "kept" | "duplicate" | "refused", reason?: string, detail?: string, note?: string}} Verdict
 * @typedef {{kept: number, duplicates: number, refused: number, verdicts: Verdict[]}} Receipt
 * @typedef {{message: object, reason: string, detail: string}} Refusal
 * @typedef {object} Options
 * @property {string} [intake] address
 * @property {string} [scorer] address
 * @property {string} [token] for Authorization: Bearer
 * @property {number} [batchSize] events of a request, at most 1,000
 * @property {number} [batchMs] how long an event waits for others
 * @property {number} [queueSize] events that may wait; beyond it, reports throw QueueFull
 * @property {number} [patienceMs] how long items, users and flush() are tried
 * @property {number} [pageMs] how long a page is tried
 * @property {number} [timeoutMs] of one HTTP request
 * @property {number} [pauseMs] before the first retry; doubled each time, up to ten seconds
 * @property {(refusals: Refusal[]) => void} [onRefused]
 */

const MOST_LINES = 1000
const MOST_BYTES = 4 << 20
const LONGEST_PAUSE_MS = 10_000
const CLOCKS_MS = 60_000 // a given time may be so much before its page: clocks differ
const KEPT_REFUSALS = 1000
const SEARCHED = 'give positions from 0, or items of page.items'

/** Any failure. Its message is one line with the value and the remedy. */
export class MillraceError extends Error {
  /** @param {string} problem @param {string} [remedy] */
  constructor(problem, remedy) {
    super(remedy ? `${problem}: ${remedy}` : problem)
    this.name = this.constructor.name
  }
}
/** The request is wrong. Do not send it again. */
export class BadRequest extends MillraceError {}
/** No token, or an unknown one. */
export class Unauthorised extends MillraceError {}
/** An item that the page does not have, or one named twice. */
export class NotOnPage extends MillraceError {}
/** Too many events wait, or the client is closed. */
export class QueueFull extends MillraceError {}
/** No answer in time, or the server cannot give one now (429, 503). */
export class Unavailable extends MillraceError {
  /** @param {string} problem @param {number} [afterMs] what Retry-After asks for */
  constructor(problem, afterMs = 0) {
    super(problem)
    this.afterMs = afterMs
  }
}
/** Some items or users were refused; all others are kept. */
export class Refused extends MillraceError {
  /** @param {Refusal[]} refusals */
  constructor(refusals) {
    super(`${refusals.length} messages were refused, the first: ${refusals[0].reason}: ${refusals[0].detail}`)
    this.refusals = refusals
  }
}

export class Millrace {
  /** @param {Options} [options] */
  constructor(options = {}) {
    this.options = {
      intake: 'http://127.0.0.1:8720',
      scorer: 'http://127.0.0.1:8700',
      batchSize: 100,
      batchMs: 200,
      queueSize: 10_000,
      patienceMs: 30_000,
      pageMs: 2000,
      timeoutMs: 15_000,
      pauseMs: 100,
      ...options,
    }
    for (const name of /** @type {const} */ (['intake', 'scorer'])) {
      if (!/^https?:\/\/./.test(this.options[name])) {
        throw new BadRequest(`${name} '${this.options[name]}' is no address`, "give a URL, as 'http://127.0.0.1:8720'")
      }
    }
    /** @type {Refusal[]} the newest 1,000 */
    this.refused = []
    this.refusedTotal = 0
    /** @type {object[]} */
    this._queue = []
    this._underWay = 0
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this._timer = undefined
    /** @type {Promise<void> | undefined} the sender, while it works */
    this._sending = undefined
    /** @type {MillraceError | undefined} events were given up since the last flush */
    this._failed = undefined
    this._latest = ''
    this._closed = new AbortController()
  }

  // -- the catalogue and the people: at once

  /** Sends new items, and changes of some; resolves when they are kept. @param {Iterable<Item | ItemChange>} items @returns {Promise<Receipt>} */
  putItems(items) {
    return this._putAll('items', [...items])
  }

  /** @param {Iterable<User>} users @returns {Promise<Receipt>} */
  putUsers(users) {
    return this._putAll('users', [...users])
  }

  /** @param {Id} id @returns {Promise<Receipt>} */
  deleteItem(id) {
    return this._delete('items', id)
  }

  /** @param {Id} id @returns {Promise<Receipt>} */
  deleteUser(id) {
    return this._delete('users', id)
  }

  // -- pages

  /** A page for a user. @param {Id} user @param {Asked} [asked] @returns {Promise<Page>} */
  recommend(user, asked = {}) {
    return this._page('recommend', { ...asked, user_id: user })
  }

  /** Items like one item; with `user_id`, events of the page can be reported. @param {Id} item @param {Asked & {user_id?: Id}} [asked] @returns {Promise<Page>} */
  similar(item, asked = {}) {
    return this._page('similar', { ...asked, item_id: item })
  }

  /** The items with the highest click rates; with `only`, of a group. @param {Asked & {user_id?: Id}} [asked] @returns {Promise<Page>} */
  popular(asked = {}) {
    return this._page('popular', asked)
  }

  /** What the scorer knows of an item. @param {Id} id @returns {Promise<any>} */
  item(id) {
    return this._patiently(() => this._ask('GET', `${this.options.scorer}/items/${encodeURIComponent(id)}`), this.options.pageMs)
  }

  /** Whether intake and scorer are ready. @returns {Promise<boolean>} */
  async ready() {
    const found = [this.options.intake, this.options.scorer].map((at) => this._ask('GET', `${at}/readyz`))
    return (await Promise.allSettled(found)).every((one) => one.status === 'fulfilled')
  }

  // -- events: queued

  /**
   * Reports which items of a page were seen.
   * @param {Page} page
   * @param {{shown?: (number | PlacedItem)[], at?: number, tsMs?: number}} [seen] `shown`: positions or items, in the
   *   order shown; default: all, as answered. `at`: slot of the first one. `tsMs`: when it was; default: now
   * @returns {boolean} whether there was something to report
   */
  exposure(page, { shown, at, tsMs } = {}) {
    const placed = shown === undefined ? page.items : shown.map((one) => placeOf(page, one))
    const places = placed.map((one) => one.position)
    const twice = places.find((place, n) => places.indexOf(place) < n)
    if (twice !== undefined) throw new NotOnPage(`position ${twice} is named twice`, 'name each item shown once')
    if (page.request_id === null || page.user_id === null || !placed.length) return false
    const inPlace = places.every((place, n) => place === places[0] + n)
    const offset = at ?? (inPlace ? places[0] : 0)
    const slots = inPlace && offset === places[0] ? {} : { slots: places }
    return this._report(page, { type: 'exposure', items: placed.map((one) => one.item_id), offset, ...slots }, tsMs)
  }

  /** @param {Page} page @param {PlacedItem | Id} item @param {number} [tsMs] @returns {boolean} */
  click(page, item, tsMs) {
    return this._act('click', page, item, tsMs)
  }

  /** @param {Page} page @param {PlacedItem | Id} item @param {number} [tsMs] @returns {boolean} */
  collect(page, item, tsMs) {
    return this._act('collect', page, item, tsMs)
  }

  /** @param {Page} page @param {PlacedItem | Id} item @param {number} [tsMs] @returns {boolean} */
  cart(page, item, tsMs) {
    return this._act('cart', page, item, tsMs)
  }

  /** @param {Page} page @param {PlacedItem | Id} item @param {number} [tsMs] @returns {boolean} */
  purchase(page, item, tsMs) {
    return this._act('purchase', page, item, tsMs)
  }

  /** Events that are not yet known to be kept. */
  get waiting() {
    return this._queue.length + this._underWay
  }

  /**
   * Resolves when every event so far is kept, or refused and in `refused`.
   * @param {number} [timeoutMs]
   * @throws {MillraceError} some are not kept yet (they stay in the queue), or were given up since the last flush
   */
  async flush(timeoutMs = this.options.patienceMs) {
    this._wake()
    let timer
    const late = new Promise((resolve) => (timer = setTimeout(resolve, timeoutMs)))
    await Promise.race([this._sending, late])
    clearTimeout(timer)
    const failed = this._failed
    this._failed = undefined
    if (this.waiting) throw new Unavailable(`${this.waiting} events are not kept yet (${this._latest || 'slow'})`)
    if (failed) throw failed
  }

  /** Flushes and ends the sender; events that are left then are lost. @param {number} [timeoutMs] */
  async close(timeoutMs = 5000) {
    if (this._closed.signal.aborted) return
    try {
      await this.flush(timeoutMs)
    } finally {
      this._closed.abort()
      clearTimeout(this._timer)
      await this._sending
    }
  }

  // -- within

  /** @param {string} type @param {Page} page @param {PlacedItem | Id} item @param {number} [tsMs] */
  _act(type, page, item, tsMs) {
    const id = typeof item === 'object' ? item.item_id : item
    const found = page.items.find((one) => String(one.item_id) === String(id))
    if (!found) throw new NotOnPage(`item '${id}' is not on the page ${page.request_id}`, SEARCHED)
    if (page.request_id === null || page.user_id === null) return false
    return this._report(page, { type, item_id: found.item_id, position: found.position }, tsMs)
  }

  /** @param {Page} page @param {object} event @param {number} [tsMs] */
  _report(page, event, tsMs) {
    if (tsMs !== undefined && tsMs < page.ts_ms - CLOCKS_MS) {
      throw new BadRequest(`tsMs ${tsMs} is before its page, which was made at ${page.ts_ms}`, 'give Unix milliseconds')
    }
    if (this._closed.signal.aborted) throw new QueueFull('the client is closed', 'make a new one')
    if (this.waiting >= this.options.queueSize) throw new QueueFull(`${this.waiting} events wait`, 'report more slowly')
    const now = Date.now()
    const common = { event_id: crypto.randomUUID(), request_id: page.request_id, user_id: page.user_id }
    this._queue.push({ ...event, ...common, ts_ms: Math.max(tsMs ?? now, page.ts_ms), sent_ms: now })
    if (this._queue.length >= this.options.batchSize) this._wake()
    else this._timer ??= setTimeout(() => this._wake(), this.options.batchMs)
    return true
  }

  _wake() {
    clearTimeout(this._timer)
    this._timer = undefined
    this._sending ??= this._send().finally(() => (this._sending = undefined))
  }

  /** Batches one after the other, so events stay in order. */
  async _send() {
    while (this._queue.length && !this._closed.signal.aborted) {
      const [batch] = parts(this._queue, Math.min(this.options.batchSize, MOST_LINES))
      this._queue.splice(0, batch.length)
      this._underWay = batch.length
      try {
        const receipt = await this._patiently(() => this._post('events', batch), Infinity)
        this._refuse(refusalsOf(batch, receipt))
      } catch (error) {
        if (!this._closed.signal.aborted) {
          this._failed = /** @type {MillraceError} */ (error)
          this._refuse(batch.map((message) => ({ message, reason: 'given-up', detail: String(error) })))
        }
      }
      this._underWay = 0
    }
  }

  /** @param {Refusal[]} refusals */
  _refuse(refusals) {
    if (!refusals.length) return
    this.refusedTotal += refusals.length
    this.refused = [...this.refused, ...refusals].slice(-KEPT_REFUSALS)
    try {
      this.options.onRefused?.(refusals)
    } catch (error) {
      console.error('millrace: onRefused failed:', error)
    }
  }

  /** @param {string} kind @param {object[]} messages @returns {Promise<Receipt>} */
  async _putAll(kind, messages) {
    const whole = { kept: 0, duplicates: 0, refused: 0, verdicts: /** @type {Verdict[]} */ ([]) }
    const refused = []
    for (const part of parts(messages, MOST_LINES)) {
      const receipt = await this._patiently(() => this._post(kind, part))
      refused.push(...refusalsOf(part, receipt))
      for (const name of /** @type {const} */ (['kept', 'duplicates', 'refused'])) whole[name] += receipt[name]
      whole.verdicts.push(...receipt.verdicts)
    }
    if (refused.length) throw new Refused(refused)
    return whole
  }

  /** @param {string} kind @param {Id} id @returns {Promise<Receipt>} */
  async _delete(kind, id) {
    const url = `${this.options.intake}/${kind}/${encodeURIComponent(id)}`
    const receipt = await this._patiently(() => this._ask('DELETE', url))
    if (receipt.refused) throw new Refused(refusalsOf([{ id }], receipt))
    return receipt
  }

  /** @param {string} path @param {object} asked @returns {Promise<Page>} */
  async _page(path, asked) {
    const url = `${this.options.scorer}/${path}`
    const page = await this._patiently(() => this._ask('POST', url, JSON.stringify(asked)), this.options.pageMs)
    return { ...page, user_id: /** @type {any} */ (asked).user_id ?? null }
  }

  /** @param {string} kind @param {object[]} part @returns {Promise<Receipt>} */
  _post(kind, part) {
    const body = part.map((one) => JSON.stringify(one)).join('\n') + '\n'
    return this._ask('POST', `${this.options.intake}/${kind}`, body, 'application/x-ndjson')
  }

  /**
   * Tries until there is an answer or no time: pauses double, have jitter, and are no shorter than Retry-After.
   * @template T @param {() => Promise<T>} call @param {number} [withinMs] @returns {Promise<T>}
   */
  async _patiently(call, withinMs = this.options.patienceMs) {
    const until = Date.now() + withinMs
    for (let pause = this.options.pauseMs; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        const answer = await call()
        this._latest = ''
        return answer
      } catch (error) {
        if (!(error instanceof Unavailable)) throw error
        this._latest = error.message
        const ms = Math.max(pause / 2, error.afterMs) + (Math.random() * pause) / 2
        if (Date.now() + ms >= until || this._closed.signal.aborted) throw error
        await asleep(ms, this._closed.signal)
      }
    }
  }

  /** @param {string} method @param {string} url @param {string} [body] @param {string} [type] @returns {Promise<any>} */
  async _ask(method, url, body, type = 'application/json') {
    const headers = {
      ...(body === undefined ? {} : { 'content-type': type }),
      ...(this.options.token === undefined ? {} : { authorization: `Bearer ${this.options.token}` }),
    }
    const signal = AbortSignal.any([AbortSignal.timeout(this.options.timeoutMs), this._closed.signal])
    let answer, found
    try {
      answer = await fetch(url, { method, body, headers, signal })
      found = JSON.parse(await answer.text())
    } catch (error) {
      const cause = /** @type {any} */ (error).cause?.code ?? /** @type {any} */ (error).name
      throw new Unavailable(`${method} ${url}: ${answer ? `${answer.status} and ` : ''}no answer (${cause})`)
    }
    if (answer.ok || (answer.status === 422 && found.verdicts)) return found
    const line = `${method} ${url}: ${answer.status}: ${found.error ?? 'no reason'}`
    if (answer.status === 401) throw new Unauthorised(line)
    const again = answer.status >= 500 || answer.status === 429 || answer.status === 408
    if (again) throw new Unavailable(line, 1000 * (Number(answer.headers.get('retry-after')) || 0))
    throw new BadRequest(line)
  }
}

/** @param {Page} page @param {number | PlacedItem} one @returns {PlacedItem} */
function placeOf(page, one) {
  const found = page.items[typeof one === 'object' ? one.position : one]
  if (!found || (typeof one === 'object' && String(found.item_id) !== String(one.item_id))) {
    throw new NotOnPage(`${JSON.stringify(one)} is not on the page, which has ${page.items.length} items`, SEARCHED)
  }
  return found
}

/** @param {object[]} messages @param {Receipt} receipt @returns {Refusal[]} */
function refusalsOf(messages, receipt) {
  return receipt.verdicts.flatMap((verdict, n) =>
    verdict.status === 'refused'
      ? [{ message: messages[n], reason: verdict.reason ?? '', detail: verdict.detail ?? '' }]
      : [],
  )
}

/** Messages in requests that the intake takes. @param {object[]} messages @param {number} most @returns {Generator<object[]>} */
function* parts(messages, most) {
  let part = /** @type {object[]} */ ([])
  let bytes = 0
  for (const one of messages) {
    const size = 3 * JSON.stringify(one).length + 1 // a character has at most three bytes
    if (part.length && (part.length >= most || bytes + size > MOST_BYTES)) {
      yield part
      part = []
      bytes = 0
    }
    part.push(one)
    bytes += size
  }
  if (part.length) yield part
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
function asleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true })
  })
}
