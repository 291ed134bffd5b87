// The server's side of the conversation: the list of models, and answers as they are written.

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function request(path, key, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ServerError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 413) {
    throw new ServerError("The conversation is too large to send with its pictures. Start a new chat, or show smaller ones.", 413);
  }
  const body = await response.json().catch(() => null);
  throw new ServerError(message(body?.error) ?? `The server answered with status ${response.status}.`, response.status);
}

/** What an error says, as a sentence; undefined if it says nothing. */
function message(error) {
  const text = typeof error === "string" ? error : error?.message;
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

export async function listModels(key) {
  const { data } = await (await request("/v1/models", key)).json();
  return data.map((model) => model.id);
}

/**
 * Asks for an answer. Resolves once the server has accepted the request, to an iterator over
 * {status}, {thought}, {text}, {finish} and {usage}; an answer that breaks off throws.
 */
export async function requestAnswer(body, key, signal) {
  const stream = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", key, {
    method: "POST",
    body: JSON.stringify(stream),
    signal,
  });
  return answerEvents(response.body);
}

async function* answerEvents(body) {
  for await (const { comment, data } of serverSentEvents(body)) {
    if (comment !== undefined) {
      const status = readStatus(comment);
      if (status) yield { status };
      continue;
    }
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(message(chunk.error) ?? "The server could not finish this answer.");
    const choice = chunk.choices?.[0];
    if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new ServerError("The connection ended before the answer did.");
}

/** The server's comments tell how far the reading of the prompt is. */
function readStatus(comment) {
  const prefill = /^prefill (\d+)\/(\d+)$/.exec(comment);
  if (prefill) return `Reading ${prefill[1]} of ${prefill[2]} tokens`;
  return comment === "queued" ? "In the queue" : null;
}

async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (!line && data.length) {
          yield { data: data.join("\n") };
          data = [];
        }
      }
    }
  } catch (problem) {
    if (problem instanceof TypeError) throw new ServerError("The connection broke before the answer was complete.");
    throw problem;
  } finally {
    reader.cancel().catch(() => {});
  }
}
