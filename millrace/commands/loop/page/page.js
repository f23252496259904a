"use strict";
// Polls /state.json and shows it. Nothing here computes a figure: the run gives all of them. What a run cannot have (an
// oracle without simulated shoppers, random pages where none are made) is left out, by name and in every chart.
const byId = (id) => document.getElementById(id);
const JSON_BODY = { "Content-Type": "application/json" }; // a body of any other type could be of a page of elsewhere
const dash = "–";
const known = (v) => v !== null && v !== undefined;
const fixed = (digits) => (v) => (v === null || v === undefined ? dash : v.toFixed(digits));
const whole = (v) => (v === null || v === undefined ? dash : (Math.round(v) + 0).toLocaleString("en"));
const percent = (v, exact) => (v === null || v === undefined ? dash : `${(v * 100).toFixed(exact ? 2 : 1)}%`);
const short = (v) => (v >= 10000 ? `${+(v / 1000).toPrecision(3)}k` : whole(v));
const milliseconds = (ms) => (ms === null || ms === undefined ? dash : `${Math.round(ms)} ms`);
const SHADES = ["model", "other", "oracle", "third"];
const plainSeconds = (v, exact) => (v === null || v === undefined ? dash : v.toFixed(exact ? 2 : 1));
const finer = (least) => (v, exact) => (v === null || v === undefined ? dash : v.toFixed(exact ? least + 1 : least));

let charts = null; // made at the first state, which says what there can be
const makeCharts = (simulated, control) => {
  const chart = (id, lines, options) => new Chart(byId(id), lines.filter((line) => (simulated || line.key !== "oracle_auc") && (control || !/_control$/.test(line.key))), options);
  return [
    chart("c-auc", [
      { key: "auc", name: "model", cls: "model" },
      { key: "baseline_auc", name: "the item's own click rate", cls: "other" },
      { key: "oracle_auc", name: "oracle, the best possible", cls: "oracle" },
    ], { format: finer(3), least: 0.05 }),
    chart("c-order", [
      { key: "page_auc", name: "model", cls: "model" },
      { key: "baseline_page_auc", name: "the item's own click rate", cls: "other" },
      { key: "page_auc_control", name: "model, random pages", cls: "oracle" },
      { key: "baseline_page_auc_control", name: "own click rate, random pages", cls: "third" },
    ], { format: finer(3), least: 0.05 }),
    chart("c-ctr", [
      { key: "ctr_model", name: "model pages", cls: "model" },
      { key: "ctr_control", name: "random pages", cls: "other" },
    ], { format: percent, zero: true, least: 0.02 }),
    chart("c-loss", [
      { key: "log_loss", name: "model pages", cls: "model" },
      { key: "log_loss_control", name: "random pages", cls: "other" },
    ], { format: finer(3), least: 0.02 }),
    chart("c-cal", [
      { key: "calibration", name: "model pages", cls: "model" },
      { key: "calibration_control", name: "random pages", cls: "other" },
    ], { format: finer(2), mark: 1, least: 0.2 }),
    chart("c-lag", [
      { key: "p50_s", name: "p50", cls: "model" },
      { key: "p99_s", name: "p99", cls: "other" },
    ], { format: plainSeconds, zero: true, least: 1 }),
    chart("c-fresh", [{ key: "freshness_s", name: "freshness", cls: "model" }], { format: plainSeconds, zero: true, least: 1 }),
  ];
};

