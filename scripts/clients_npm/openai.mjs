// OpenAI's own client for Node, by Chat Completions.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as p from "./program.mjs";

const client = new OpenAI({ baseURL: p.BASE, apiKey: p.KEY, maxRetries: 0 });
const eyes = new OpenAI({ baseURL: p.EYES, apiKey: p.KEY, maxRetries: 0 });
const ask = (text = p.QUESTION, more = {}) =>
  client.chat.completions.create({
    model: p.MODEL,
    messages: [{ role: "user", content: text }],
    ...more,
  });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

await p.report("openai", {
  async chat() {
    p.expect((await ask()).choices[0].message.content, p.ANSWER);
  },
  async stream() {
    const pieces = [];
    for await (const chunk of await ask(p.QUESTION, { stream: true }))
      if (chunk.choices[0].delta.content) pieces.push(chunk.choices[0].delta.content);
    p.expectPieces(pieces);
  },
  async picture() {
    const content = [
      { type: "text", text: p.LOOK },
      { type: "image_url", image_url: { url: p.pictureUri() } },
    ];
    const reply = await eyes.chat.completions.create({
      model: "demo",
      messages: [{ role: "user", content }],
      max_tokens: 8,
    });
    p.expectIn(p.BADGER, reply.choices[0].message.content);
  },
  async usage() {
    const { usage } = await ask();
    p.expectUsage(usage.prompt_tokens, usage.completion_tokens);
    let last;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await ask(p.QUESTION, options)) last = chunk;
    p.expectUsage(last.usage.prompt_tokens, last.usage.completion_tokens);
  },
  async stop() {
    const reply = await ask(p.QUESTION, { stop: ["Paris"] });
    p.expect(reply.choices[0].message.content, p.ANSWER.split("Paris")[0]);
  },
  async tools() {
    for (const stream of [false, true]) {
      const runner = client.chat.completions.runTools({
        model: p.MODEL,
        stream,
        messages: [{ role: "user", content: p.WEATHER }],
        tools: [
          {
            type: "function",
            function: {
              name: "weather",
              description: "Tells the weather.",
              parameters,
              parse: JSON.parse,
              function: ({ city }) => (city === "Ulm" ? "sunny" : ""),
            },
          },
        ],
      });
      p.expect(await runner.finalContent(), p.SUNNY);
    }
  },
  async structured() {
    const Capital = z.object({ city: z.enum(p.CITIES), large: z.boolean() });
    const reply = await client.chat.completions.parse({
      model: p.MODEL,
      messages: [{ role: "user", content: p.QUESTION }],
      response_format: zodResponseFormat(Capital, "capital"),
    });
    Capital.parse(reply.choices[0].message.parsed);
  },
  async errors() {
    const error = await p.refused(() => ask(p.TOO_LONG));
    p.expect([error instanceof OpenAI.BadRequestError, error.code], [true, "context_length_exceeded"]);
    await p.refused(() => ask(p.QUESTION, { temperature: -1 }), "temperature");
  },
  async cancel() {
    await p.cancelled(async () => {
      let seen = 0;
      const stream = await ask(p.STORY, { stream: true });
      for await (const _ of stream) if (++seen === 5) stream.controller.abort();
    });
  },
});
