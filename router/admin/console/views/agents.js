// Sessions of agents, and one as a line of steps.
import { call, query } from "../api.js";
import { fields, hash, link, make, meter, pairs, sync, table } from "../dom.js";
import { clock, count, percent, seconds } from "../format.js";

const OFF = "This router does not follow sessions: diagnosis is not there, or is off.";
const share = s => s.cached_tokens == null || !s.prompt_tokens ? null : s.cached_tokens / s.prompt_tokens;

export function mount(root, rest, asked) {
  const off = make("p", "note");
  const quiet = async work => {
    try { await work(); off.textContent = ""; } catch (error) {
      if (error.status !== 404) throw error;
      off.textContent = rest[0] ? error.message : OFF;
    }
  };
  root.append(off);
  if (rest[0]) return story(root, rest[0], quiet);
  const form = fields([["model", "Model", "search", asked.get("model")], ["tenant", "Tenant", "search", asked.get("tenant")]],
    values => { location.hash = query("#/agents", values); });
  form.append(make("button", "", "Filter"));
  const list = table("Sessions, the latest used first", [
    ["Session", s => link(s.id, hash("agents", s.id)), "left mono wide"], ["Agent", s => s.agent || "–", "left word"], ["Model", s => s.model, "left"], ["Tenant", s => s.tenant || "–", "left"],
    ["Steps", s => count(s.steps)], ["Hit rate", s => meter(share(s), percent(share(s)))], ["Prompt tokens", s => count(s.prompt_tokens)],
    ["First seen", s => clock(s.first_seen)], ["Last seen", s => clock(s.last_seen)], ["Replicas", s => s.replicas.join(", "), "left mono"],
  ], "No session.");
  root.append(form, list);
  return () => quiet(async () => list.update((await call(query("/sessions", { ...Object.fromEntries(asked), limit: "100" }))).sessions));
}

function story(root, id, quiet) {
  const about = make("div", "box pad");
  const steps = table("Steps, the oldest first", [
    ["Request", q => link(q.request_id, hash("requests", q.request_id)), "left mono wide"], ["Step", q => count(q.step)], ["Time", q => clock(q.at)], ["Gap", q => seconds(q.pause_s)], ["Tool", q => q.tool || "–", "left"],
    ["Replica", q => q.replica, "left mono"], ["Hit", q => meter(share(q), percent(share(q)))], ["Prompt", q => count(q.prompt_tokens)], ["Cached", q => count(q.cached_tokens)],
    ["Reason", q => q.reason || "–", "left"], ["Diverges", q => q.divergence ? `${q.divergence.part}, ${q.divergence.place}` : "–", "left"],
  ], "No step is kept.");
  root.append(make("p", "", link("All sessions", "#/agents")), about, steps);
  return () => quiet(async () => {
    const s = await call("/sessions/" + encodeURIComponent(id));
    sync(about, [pairs([["Session", s.id], ["Agent", s.agent || "–"], ["Model", s.model], ["Tenant", s.tenant || "–"], ["Hit rate", percent(share(s))], ["Replicas", s.replicas.join(", ")]])]);
    // Only the latest steps are kept: the last one has the session's number of steps.
    steps.update(s.requests.map((q, place) => ({ ...q, step: s.steps - s.requests.length + place + 1 })));
  });
}
