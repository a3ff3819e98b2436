// The prefixes that take the most cache memory.
import { call, query } from "../api.js";
import { fields, make, table } from "../dom.js";
import { count, seconds, short } from "../format.js";

export function mount(root, rest, asked) {
  const form = fields([["model", "Model", "search", asked.get("model")]], values => { location.hash = query("#/prefixes", values); });
  form.append(make("button", "", "Filter"));
  const note = make("p", "note");
  const list = table("Largest shared prefixes, by tokens x copies", [
    ["Holders", p => p.holders.join(", ") + (p.copies > p.holders.length ? ` +${p.copies - p.holders.length}` : ""), "left mono wide"],
    ["Models", p => p.models.join(", ") || "–", "left"], ["Tokens, about", p => short(p.tokens)], ["Copies", p => count(p.copies)],
    ["Tokens x copies", p => short(p.tokens * p.copies)], ["Continuations", p => count(p.continuations)], ["Unused for", p => seconds(p.idle_s)],
  ], "No prefix is shared.");
  root.append(form, note, list);
  return async () => {
    const found = await call(query("/prefixes", { model: asked.get("model"), limit: "50" }));
    note.textContent = `${count(found.blocks)} blocks in the index. It keeps hashes only: no prompt text, and no count of hits by prefix.`;
    list.update(found.prefixes);
  };
}
