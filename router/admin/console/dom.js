// Elements and tables. Everything is set as text, never as markup: ids and models are what clients wrote.
export function make(tag, cls, ...inside) {
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  made.append(...inside.map(x => x instanceof Node ? x : String(x)));
  return made;
}

export function button(text, key, act, cls = "") {
  const made = make("button", cls, text);
  made.type = "button";
  made.dataset.key = key;
  made.onclick = act;
  return made;
}

export function link(text, hash) {
  const made = make("a", "", text);
  made.href = hash;
  made.dataset.key = hash;
  return made;
}

export const hash = (view, ...rest) => "#/" + [view, ...rest].map(encodeURIComponent).join("/");

export function meter(share, text, cls = "") {
  const bar = make("i");
  bar.style.setProperty("--share", 100 * Math.min(1, share || 0) + "%");
  return make("span", "meter " + cls, bar, text);
}

export const tile = (name, value, note = "") =>
  make("div", "tile", make("span", "", name), make("strong", "", value), make("small", "", note));

// Puts children in place of those that are others now: what has the focus keeps it, and a reader
// of the screen is not told again what has not changed.
export function sync(parent, children) {
  const focus = document.activeElement?.dataset?.key;
  children.forEach((child, place) => {
    const old = parent.children[place];
    if (!old) parent.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
  if (focus && document.activeElement === document.body)
    [...parent.querySelectorAll("[data-key]")].find(x => x.dataset.key === focus)?.focus();
}

// columns: [heading, row => text or node, class]. Narrow windows show each row as a card.
// Roles are spelled out, since a table that is laid out as cards would lose them.
export function table(caption, columns, none) {
  const body = role(make("tbody"), "rowgroup");
  const heads = columns.map(([name, , cls]) => {
    const head = role(make("th", cls || "", name), "columnheader");
    head.scope = "col";
    return head;
  });
  const top = role(make("thead", "", role(make("tr", "", ...heads), "row")), "rowgroup");
  const inner = role(make("table", "", make("caption", "", caption), top, body), "table");
  const root = make("div", "box cards", inner);
  root.update = rows => {
    if (!rows.length) {
      const cell = role(make("td", "left soft wide", none), "cell");
      cell.colSpan = columns.length;
      return sync(body, [role(make("tr", "", cell), "row")]);
    }
    sync(body, rows.map(row => {
      const cells = columns.map(([name, show, cls]) => {
        const cell = role(make("td", cls || "", show(row)), "cell");
        cell.dataset.label = name;
        return cell;
      });
      return role(make("tr", row.rowClass || "", ...cells), "row");
    }));
  };
  return root;
}

function role(element, name) {
  element.setAttribute("role", name);
  return element;
}

export function pairs(entries) {
  return make("dl", "", ...entries.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

// A form of labelled fields: [name, label, kind, value]. changed is called with all values.
export function fields(wanted, changed) {
  const form = make("form");
  for (const [name, label, kind, value] of wanted) {
    const input = make(kind === "textarea" ? "textarea" : "input");
    if (kind !== "textarea") input.type = kind;
    input.name = name;
    input.value = value || "";
    input.autocomplete = "off";
    form.append(make("label", kind === "textarea" ? "wide" : "", label, input));
  }
  const values = () => Object.fromEntries([...form.elements].filter(x => x.name).map(x => [x.name, x.value.trim()]));
  form.onsubmit = event => { event.preventDefault(); changed(values()); };
  form.values = values;
  return form;
}