// Text that stays is not written again: a screen reader would say it each second.
function put(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

// Rows of a table, each of cells with a text and a class.
function rows(id, list) {
  byId(id).tBodies[0].replaceChildren(...list.map((cells) => {
    const row = document.createElement("tr");
    for (const [text, cls] of cells) {
      const cell = document.createElement("td");
      cell.textContent = text;
      cell.className = cls;
      row.append(cell);
    }
    return row;
  }));
}

// The two answers. A dot runs along the way of a click whenever clicks have come through.
function answers(learns, fast) {
  put("learns-value", learns.value);
  put("learns-says", learns.says);
  put("fast-value", fast.value);
  put("fast-says", fast.says);
  const there = fast.stages.some((stage) => known(stage.ms)), way = byId("way");
  way.hidden = byId("stages").hidden = !there;
  if (!way.children.length) way.append(...fast.stages.map((_, i) => Object.assign(document.createElement("span"), { className: SHADES[i] })), document.createElement("i"));
  fast.stages.forEach((stage, i) => { way.children[i].style.flexGrow = stage.ms ?? 0; });
  entries("stages", fast.stages.map((stage, i) => [stage.name, milliseconds(stage.ms), SHADES[i]]));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (there && !still && known(answers.clicks) && fast.clicks > answers.clicks) way.lastChild.animate([{ left: 0, opacity: 1 }, { left: "100%", opacity: 1 }], { duration: 900, easing: "linear" });
  answers.clicks = fast.clicks;
}

// Details of learning and serving.
function details(state) {
  const f = state.figures, three = fixed(3), random = (text) => (state.control && !text.startsWith(dash) ? `; random pages ${text}` : "");
  const order = (arm) => `${three(f[`page_auc${arm}`])}, nDCG@10 ${three(f[`ndcg${arm}`])}`;
  put("ctr-note", state.simulated ? "last 30 seconds" : `newest ${whole(f.served_rows)} settled exposures`);
  put("learning-note", known(f.auc) ? `rolling AUC ${three(f.auc)}, the item's own click rate ${three(f.baseline_auc)}${state.simulated ? `, the best possible ${three(f.oracle_auc)}` : ""}` : "");
  entries("quality", [
    [`rolling AUC of ${whole(f.served_rows)} exposures`, `${fixed(4)(f.auc)}${random(three(f.auc_control))}`], ["AUC of a page", order("") + random(order("_control"))],
    ["AUC of a page by the item's own click rate", three(f.baseline_page_auc) + random(three(f.baseline_page_auc_control))],
    ["log loss", three(f.log_loss) + random(three(f.log_loss_control))], ["calibration", fixed(2)(f.calibration) + random(fixed(2)(f.calibration_control))],
    ["learnt from", `${whole(f.trained)} samples, ${whole(f.samples_per_s)} come a second`],
  ]);
  put("serving-note", known(f.served_version) ? `version ${whole(f.served_version)}, ${whole(f.requests)} requests` : "");
  entries("served", [
    ["version", whole(f.served_version)], ["exposures a second", whole(f.exposures_per_s)], ["requests", whole(f.requests)], ["errors", whole(f.scorer_errors)],
    ["users not read", percent(f.unread_share, true)], ["users unknown", percent(f.unknown_share, true)],
  ]);
  entries("addresses", Object.entries(state.addresses));
}

const MOOD = { running: "good", starting: "", waiting: "", "gave up": "bad", stopped: "idle", "not started": "idle" };

function roles(list) {
  byId("role-list").replaceChildren(...list.map((role) => {
    const item = document.createElement("li");
    for (const [text, cls] of [[role.name], [role.state, `state ${MOOD[role.state] ?? ""}`], [role.memory], [role.restarts ? `${role.restarts} restarts` : ""], [role.says]]) {
      item.append(Object.assign(document.createElement("span"), { textContent: text, className: cls ?? "" }));
    }
    return item;
  }));
}

function accounts(f, dead) {
  // A click after its exposure was learnt as a negative is a correction.
  const known = f.corrections !== undefined;
  const clicked = known ? f.positives + f.corrections : undefined, others = known ? f.negatives - f.corrections : undefined;
  const parts = [["clicked", clicked, "model"], ["not clicked", others, "oracle"], ["pending", f.pending, "other"]];
  byId("bar").replaceChildren(...parts.map(([, value, cls]) => {
    const part = document.createElement("span");
    part.className = cls;
    part.style.flexGrow = value || 0;
    return part;
  }));
  const deadLetters = Object.entries(dead).filter(([, n]) => n > 0).map(([reason, n]) => `${reason} ${whole(n)}`).join(", ");
  const entriesOf = [["taken in", f.taken_in, ""], ...parts, ["duplicates dropped", f.duplicates_dropped, ""], ["dead letters", f.dead_letters, ""]];
  entries("accounts", entriesOf.map(([name, value, cls]) => [name, whole(value), cls, name === "dead letters" ? deadLetters : ""]));
}

// Terms and their figures: name, text, class and title of each. What is not known is left out.
function entries(id, list) {
  byId(id).replaceChildren(...list.filter(([, text]) => !text.startsWith(dash)).map(([name, text, cls, title]) => {
    const entry = document.createElement("div"), term = document.createElement("dt"), figure = document.createElement("dd");
    term.textContent = name;
    term.className = cls ?? "";
    figure.textContent = text;
    entry.title = title ?? "";
    entry.append(term, figure);
    return entry;
  }));
}

function gate(g, f) {
  byId("gate").hidden = !known(g.state);
  put("gate-says", g.state === "promoting" ? g.says : ""); // else the sentence above all says it
  const pill = byId("gate-state");
  pill.textContent = g.state ?? "";
  pill.className = `pill ${{ promoting: "good", blocked: "bad" }[g.state] ?? ""}`;
  const judged = known(f.heldout_auc) ? `${fixed(4)(f.heldout_auc)}, anchor ${fixed(4)(f.heldout_auc_anchor)}` : "unjudged: too few yet";
  entries("gate-figures", [
    ["version served", whole(f.served_version)], ["promoted last", whole(f.promoted_version)], ["in quarantine", whole(f.quarantine_rows)],
    ["held out", whole(f.held_out)], ["rollbacks", whole(f.rollbacks)], ["AUC on held-out pages", judged],
  ]);
  byId("history").replaceChildren(...[...g.history].reverse().map((one) => {
    const item = document.createElement("li"), time = document.createElement("time");
    time.textContent = clockOf(one.ms);
    const rows = known(one.rows) && one.rows ? ` ${whole(one.rows)} rows` : "";
    item.append(time, `${one.what}${rows}${one.why ? `: ${one.why}` : ""}${one.by ? `, by ${one.by}` : ""}`);
    item.className = /^(refused|went back|held)/.test(one.what) ? "bad" : "";
    return item;
  }));
  byId("unseen").replaceChildren(...g.unseen.map((line) => {
    const item = document.createElement("li");
    item.textContent = line;
    return item;
  }));
  rows("verdicts", g.verdicts.map((one) => [[one.check, ""], [whole(one.passed), "n"], [whole(one.refused), one.refused ? "n bad" : "n"], [whole(one.observed), "n"], [whole(one.unjudged), "n"]]));
}

// What each arm earns, as the archive counts it. Nothing is said of an arm with too few users.
function arms(list) {
  byId("arms-card").hidden = !list.length;
  if (!list.length) return;
  put("arms-more", `more than ${list[0].arm}`);
  const n = fixed(3), band = (r, of) => known(r[`${of}_low`]) ? `${n(r[`${of}_estimate`])} (${n(r[`${of}_low`])} to ${n(r[`${of}_high`])})` : dash;
  const early = (r) => known(r.early_click_rate) ? `${percent(r.early_click_rate)} of ${whole(r.early_rows)}` : dash;
  const since = (ms) => (ms ? new Date(ms).toISOString().slice(0, 16).replace("T", " ") : dash);
  rows("arms", list.map((r) => [[r.outcome, ""], [r.made_by ? `${r.arm}: ${r.made_by}` : r.arm, ""], [whole(r.users), "n"], [band(r, "mean"), "n"], [band(r, "more"), "n"], [since(r.since_ms), ""], [early(r), "n"]]));
}

// What the model says of purchases and the like, judged as they are told.
function outcomes(list) {
  byId("outcomes-card").hidden = !list.length;
  rows("outcomes", list.map((r) => [[r.outcome, ""], [whole(r.rows), "n"], [fixed(4)(r.auc), "n"], [fixed(4)(r.log_loss), "n"], [fixed(2)(r.calibration), "n"]]));
}

function show(state) {
  const f = state.figures;
  clockOf.offset = state.simulated ? 8 * 3600000 : 0; // the simulated shop's own time is UTC+8
  put("clock", f.event_ms ? clockOf(f.event_ms, true) : "");
  put("speed", state.simulated ? `shop time, ${state.speed} times as fast` : "UTC");
  put("stands", state.stands.says);
  byId("stands").className = `stands ${state.stands.mood}`;
  put("elapsed", state.elapsed_s ? `${Math.round(state.elapsed_s)} s${state.since ? `; figures ${state.since}` : ""}` : "");
  const pill = byId("phase");
  pill.textContent = state.phase;
  pill.className = `pill ${{ running: "good", done: "good", failed: "bad" }[state.phase] ?? ""}`;
  answers(state.learns, state.fast);
  roles(state.roles);
  put("memory", state.memory.startsWith(dash) ? "" : `${state.memory} in all processes together`);
  accounts(f, state.dead_letters);
  details(state);
  put("awaited", state.awaited);
  watched.real = state.simulated;
  put("watch-note", state.simulated ? "click an item of a shopper's page: a real event, and the loop learns from it" : "click an item of a user's page: a what-if; no event is sent, nothing is learnt");
  gate(state.gate, f);
  arms(state.arms);
  outcomes(state.outcomes);
  byId("notes").replaceChildren(...state.notes.slice(1).map((note) => {
    const line = document.createElement("li");
    line.textContent = note;
    return line;
  }));
  const columns = { ...state.series };
  const inSeconds = (list) => list.map((v) => (v === null ? null : v / 1000));
  columns.p50_s = inSeconds(columns.click_to_served_p50_ms);
  columns.p99_s = inSeconds(columns.click_to_served_p99_ms);
  charts ??= makeCharts(state.simulated, state.control);
  for (const chart of charts) chart.show(columns);
}

// A person's command goes to the learner with the person's token. It is answered when it is durable, with what was done.
byId("commands").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = event.submitter.value, version = byId("version").value, buttons = event.target.querySelectorAll("button");
  const body = name === "rollback" && version ? { version: Number(version) } : {};
  const say = (text, cls = "") => { put("answer", text); byId("answer").className = cls; };
  say(`${name}: the learner is asked`);
  for (const button of buttons) button.disabled = true;
  try {
    const answer = await fetch(`model/${name}`, { method: "POST", headers: { ...JSON_BODY, Authorization: `Bearer ${byId("token").value}` }, body: JSON.stringify(body) });
    const said = await answer.json();
    say(answer.ok ? `${name}: done. ${Object.entries(said).map(([key, value]) => `${key.replace(/_/g, " ")} ${value}`).join(", ")}` : `${name}: ${said.error}`, answer.ok ? "" : "bad");
  } catch (error) {
    say(`${name}: no answer (${error.message}); look at the decisions below`, "bad");
  }
  for (const button of buttons) button.disabled = false;
  event.submitter.focus();
});

