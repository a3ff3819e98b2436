// What in the traffic costs cached tokens, and what mends it.
import { call, query } from "../api.js";
import { make, meter, pairs, sync, table } from "../dom.js";
import { bytes, count, money, percent, seconds, short } from "../format.js";

export function mount(root, rest, asked) {
  const note = make("p", "note");
  const list = table("Findings, the dearest first", [
    ["Finding", f => make("span", "", f.kind.replaceAll("_", " "), make("small", "", f.mend)), "left wide"], ["Part", f => f.part, "left"], ["Looks like", f => f.looks_like, "left"],
    ["Agent", f => f.agent || "–", "left word"], ["Tenant", f => f.tenant || "–", "left"], ["Model", f => f.model, "left"], ["Requests", f => count(f.requests)],
    ["Tokens lost", f => short(f.tokens_lost)], ["GPU time", f => seconds(f.gpu_seconds)], ["Money a day", f => money(f.money_a_day)],
  ], "Nothing was found.");
  const steps = table("Hit rate by step of a session", [["Step", s => s[0], "left"], ["Hit rate", s => meter(s[1], percent(s[1]))]], "No session yet.");
  const pauses = table("Pauses of sessions, and what was gone after them", [
    ["Pause", p => p.up_to_s == null ? "longer" : "up to " + seconds(p.up_to_s), "left"], ["Resumed", p => count(p.resumed)], ["Found it gone", p => count(p.gone)],
    ["Share gone", p => percent(p.resumed ? p.gone / p.resumed : null)], ["Tokens lost", p => short(p.tokens_lost)],
  ], "No session was resumed.");
  const holds = table("How long each replica's cache holds what it has", [
    ["Replica", h => h[0], "left mono"], ["Holds", h => h[1] == null ? "is not full" : seconds(h[1])],
  ], "No replica.");
  const results = make("div", "box pad"), waste = make("p", "note");
  const parts = [list, steps, results, pauses, waste, holds];
  root.append(note, ...parts);
  return async () => {
    let found;
    try { found = await call(query("/audit", { since: asked.get("since") || "1h" })); } catch (error) {
      if (error.status !== 404) throw error;
      note.textContent = "This router does not audit: diagnosis is not there, or is off.";
      for (const part of parts) part.hidden = true;
      return;
    }
    for (const part of parts) part.hidden = false;
    note.textContent = `The last ${seconds(found.since_s)}.`;
    list.update(found.findings);
    steps.update(found.agents.hit_rate_by_step.map((value, place) => [place + 1, value]));
    const tools = found.agents.tool_results, gaps = found.agents.pauses;
    sync(results, [make("h3", "", "Tool results"), pairs([
      ["Results", count(tools.results)], ["Mean size", bytes(tools.mean_bytes)], ["Largest", bytes(tools.largest_bytes)], ["Share of what steps add", percent(tools.share_of_growth)],
      ["Seen before in the session", `${count(tools.repeats)} (${bytes(tools.repeated_bytes)})`],
    ])]);
    pauses.update(gaps.resumed ? gaps.rows.filter(row => row.resumed) : []);
    waste.textContent = `A larger cache or an offload tier would have kept ${short(gaps.larger_cache_tokens)} tokens; a wait for the replica that held them, ${short(gaps.sticky_wait_tokens)}.`;
    holds.update(Object.entries(gaps.holds_s));
  };
}
