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
const seconds = (ms) => (ms === null || ms === undefined ? dash : `${(ms / 1000).toFixed(2)} s`);
const milliseconds = (ms) => (ms === null || ms === undefined ? dash : `${Math.round(ms)} ms`);
const STAGES = ["joined", "learnt", "published", "applied"]; // of a click on its way to the weights that serve
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
    chart("c-rate", [
      { key: "exposures_per_s", name: "exposures", cls: "model" },
      { key: "samples_per_s", name: "samples", cls: "third" },
    ], { format: short, zero: true, least: 10 }),
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

function tiles(f, simulated, control, settles) {
  put("t-auc", fixed(4)(f.auc));
  put("t-auc-note", known(f.auc) || known(f.oracle_auc) ? `${simulated ? `oracle ${fixed(3)(f.oracle_auc)}, ` : ""}item's rate ${fixed(3)(f.baseline_auc)}${control ? `, random pages ${fixed(3)(f.auc_control)}` : ""}` : `no label is settled yet${settles >= 60 ? `: it takes ${+(settles / 60).toFixed(1)} minutes of traffic` : ""}`);
  put("auc-note", `scores that pages were served with, against settled labels${known(f.served_rows) ? `; the newest ${whole(f.served_rows)} exposures` : ""}`);
  const order = (arm) => `nDCG@10 ${fixed(3)(f[`ndcg${arm}`])}, item's rate ${fixed(3)(f[`baseline_page_auc${arm}`])}`;
  put("t-order", fixed(4)(f.page_auc));
  put("t-order-note", known(f.page_auc) || known(f.page_auc_control) ? `${order("")}${control ? `; random pages ${fixed(4)(f.page_auc_control)}, ${order("_control")}` : ""}` : "no page with a click and without is settled yet");
  put("t-ctr", percent(f.ctr_model, true));
  const lift = f.ctr_model && f.ctr_control ? `, ${(f.ctr_model / f.ctr_control).toFixed(2)} times as many` : "";
  put("t-ctr-note", control ? `random pages ${percent(f.ctr_control, true)}${lift}` : "no random pages to compare with");
  put("ctr-note", simulated ? "last 30 seconds" : `newest ${whole(f.served_rows)} settled exposures`);
  put("t-lag", seconds(f.click_to_served_p50_ms));
  put("t-lag-note", `median; 99 of 100 within ${seconds(f.click_to_served_p99_ms)}`);
  put("lag-note", STAGES.map((stage) => `${stage} ${milliseconds(f[`click_stage_ms_${stage}`])}`).join(", "));
  put("t-rate", f.exposures_per_s === null || f.exposures_per_s === undefined ? dash : `${whole(f.exposures_per_s)}/s`);
  put("t-rate-note", `exposures; ${whole(f.samples_per_s)} samples/s`);
  put("t-version", whole(f.served_version));
  put("t-version-note", `newest learnt from ${f.freshness_s === null || f.freshness_s === undefined ? dash : `${f.freshness_s.toFixed(1)} s`} ago`);
}

const MOOD = { running: "good", starting: "", waiting: "", "gave up": "bad", stopped: "idle", "not started": "idle" };

function roles(list) {
  rows("roles", list.map((role) => [[role.name, ""], [role.state, `state ${MOOD[role.state] ?? ""}`], [role.restarts || "", "n"], [role.memory, "n"], [role.says, ""]]));
}

function accounts(f, dead, simulated) {
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
  const entries = [[simulated ? "sent" : "taken in", f.exposures, ""], ...parts, ["duplicates dropped", f.duplicates_dropped, ""], ["dead letters", f.dead_letters, ""]];
  byId("accounts").replaceChildren(...entries.map(([name, value, cls]) => {
    const entry = document.createElement("div"), term = document.createElement("dt"), figure = document.createElement("dd");
    term.textContent = name;
    term.className = cls;
    figure.textContent = whole(value);
    if (name === "dead letters" && deadLetters) entry.title = deadLetters;
    entry.append(term, figure);
    return entry;
  }));
}

function pairs(id, entries) {
  byId(id).replaceChildren(...entries.map(([name, text]) => {
    const entry = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
    term.textContent = name;
    value.textContent = text;
    entry.append(term, value);
    return entry;
  }));
}

function places(addresses) {
  byId("places").hidden = !Object.keys(addresses).length;
  pairs("addresses", Object.entries(addresses));
}

function gate(g, f) {
  byId("gate").hidden = !known(g.state);
  put("gate-says", g.says);
  const pill = byId("gate-state");
  pill.textContent = g.state ?? "";
  pill.className = `pill ${{ promoting: "good", blocked: "bad" }[g.state] ?? ""}`;
  const judged = known(f.heldout_auc) ? `${fixed(4)(f.heldout_auc)}, anchor ${fixed(4)(f.heldout_auc_anchor)}` : "unjudged: too few yet";
  pairs("gate-figures", [
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
  put("clock", f.event_ms ? clockOf(f.event_ms, true) : dash);
  put("speed", state.simulated ? `shop time, ${state.speed} times as fast` : "UTC");
  put("stands", state.stands.says);
  byId("stands").className = `stands ${state.stands.mood}`;
  put("elapsed", state.elapsed_s ? `${Math.round(state.elapsed_s)} s${state.since ? `; figures ${state.since}` : ""}` : "");
  const pill = byId("phase");
  pill.textContent = state.phase;
  pill.className = `pill ${{ running: "good", done: "good", failed: "bad" }[state.phase] ?? ""}`;
  tiles(f, state.simulated, state.control, state.settles_s);
  roles(state.roles);
  put("memory", `${state.memory} in all processes together`);
  accounts(f, state.dead_letters, state.simulated);
  places(state.addresses);
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

// A page as its user would get it now, with the reasons of its first items.
byId("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = byId("reader").value, say = (text, cls = "") => { put("explained", text); byId("explained").className = cls; };
  try {
    const answer = await fetch("recommend", { method: "POST", headers: { ...JSON_BODY, ...(token ? { Authorization: `Bearer ${token}` } : {}) }, body: JSON.stringify({ user_id: byId("user").value, size: 10, explain: true }) });
    const page = await answer.json();
    byId("why").hidden = !answer.ok || !page.items.length;
    if (!answer.ok) return say(page.error, "bad");
    say([`arm ${page.arm}, version ${page.model_version}, ${page.items.length} items`, ...page.notes].join("; "));
    const why = (one) => (one.reasons ?? []).map((reason) => `${reason.input} ${reason.effect > 0 ? "+" : ""}${fixed(2)(reason.effect)}`).join(", ");
    rows("reasons", page.items.map((one) => [[one.position, "n"], [one.item_id, ""], [fixed(4)(one.score), "n"], [one.source ?? dash, ""], [why(one), ""]]));
  } catch (error) {
    say(`no answer (${error.message})`, "bad");
  }
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
