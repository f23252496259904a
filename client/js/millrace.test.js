/** The client against a scripted server, and against a real intake and scorer where the environment names them. */

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { once } from 'node:events'
import { test } from 'node:test'

import { BadRequest, Millrace, NotOnPage, QueueFull, Refused, Unauthorised, Unavailable } from './millrace.js'

const items = ['a', 'b', 'c', 'd', 'e'].map((item_id, position) => ({ item_id, position, score: 0.5 }))
const page = { request_id: 'r1', user_id: 'u1', items, ts_ms: 5000, arm: 'model', notes: [] }

/** A server that answers by a script, then keeps all. `seen` has [path, lines]. */
async function scripted(script, use, options = {}) {
  const seen = []
  const server = createServer(async (request, response) => {
    let body = ''
    for await (const part of request) body += part
    const lines = body.trim().split('\n').filter(Boolean).map((line) => JSON.parse(line))
    seen.push([`${request.method} ${request.url}`, lines, request.headers])
    const [status, answer, headers] = script.shift() ?? [200, keeps(lines)]
    if (status === 0) return response.destroy()
    response.writeHead(status, { 'content-type': 'application/json', ...headers })
    response.end(typeof answer === 'string' ? answer : JSON.stringify(answer))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const at = `http://127.0.0.1:${server.address().port}`
  const shop = new Millrace({ intake: at, scorer: at, pauseMs: 1, batchMs: 1, patienceMs: 5000, ...options })
  try {
    await use(shop, seen)
  } finally {
    await shop.close(1).catch(() => {})
    server.closeAllConnections()
    server.close()
  }
}

const keeps = (lines) => ({
  kept: lines.length,
  duplicates: 0,
  refused: 0,
  verdicts: lines.map(() => ({ status: 'kept' })),
})
const events = (seen) => seen.filter(([path]) => path === 'POST /events')

test('positions are those of the answer, however a page was shown', async () => {
  for (const [shown, at, ids, offset, slots] of [
    [undefined, undefined, 'abcde', 0, undefined],
    [[0, 1, 2], undefined, 'abc', 0, undefined],
    [[2, 3], undefined, 'cd', 2, undefined],
    [[2, 0, 3], undefined, 'cad', 0, [2, 0, 3]],
    [[1, 2], 0, 'bc', 0, [1, 2]],
    [[items[3], items[1]], undefined, 'db', 0, [3, 1]],
  ]) {
    await scripted([], async (shop, seen) => {
      assert.equal(shop.exposure(page, { shown, at }), true)
      await shop.flush()
      const [[, [event]]] = events(seen)
      assert.deepEqual([event.items.join(''), event.offset, event.slots], [ids, offset, slots])
      assert.ok(event.event_id && event.ts_ms >= page.ts_ms && event.sent_ms)
    })
  }
})

test('mistakes are told at once', async () => {
  const shop = new Millrace({ queueSize: 1, batchMs: 1e6, scorer: 'http://127.0.0.1:1', intake: 'http://127.0.0.1:1' })
  assert.throws(() => shop.click(page, 'x'), NotOnPage)
  assert.throws(() => shop.exposure(page, { shown: [5] }), NotOnPage)
  assert.throws(() => shop.exposure(page, { shown: [1, 1] }), NotOnPage)
  assert.throws(() => shop.exposure(page, { shown: [{ item_id: 'z', position: 0 }] }), NotOnPage)
  assert.throws(() => shop.click({ ...page, ts_ms: 100_000 }, 'a', 39_999), BadRequest)
  assert.throws(() => new Millrace({ intake: 'localhost:8720' }), /intake 'localhost:8720' is no address/)
  assert.equal(shop.click({ ...page, request_id: null }, 'a'), false)
  assert.equal(shop.exposure(page, { shown: [] }), false)
  assert.equal(shop.click(page, items[2]), true)
  assert.throws(() => shop.click(page, 'a'), QueueFull)
  await assert.rejects(shop.close(1), /1 events are not kept yet/)
  assert.throws(() => shop.click(page, 'a'), /closed/)
})

test('what was not answered is sent again with the same ids, in order', async () => {
  const script = [[503, { error: 'away' }], [429, { error: 'full' }], [0], [200, 'no JSON'], [500, { error: 'bug' }]]
  await scripted(
    script,
    async (shop, seen) => {
      for (const item of 'abcde') shop.click(page, item)
      await shop.flush()
      const sent = events(seen).map(([, lines]) => lines.map((one) => one.item_id).join(''))
      assert.deepEqual(sent, ['ab', 'ab', 'ab', 'ab', 'ab', 'ab', 'cd', 'e'])
      const ids = events(seen).map(([, lines]) => lines[0].event_id)
      assert.equal(new Set(ids).size, 3)
      assert.equal(shop.waiting, 0)
    },
    { batchSize: 2 },
  )
})

test('a pause is no shorter than Retry-After', async () => {
  await scripted(
    [[429, { error: 'full' }, { 'retry-after': '9' }]],
    async (shop) => {
      shop.click(page, 'a')
      await assert.rejects(shop.flush(3000), /1 events are not kept yet .*429: full/)
      assert.equal(shop.waiting, 1)
    },
  )
})

test('refused events come back with their reasons', async () => {
  const told = []
  const verdicts = [{ status: 'kept' }, { status: 'refused', reason: 'seconds', detail: 'ts_ms 5' }]
  await scripted(
    [[200, { kept: 1, duplicates: 0, refused: 1, verdicts }]],
    async (shop) => {
      shop.click(page, 'a')
      shop.click(page, 'b')
      await shop.flush()
      assert.equal(shop.refusedTotal, 1)
      assert.deepEqual([shop.refused[0].message.item_id, shop.refused[0].reason], ['b', 'seconds'])
      assert.deepEqual(told, shop.refused)
    },
    { onRefused: (some) => told.push(...some) },
  )
})

test('events that can never be sent are given up, and flush says so', async () => {
  await scripted([[401, { error: 'no token' }]], async (shop) => {
    shop.click(page, 'a')
    await assert.rejects(shop.flush(), Unauthorised)
    assert.equal(shop.refused[0].reason, 'given-up')
    shop.click(page, 'b')
    await shop.flush()
  })
})

test('many items go in parts, and all refusals are named', async () => {
  await scripted([], async (shop, seen) => {
    const many = Array.from({ length: 2500 }, (_, n) => ({ item_id: n, attributes: {} }))
    assert.equal((await shop.putItems(many)).kept, 2500)
    assert.deepEqual(seen.map(([, lines]) => lines.length), [1000, 1000, 500])
  })
  const bad = { kept: 0, duplicates: 0, refused: 1, verdicts: [{ status: 'refused', reason: 'bad-value', detail: 'x' }] }
  await scripted([[422, bad]], async (shop) => {
    await assert.rejects(shop.putUsers([{ user_id: 1, attributes: {} }]), (error) => {
      assert.ok(error instanceof Refused)
      assert.equal(error.refusals[0].message.user_id, 1)
      return true
    })
  })
})

test('the token goes with each request, and the caller decides how long a page may take', async () => {
  await scripted(
    Array(3).fill([503, { error: 'not ready' }]),
    async (shop, seen) => {
      await assert.rejects(shop.recommend('u1'), Unavailable)
      assert.equal(seen.length, 1)
      assert.equal(seen[0][2].authorization, 'Bearer t0')
      assert.equal(await shop.ready(), false)
      shop.options.pageMs = 60_000
      assert.equal((await shop.recommend('u1')).user_id, 'u1')
    },
    { token: 't0', pageMs: 0 },
  )
})

const { MILLRACE_INTAKE: intake, MILLRACE_SCORER: scorer } = process.env

test('a real intake and scorer understand the client', { skip: !intake && 'none is named' }, async () => {
  const shop = new Millrace({ intake, scorer, pageMs: 30_000 })
  const receipt = await shop.putItems([
    { item_id: 'js-a', attributes: { category: 'shoes', price: 2.5 } },
    { item_id: 'js-a', changes: { price: 3 } },
  ])
  assert.deepEqual([receipt.kept, receipt.refused], [2, 0])
  await assert.rejects(shop.putItems([{ item_id: 'js-b', attributes: { price: '12,50' } }]), /bad-value: price '12,50'/)
  assert.equal((await shop.putUsers([{ user_id: 'js-u', attributes: {}, sessions: ['js-s'] }])).kept, 1)
  const found = await shop.recommend('js-u', { size: 3, session: 'js-s' })
  assert.deepEqual(found.items.map((one) => one.position), [0, 1, 2].slice(0, found.items.length))
  assert.ok(found.request_id && found.items.length)
  const copy = JSON.parse(JSON.stringify(found))
  assert.equal(shop.exposure(copy), true)
  for (const report of ['click', 'collect', 'cart', 'purchase']) assert.equal(shop[report](copy, found.items[0]), true)
  await shop.flush()
  assert.deepEqual([shop.waiting, shop.refusedTotal], [0, 0])
  const like = await shop.similar(found.items[0].item_id, { size: 2, user_id: 'js-u' })
  assert.ok(!like.items.some((one) => one.item_id === found.items[0].item_id))
  const nobodys = await shop.popular({ size: 2 })
  assert.deepEqual([nobodys.request_id, nobodys.user_id, shop.exposure(nobodys)], [null, null, false])
  assert.equal((await shop.item(found.items[0].item_id)).on_pages, true)
  await assert.rejects(shop.item('js-no-such'), BadRequest)
  await assert.rejects(shop.recommend('js-u', { size: -1 }), BadRequest)
  assert.equal((await shop.deleteItem('js-a/b é')).kept, 1)
  assert.equal((await shop.deleteUser('js-u')).kept, 1)
  await assert.rejects(shop.deleteUser('x'.repeat(201)), Refused)
  await shop.close()
})
