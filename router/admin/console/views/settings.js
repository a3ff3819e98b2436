// The settings in effect, and where each came from.
import { call } from "../api.js";
import { fields, make, table } from "../dom.js";

export function mount(root, rest, asked) {
  const form = fields([["text", "Filter by name, value or source", "search", asked.get("text")]], () => show());
  form.oninput = () => show();
  const note = make("p", "note");
  const list = table("Settings", [
    ["Setting", s => make("span", "", make("span", "mono", s.name), make("small", "", s.help)), "left wide"], ["Value", s => s.value || "–", "left mono"],
    ["Source", s => s.source, "left"], ["Group", s => s.group, "left"], ["Change", s => s.live ? "by SIGHUP" : "restart", "left"],
  ], "No such setting.");
  root.append(note, form, list);
  let all = [];
  const show = () => {
    const text = form.values().text.toLowerCase();
    list.update(all.filter(s => [s.name, s.value, s.source].some(x => x.toLowerCase().includes(text))));
  };
  return async () => {
    if (all.length) return;
    const found = await call("/settings");
    all = found.settings;
    note.textContent = `Warmroute ${found.version} on Python ${found.python}. Secrets are not shown.`;
    show();
  };
}
