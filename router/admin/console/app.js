// Shows the view that the address names after #/, keeps it fresh, and signs in.
import { call, key, signIn, signOut } from "./api.js";
import { make } from "./dom.js";
import * as agents from "./views/agents.js";
import * as audit from "./views/audit.js";
import * as fleet from "./views/fleet.js";
import * as playground from "./views/playground.js";
import * as policies from "./views/policies.js";
import * as prefixes from "./views/prefixes.js";
import * as queue from "./views/queue.js";
import * as requests from "./views/requests.js";
import * as settings from "./views/settings.js";

// A view's mount(root, rest, asked) builds it and returns what fetches and shows its numbers.
const VIEWS = { fleet, requests, queue, agents, prefixes, audit, policies, playground, settings };
const EVERY_MS = 2000;
const at = id => document.getElementById(id);
let refresh = async () => {}, shown = 0, busy = false;

const links = Object.keys(VIEWS).map(name => {
  const made = make("a", "", name[0].toUpperCase() + name.slice(1));
  made.href = "#/" + name;
  return made;
});
at("views").append(...links);
at("skip").onclick = event => { event.preventDefault(); at("view").focus(); };

function open(moved) {
  const [path, asked] = location.hash.slice(2).split("?");
  const [first, ...rest] = path.split("/").map(part => { try { return decodeURIComponent(part); } catch { return part; } });
  const name = Object.hasOwn(VIEWS, first) ? first : "fleet";
  for (const link of links) {
    if (link.hash === "#/" + name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = name[0].toUpperCase() + name.slice(1);
  document.title = title + " · Warmroute";
  const root = make("div");
  const error = make("p", "bad");
  error.setAttribute("role", "alert");
  at("view").replaceChildren(make("h2", "", title), error, root);
  const mine = ++shown;
  const update = VIEWS[name].mount(root, rest, new URLSearchParams(asked || ""));
  refresh = async () => {
    try {
      await update();
      if (mine === shown) error.textContent = "";
    } catch (problem) {
      if (problem.status === 401) ask();
      else if (mine === shown) error.textContent = problem.message;
    }
  };
  if (moved) at("view").focus();
  return turn();
}

function ask() {
  at("signin-error").textContent = key() ? "This key is not right." : "";
  signOut();
  if (at("signin").hidden) { at("signin").hidden = false; at("view").hidden = true; at("key").focus(); }
}

async function state() {
  let ready;
  try { ready = await call("/readyz"); } catch (problem) { ready = { reasons: [problem.message] }; }
  const part = ready.ready && ready.usable < ready.replicas;
  const text = !ready.ready ? ready.reasons.join("; ") : part ? `${ready.usable} of ${ready.replicas} replicas usable` : "ready";
  at("state").className = "pill " + (!ready.ready ? "bad" : part ? "wait" : "good");
  if (at("state").textContent !== text) at("state").textContent = text;
}

async function turn() {
  at("signout").hidden = !key();
  await Promise.all([state(), at("signin").hidden ? refresh() : null]);
}

at("signin").onsubmit = async event => {
  event.preventDefault();
  signIn(at("key").value, at("remember").checked);
  try { await call("/requests?limit=1"); } catch (problem) {
    if (problem.status === 401) return ask();
  }
  at("key").value = "";
  at("signin").hidden = true;
  at("view").hidden = false;
  open(true);
};
at("signout").onclick = () => { signOut(); open(false); };
addEventListener("hashchange", () => open(true));
setInterval(async () => {
  if (document.hidden || busy) return;
  busy = true;
  try { await turn(); } finally { busy = false; }
}, EVERY_MS);
open(false);
