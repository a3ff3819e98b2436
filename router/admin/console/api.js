// Calls of the admin port, with the key of whoever has signed in.
const NAME = "warmroute-key";
export const key = () => sessionStorage.getItem(NAME) || localStorage.getItem(NAME) || "";

export function signIn(value, remember) {
  signOut();
  (remember ? localStorage : sessionStorage).setItem(NAME, value);
}
export function signOut() {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
}

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export async function call(path, body, change = false) {
  const headers = key() ? { authorization: "Bearer " + key() } : {};
  const options = { headers };
  if (body !== undefined || change) {
    options.method = "POST";
    headers["x-warmroute-admin"] = "1";
  }
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try { answer = await fetch(path, options); }
  catch { throw new Refused(0, "the router does not answer"); }
  const found = await answer.json().catch(() => ({}));
  // /readyz answers 503 with what it has to say.
  if (!answer.ok && found.ready === undefined) throw new Refused(answer.status, found.error || "status " + answer.status);
  return found;
}

export function query(path, values) {
  const set = Object.entries(values).filter(([, value]) => value);
  return set.length ? path + "?" + new URLSearchParams(set) : path;
}
