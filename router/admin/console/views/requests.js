// The latest requests, and the story of one.
import { call, query } from "../api.js";
import { fields, hash, link, make, pairs, sync, table } from "../dom.js";
import { clock, count, seconds, short } from "../format.js";

const FILTERS = [["text", "Id has"], ["replica", "Replica"], ["model", "Model"], ["tenant", "Tenant"], ["status", "Status or outcome"], ["reason", "Reason"]];

export function mount(root, rest, asked) {
  if (rest.length && rest[0]) return story(root, rest.join("/"));
  const form = fields(FILTERS.map(([name, label]) => [name, label, "search", asked.get(name)]),
    values => { location.hash = query("#/requests", values); });
  form.append(make("button", "", "Filter"));
  const kept = make("p", "note");
  const bad = q => q.outcome !== "ok" || q.status >= 400;
  const list = table("Latest requests", [
    ["Request", q => link(q.request_id, hash("requests", q.request_id)), "left mono wide"],
    ["Time", q => clock(q.started)], ["Replica", q => q.replica || "–", "left mono"], ["Model", q => q.model || "–", "left"],
    ["Tenant", q => q.tenant || "–", "left"], ["Reason", q => q.reason || "–", "left"],
    ["Status", q => make("span", bad(q) ? "bad" : "good", q.status + (q.outcome === "ok" ? "" : " " + q.outcome))],
    ["Prompt", q => count(q.prompt_tokens)], ["Predicted", q => count(q.predicted)], ["Delivered", q => count(q.delivered)],
    ["Body", q => short(q.bytes_in) + " B"], ["TTFT", q => seconds(q.ttft)], ["Duration", q => seconds(q.duration)],
  ], "No such request.");
  root.append(form, kept, list);
  return async () => {
    const found = await call(query("/requests", { ...Object.fromEntries(asked), limit: asked.get("limit") || "100" }));
    kept.textContent = `${found.requests.length} shown of ${found.kept} kept in memory`;
    list.update(found.requests);
  };
}

function way(q) {
  const total = Math.max(q.prompt_tokens, q.available, 1);
  const bar = make("div", "way");
  bar.setAttribute("aria-hidden", "true");
  const delivered = q.delivered || 0;
  for (const [tokens, cls] of [[delivered, ""], [Math.max(0, q.available - delivered), "lost"]]) {
    const part = make("i", cls);
    part.style.setProperty("--share", 100 * tokens / total + "%");
    bar.append(part);
  }
  return bar;
}

function story(root, id) {
  const words = make("div", "box pad");
  const list = table("Candidates, lowest cost first", [
    ["Replica", c => c.replica + (c.chosen ? " (chosen)" : ""), "left mono wide"], ["Cost", c => c.cost.toPrecision(4)],
    ["Held tokens", c => count(c.held_tokens)], ["Queued tokens", c => count(c.queued_tokens)], ["In flight", c => count(c.in_flight)],
  ], "No replica was looked at.");
  root.append(make("p", "", link("All requests", "#/requests")), words, list);
  return async () => {
    const q = await call("/explain/" + encodeURIComponent(id));
    const cache = q.cache ? [["Cache", `${q.cache.reason}, ${count(q.cache.missed_tokens)} tokens computed again` +
      (q.cache.changed_part ? `; parts from the one before in ${q.cache.changed_part}, byte ${q.cache.changed_at}` : "")]] : [];
    sync(words, [
      make("h3", "mono", q.request_id), make("p", "", q.why), way(q),
      pairs([
        ["Way of its tokens", `${count(q.prompt_tokens)} in the prompt, ${count(q.available)} available, ${count(q.chosen)} at the chosen replica, ${count(q.predicted)} predicted, ${count(q.delivered)} delivered`],
        ["Replica", q.replica || "–"], ["Model", q.model || "–"], ["Tenant", q.tenant || "–"], ["Policy", `${q.policy || "–"}, ${q.reason || "no reason"}`],
        ["Status", `${q.status}, ${q.outcome}`], ["TTFT", seconds(q.ttft)], ["Duration", seconds(q.duration)], ["Router's overhead", q.overhead == null ? "–" : (1000 * q.overhead).toFixed(2) + " ms"],
        ...(q.queue ? [["Waited", `${seconds(q.queue.seconds)} at the ${q.queue.where}, ${q.queue.ahead} before it`]] : []), ...cache,
      ]),
    ]);
    list.update(q.candidates.map(c => ({ ...c, rowClass: c.chosen ? "chosen" : "" })));
  };
}
