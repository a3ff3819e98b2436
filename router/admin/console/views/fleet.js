// The replicas, what they do and how well.
import { call } from "../api.js";
import { button, fields, make, meter, sync, table, tile } from "../dom.js";
import { count, percent, rate, seconds, short } from "../format.js";

function shade(r) {
  if (r.usable && r.breaker === "closed" && r.weight >= 1) return "good";
  return r.state === "unhealthy" || r.breaker === "open" ? "bad" : "wait";
}
function condition(r) {
  const said = [r.state];
  if (r.breaker !== "closed") said.push("breaker " + r.breaker.replace("_", " "));
  if (r.usable && r.weight < 1) said.push("slow start " + percent(r.weight));
  if (r.last_error) said.push(r.last_error);
  else if (r.metrics_missing) said.push(r.metrics_missing);
  return said.join(" · ");
}

export function mount(root, rest, asked) {
  const tiles = make("div", "tiles");
  const filter = fields([["text", "Filter by name, state, engine, role or model", "search", asked.get("text")]], () => update());
  filter.oninput = () => update();
  const problem = make("p", "bad");
  problem.setAttribute("role", "alert");
  const name = r => make("span", "", make("span", "dot " + shade(r)), make("span", "mono", r.name), make("small", "", condition(r)));
  const models = r => r.any_model ? "any" : r.models.slice(0, 2).join(", ") + (r.models.length > 2 ? ` +${r.models.length - 2}` : "") || "–";
  const ttft = r => make("span", "", seconds(r.ttft_p50), make("small", "", "p95 " + seconds(r.ttft_p95)));
  const hits = r => make("span", "", meter(r.hit_rate, percent(r.hit_rate)), make("small", "", "of " + percent(r.available_rate) + " available"));
  // Where no replica prefills for others, none has a role.
  let apart = false;
  const role = r => !apart ? "–" : r.role === "both" ? "prefill and decode" : r.role;
  const drained = r => r.state === "draining";
  const act = r => {
    // An engine's ranks are drained together, under the first one's name.
    if (r.rank) return "";
    const what = drained(r) ? "undrain" : "drain";
    const made = button(drained(r) ? "Undrain" : "Drain", r.name, async () => {
      try {
        await call("/replicas/" + r.name + "/" + what, undefined, true);
        problem.textContent = "";
      } catch (error) { problem.textContent = `${what} ${r.name}: ${error.message}`; }
      await update();
    });
    made.setAttribute("aria-label", made.textContent + " " + r.name);
    return made;
  };
  const list = table("Replicas", [
    ["Replica", name, "left wide"], ["Engine", r => r.engine || "–", "left"],
    ["Role", role, "left"], ["TTFT p50, 1 min", ttft], ["Requests/s", r => rate(r.request_rate)],
    ["Requests", r => count(r.requests)],
    ["Errors", r => make("span", r.error_share > 0 ? "bad" : "", count(r.errors))],
    ["Hit rate", hits], ["Hit rate, 5 min", r => percent(r.hit_rate_recent)], ["In flight", r => count(r.in_flight)],
    ["Queued tokens", r => short(r.queued_tokens)], ["Engine waits", r => count(r.engine_waiting)],
    ["Engine KV", r => meter(r.engine_kv_usage, percent(r.engine_kv_usage), "cool")],
    ["Cache", r => r.kv_cache_known ? short(r.kv_cache_tokens) : "unknown"], ["Models", models, "left"], ["Action", act],
  ], "No replica.");
  root.append(tiles, problem, filter, list);
  async function update() {
    const fleet = await call("/replicas");
    const sum = field => fleet.reduce((total, r) => total + (r[field] || 0), 0);
    // Weighted by prompt tokens, so that an idle replica does not pull the mean.
    const prompts = sum("prompt_tokens");
    const mean = field => prompts ? fleet.reduce((total, r) => total + (r[field] || 0) * r.prompt_tokens, 0) / prompts : null;
    const usable = fleet.filter(r => r.usable).length;
    const value = tile("Usable replicas", usable + " / " + fleet.length, sum("restarts") + " restarts seen");
    value.children[1].className = usable === fleet.length && usable ? "" : usable ? "wait" : "bad";
    sync(tiles, [
      value,
      tile("Hit rate", percent(mean("hit_rate")), "of " + percent(mean("available_rate")) + " available"),
      tile("Requests/s", rate(sum("request_rate")), count(sum("requests")) + " since the start"),
      tile("Errors", count(sum("errors")), "since the start"),
      tile("In flight", count(sum("in_flight")), "of this and other routers"),
      tile("Queued", short(sum("queued_tokens")), "tokens before their first token"),
    ]);
    const text = filter.values().text.toLowerCase();
    apart = fleet.some(r => r.role !== "decode");
    list.update(fleet.filter(r => !text || [r.name, r.state, r.engine || "", r.role, ...r.models].some(x => x.toLowerCase().includes(text))));
  }
  return update;
}
