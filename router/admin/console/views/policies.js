// The policy in use, and what others would have got.
import { call } from "../api.js";
import { make, pairs, sync, table } from "../dom.js";
import { count, money, percent, seconds, short } from "../format.js";

export function mount(root) {
  const live = make("div", "box pad");
  const decisions = table("Decisions since the start", [["Reason", d => d.reason || "–", "left"], ["Policy", d => d.policy, "left"], ["Requests", d => count(d.requests)]], "No decision yet.");
  const note = make("p", "note");
  const shadows = table("Shadow policies, the last hour", [
    ["Policy", s => make("span", "", s.policy + (s.live ? " (in use)" : ""), make("small", "bad", s.fault || "")), "left wide"], ["Requests", s => count(s.requests)],
    ["Predicted hit rate", s => percent(s.predicted_hit_rate)], ["Delivered", s => percent(s.delivered_hit_rate)], ["Hottest", s => s.hottest_ratio == null ? "–" : s.hottest_ratio.toFixed(2)],
    ["Wait", s => seconds(s.wait_seconds)], ["Tokens saved against it", s => short(s.saved.tokens)], ["Replica time saved", s => seconds(s.saved.replica_seconds)], ["Money saved", s => money(s.saved.money)],
  ], "No shadow.");
  root.append(live, decisions, note, shadows);
  return async () => {
    const found = await call("/policies");
    const weights = Object.entries(found.weights);
    sync(live, [make("h3", "", "In use: " + found.live), pairs(weights.length ? weights : [["Weights", "it tells none"]])]);
    decisions.update(found.decisions);
    try {
      const all = await call("/shadows");
      shadows.hidden = false;
      note.textContent = all.trusted ? "The shadow of the policy in use agrees with what was delivered." : "Not to be trusted yet: " + all.why;
      shadows.update(all.policies);
    } catch (error) {
      if (error.status !== 404) throw error;
      shadows.hidden = true;
      note.textContent = "No shadow policies are set (shadow_policies).";
    }
  };
}
