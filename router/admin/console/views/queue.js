// Who waits, and how waits ended.
import { call } from "../api.js";
import { make, meter, sync, table, tile } from "../dom.js";
import { count, percent, seconds } from "../format.js";

export function mount(root) {
  const tiles = make("div", "tiles");
  const waiting = table("Waiting now", [["Where", w => w.where, "left"], ["Priority", w => w.priority], ["Requests", w => count(w.requests)]], "Nobody waits.");
  const ends = table("How waits ended, since the start", [["Outcome", w => w[0], "left"], ["Requests", w => count(w[1])]], "Nobody has waited.");
  const wanted = table("KV memory that sessions in progress want", [["Replica", w => w[0], "left mono"], ["Share", w => meter(w[1], percent(w[1]), "cool")]], "The door does nothing: no replica tells its KV memory, or the queue is off.");
  const out = table("Overflow, out of the fleet", [
    ["Target", o => o.name, "left mono"],
    ["Spent today", o => meter(o.spent / o.budget, o.spent.toFixed(2) + " of " + o.budget.toFixed(2), "cool")],
    ["Breaker", o => make("span", o.breaker === "closed" ? "" : "bad", o.breaker.replace("_", " "))],
    ["Requests", o => count(Object.values(o.requests).reduce((sum, n) => sum + n, 0))],
    ["Failed", o => count(o.failed)],
    ["Why", o => Object.entries(o.requests).filter(w => w[1]).map(w => w[0] + " " + count(w[1])).join(", ") || "–", "left"],
  ], "No target is set (overflow).");
  root.append(tiles, waiting, out, ends, wanted);
  return async () => {
    const q = await call("/queue");
    sync(tiles, [
      tile("Waiting", count(q.waiting.reduce((sum, w) => sum + w.requests, 0)), "requests"),
      tile("Work waiting", seconds(q.work_seconds), "of a replica's prefill"),
      tile("Sessions", count(q.sessions_active), count(q.sessions_idle) + " idle"),
    ]);
    waiting.update(q.waiting.filter(w => w.requests));
    out.update(q.overflow);
    ends.update(Object.entries(q.outcomes));
    wanted.update(Object.entries(q.kv_wanted));
  };
}
