// Numbers and times as people read them. Null is what is not known.
export const percent = x => x == null ? "–" : (100 * x).toFixed(x > 0 && x < .1 ? 1 : 0) + "%";
export const count = x => x == null ? "–" : Math.round(x).toLocaleString("en");
export const short = x => x == null ? "–" : x >= 1e6 ? (x / 1e6).toFixed(1) + "M" : x >= 1e4 ? Math.round(x / 1e3) + "k" : count(x);
export const rate = x => x == null ? "–" : x >= 10 ? count(x) : x.toFixed(1);
export const money = x => x == null ? "–" : x.toFixed(2);
export const bytes = x => x == null ? "–" : short(x) + " B";
export function seconds(x) {
  if (x == null) return "–";
  if (x < 0) return "-" + seconds(-x);
  if (x < 1) return Math.round(1000 * x) + " ms";
  if (x < 120) return x.toFixed(x < 10 ? 2 : 0) + " s";
  return x < 7200 ? Math.round(x / 60) + " min" : (x / 3600).toFixed(1) + " h";
}
export const clock = unix => unix == null ? "–" : new Date(1000 * unix).toLocaleTimeString("en-GB");
