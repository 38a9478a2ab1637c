// Talks to the server: JSON, and its stream of events, read by fetch as an EventSource would (it goes on after the last
// event's number), since that can neither send a key nor see the comments that tell a quiet server from a dead line.

const QUIET_MS = 40_000; // the server says something every 15 s
const MOST = 8 << 20; // characters of one event

let key = sessionStorage.getItem("emo-key");

export const remember = (given) => {
  key = given;
  sessionStorage.setItem("emo-key", given);
};

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

const headers = (more = {}) => (key ? { ...more, Authorization: `Bearer ${key}` } : more);

async function checked(answer) {
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, typeof told.error === "string" ? told.error : `the server answered ${answer.status}`);
}

export async function get(path) {
  const answer = await fetch(path, { headers: headers(), signal: AbortSignal.timeout(15_000), cache: "no-store" });
  return (await checked(answer)).json();
}

export async function post(path, body) {
  const answer = await fetch(path, { method: "POST", body, headers: headers(), signal: AbortSignal.timeout(30_000) });
  return (await checked(answer)).json();
}

// Calls hear(event, data, number) until the stream ends; then returns, or throws.
export async function listen(since, hear) {
  const stop = new AbortController();
  let quiet = setTimeout(() => stop.abort(), QUIET_MS);
  try {
    const answer = await fetch("api/events", {
      headers: headers({ Accept: "text/event-stream", "Last-Event-ID": String(since) }), signal: stop.signal, cache: "no-store",
    });
    const reader = (await checked(answer)).body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(quiet);
      quiet = setTimeout(() => stop.abort(), QUIET_MS);
      text = (text + value).replaceAll("\r\n", "\n");
      const parts = text.split("\n\n");
      text = parts.pop();
      if (text.length > MOST) throw new Error("an event without end");
      for (const part of parts) tell(part, hear);
    }
  } finally {
    clearTimeout(quiet);
    stop.abort();
  }
}

function tell(part, hear) {
  let name = "message", number = null;
  const data = [];
  for (const line of part.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "event") name = value;
    else if (field === "id") number = Number(value);
    else if (field === "data") data.push(value);
  }
  if (data.length) hear(name, JSON.parse(data.join("\n")), number);
}
