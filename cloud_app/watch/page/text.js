// Elements and words. What comes from the fleet becomes text nodes and attributes here, never markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export const find = (id) => document.getElementById(id);

// Touches the page only where it changes: no layout for nothing, no word said twice by a screen reader.
export function say(node, text) {
  text = text == null ? "" : String(text);
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (value == null || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NO = "–";

export const count = (value) => (isNumber(value) ? grouped.format(value) : NO);
export const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(1)} %` : NO);

export function number(value) {
  if (!isNumber(value)) return NO;
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return grouped.format(value);
  const size = Math.abs(value);
  return size >= 1e6 || (size < 1e-3 && size > 0) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export function bytes(value) {
  if (!isNumber(value)) return NO;
  let unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  while (Math.abs(value) >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  const digits = unit === 0 || Math.abs(value) >= 99.95 ? 0 : 1;
  return `${Math.abs(value) >= 10000 ? value.toExponential(1) : value.toFixed(digits)} ${units[unit]}`;
}

export function duration(seconds) {
  if (!isNumber(seconds)) return NO;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${grouped.format(Math.floor(whole / 86400))} d ${Math.floor((whole % 86400) / 3600)} h`;
}

const two = (value) => String(value).padStart(2, "0");

export function clock(time) {
  const at = new Date(time * 1000);
  if (Number.isNaN(at.getTime())) return NO;
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export function moment(time) {
  const at = new Date(time * 1000);
  if (Number.isNaN(at.getTime())) return NO;
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
  return day + clock(time);
}

export const last = (list) => {
  for (let at = (list?.length ?? 0) - 1; at >= 0; at--) if (list[at] != null) return list[at];
  return null;
};

// What a light means, in the order of its urgency.
export const LIGHTS = {
  training: "training", alive: "alive", late: "late", out: "left out", refused: "refused", gone: "gone",
};
