// Sends a prompt by the clients' port and tells what was predicted and delivered.
import { call } from "../api.js";
import { fields, hash, link, make, pairs } from "../dom.js";
import { count, seconds } from "../format.js";

const pause = ms => new Promise(done => setTimeout(done, ms));

// A request is told once it has ended, just after its answer.
async function explained(id) {
  for (let tries = 0; ; tries++) {
    try { return await call("/explain/" + encodeURIComponent(id)); } catch (error) {
      if (error.status !== 404 || tries > 10) throw error;
      await pause(100);
    }
  }
}

export function mount(root) {
  const result = make("div", "box pad");
  result.setAttribute("role", "status");
  result.hidden = true;
  const send = make("button", "", "Send");
  const form = fields([
    ["model", "Model", "text"], ["max_tokens", "Most tokens of the answer", "number", "64"], ["key", "Tenant's key, if asked for", "password"],
    ["system", "System prompt", "textarea"], ["prompt", "Prompt", "textarea"],
  ], async values => {
    send.disabled = true;
    result.hidden = false;
    result.replaceChildren("Sent…");
    try {
      const played = await call("/playground", { ...values, max_tokens: Number(values.max_tokens) });
      const parts = [make("pre", "", played.text)];
      const rows = [["Status", String(played.status)], ["Time", seconds(played.seconds)]];
      try {
        const q = await explained(played.request_id);
        rows.push(["Replica", q.replica || "–"], ["Prompt tokens", count(q.prompt_tokens)], ["Predicted", count(q.predicted)], ["Delivered", count(q.delivered)], ["Why", q.why]);
        parts.push(make("p", "", link("Its story", hash("requests", q.request_id))));
      } catch (error) { rows.push(["Story", error.message]); }
      result.replaceChildren(pairs(rows), ...parts);
    } catch (error) { result.replaceChildren(make("p", "bad", error.message)); }
    send.disabled = false;
  });
  form.append(send);
  for (const name of ["model", "prompt"]) form.elements[name].required = true;
  root.append(form, result);
  let filled = false;
  return async () => {
    if (filled) return;
    const model = (await call("/replicas")).flatMap(r => r.models)[0];
    if (model && !form.elements.model.value) form.elements.model.value = model;
    filled = Boolean(model);
  };
}