// -- Watch a page change: a page with its reasons, of which an item is clicked.
const watched = { user: "", page: null, titles: {}, real: false, clicks: 0 }; // real: a click is an event, in a demo

async function ask(path, body) {
  const token = byId("reader").value;
  const answer = await fetch(path, { method: "POST", headers: { ...JSON_BODY, ...(token ? { Authorization: `Bearer ${token}` } : {}) }, body: JSON.stringify(body) });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}
const tell = (text, cls = "") => { put("explained", text); byId("explained").className = cls; };
const order = (page) => page.items.map((one) => one.item_id);
const signed = (v) => (known(v) ? `${v > 0 ? "+" : ""}${fixed(2)(v)}` : dash);

// Of an item's inputs the one whose effect changed most. Only the strongest are told: one that is not is at most as strong as the last that is.
function change(before, after) {
  const effects = (one) => new Map((one.reasons ?? []).map((reason) => [reason.input, reason.effect]));
  const [was, is] = [effects(before), effects(after)], least = (of) => Math.min(...[...of.values()].map(Math.abs));
  const by = (a, b, of) => (known(a) && known(b) ? Math.abs(b - a) : Math.abs(a ?? b) - (of.size < 3 ? 0 : least(of)));
  const all = [...new Set([...was.keys(), ...is.keys()])].map((input) => ({ input, a: was.get(input), b: is.get(input) }));
  const [most] = all.map((one) => ({ ...one, by: by(one.a, one.b, known(one.a) ? is : was) })).sort((x, y) => y.by - x.by);
  return most && most.by >= 0.005 ? `${most.input} ${signed(most.a)} → ${signed(most.b)}` : "nothing of it: others moved";
}

