// What the page asks the server: models, and answers as they come.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, key, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}),
                    ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new Refused(response.status, said?.error?.message ?? `the server says ${response.status}`);
  }
  return response;
}

export async function models(key) {
  return (await (await ask("/v1/models", key)).json()).data.map((model) => model.id);
}

// Yields {text}, {reason} and at last {usage}.
export async function* answer(body, key, signal) {
  const response = await ask("/v1/chat/completions", key, {
    method: "POST", signal, body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, "the connection was cut");
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data === "[DONE]") return;
      if (!data) continue;
      const said = JSON.parse(data);
      if (said.error) throw new Refused(0, said.error.message);
      const choice = said.choices[0];
      if (choice?.delta.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { reason: choice.finish_reason };
      if (said.usage) yield { usage: said.usage };
    }
  }
}