// The page in the table, beside the one before the click.
function watch(page, before, clicked) {
  watched.page = page;
  byId("why").hidden = !page.items.length;
  byId("reasons").className = before ? "after" : "";
  const why = (one) => (one.reasons ?? []).map((reason) => `${reason.input} ${signed(reason.effect)}`).join(", ");
  const lines = page.items.map((one, place) => {
    const at = before ? order(before).indexOf(one.item_id) : place;
    const moved = at < 0 ? "new" : at === place ? "" : `${at > place ? "▲" : "▼"} from ${at}`;
    return { one, moved, cells: [[one.position, "n"], ["", ""], [moved, "moved"], [at < 0 ? why(one) : moved ? change(before.items[at], one) : "", "moved"], [why(one), ""], [fixed(4)(one.score), "n"], [one.source ?? dash, ""], [one.item_id, ""]] };
  });
  rows("reasons", lines.map((line) => line.cells));
  [...byId("reasons").tBodies[0].rows].forEach((row, place) => {
    const { one, moved } = lines[place], button = Object.assign(document.createElement("button"), { type: "button", value: `item-${one.item_id}`, textContent: watched.titles[one.item_id] ?? one.item_id });
    button.addEventListener("click", () => click(one.item_id));
    row.cells[1].append(button);
    if (one.item_id === clicked && document.activeElement === document.body) button.focus({ preventScroll: true }); // as before the click
    row.className = one.item_id === clicked ? "clicked" : moved ? "changed" : "";
  });
}

async function named(page, ...others) {
  const lacking = page.items.filter((one) => !(one.item_id in watched.titles)).map((one) => one.item_id);
  if (!lacking.length) return;
  const told = await fetch("titles", { method: "POST", headers: JSON_BODY, body: JSON.stringify(lacking) });
  if (told.ok) Object.assign(watched.titles, await told.json());
  if (watched.page === page) watch(page, ...others);
}

byId("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    watched.user = byId("user").value;
    const page = await ask("recommend", { user_id: watched.user, size: 10, explain: true, if_clicked: [] });
    watch(page);
    tell([`arm ${page.arm}, version ${page.model_version}, ${page.items.length} items`, ...page.notes, page.arm === "model" ? "click an item" : "no click moves pages of this arm: choose another user"].join("; "));
    await named(page);
  } catch (error) {
    tell(`no page: ${error.message}`, "bad");
  }
});

// The page is asked for again at the click, so that nothing older moves it, then as if the click had been counted and nothing else had happened: a
// what-if. In a demo the click is sent, too, and the page is looked at a second later, when the others have clicked as well. All draw by the same chance.
async function click(item) {
  const user = watched.user;
  const asked = { user_id: user, size: 10, explain: true, request_id: `watch-${Date.now()}-${++watched.clicks}` };
  const buttons = [...byId("reasons").querySelectorAll("button")], name = watched.titles[item] ?? item;
  for (const button of buttons) button.disabled = true;
  tell(`${name} is clicked …`);
  try {
    const before = await ask("recommend", watched.real ? asked : { ...asked, if_clicked: [] }), at = order(before).indexOf(item);
    let page = before, sent = performance.now();
    const seconds = () => ((performance.now() - sent) / 1000).toFixed(1), changed = (one) => order(one).filter((id, place) => id !== order(before)[place]).length;
    if (at < 0 || before.arm !== "model") {
      watch(before);
      tell(at < 0 ? `${name} is on this page no longer, so it was not clicked; this is the page now` : "no click moves pages of this arm: choose another user");
    } else {
      const alone = page = await ask("recommend", { ...asked, if_clicked: [item], ts_ms: before.ts_ms });
      if (watched.real) {
        await ask("click", { request_id: before.request_id, user_id: user, ts_ms: before.ts_ms, items: order(before), position: at });
        sent = performance.now();
        do {
          await new Promise((done) => setTimeout(done, 1000));
          page = await ask("recommend", { ...asked, if_clicked: [] });
        } while (!changed(page) && seconds() < 5);
      }
      const gone = order(before).filter((one) => !order(page).includes(one)).map((one) => watched.titles[one] ?? one);
      const what = `${changed(page)} of ${page.items.length} places ${watched.real ? "changed" : "would change"}${gone.length ? `; gone: ${gone.join(" | ")}` : ""}`;
      tell(watched.real ? `${seconds()} s after the click on ${name}, ${what}. By this click alone: ${changed(alone)}; the others click too, and version ${before.model_version} became ${page.model_version}` : `If ${user} clicked ${name}, ${what}. No event was sent, nothing was learnt`);
      watch(page, before, item);
    }
    await named(page, page === before ? undefined : before, item);
  } catch (error) {
    for (const button of buttons) button.disabled = false;
    tell(`no click: ${error.message}`, "bad");
  }
}

// Users to choose from.
byId("explaining").addEventListener("toggle", async () => {
  if (!byId("explaining").open || byId("watchable").children.length) return;
  const told = await fetch("users.json"), users = told.ok ? await told.json() : [];
  byId("watchable").replaceChildren(...(users.length ? ["users who were here lately "] : []), ...users.flatMap((user) => {
    const button = Object.assign(document.createElement("button"), { textContent: user });
    button.addEventListener("click", () => { byId("user").value = user; });
    return [button];
  }));
});

async function poll() {
  try {
    const answer = await fetch("state.json", { cache: "no-store" });
    show(await answer.json());
  } catch {
    const pill = byId("phase");
    pill.textContent = "ended: the last state is shown";
    pill.className = "pill";
  }
  setTimeout(poll, 1000);
}
poll();
