// LangChain's ChatOpenAI for Node, by Chat Completions.
import { HumanMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import * as p from "./program.mjs";

const made = (base = p.BASE, more = {}) =>
  new ChatOpenAI({
    model: p.MODEL,
    apiKey: p.KEY,
    configuration: { baseURL: base },
    maxRetries: 0,
    ...more,
  });
const model = made();
const weather = tool(async ({ city }) => (city === "Ulm" ? "sunny" : ""), {
  name: "weather",
  description: "Tells the weather.",
  schema: z.object({ city: z.string() }),
});

await p.report("@langchain/openai", {
  async chat() {
    p.expect((await model.invoke(p.QUESTION)).text, p.ANSWER);
  },
  async stream() {
    const pieces = [];
    for await (const chunk of await model.stream(p.QUESTION))
      if (chunk.text) pieces.push(chunk.text);
    p.expectPieces(pieces);
  },
  async picture() {
    const content = [
      { type: "text", text: p.LOOK },
      { type: "image_url", image_url: { url: p.pictureUri() } },
    ];
    const reply = await made(p.EYES, { maxTokens: 8 }).invoke([new HumanMessage({ content })]);
    p.expectIn(p.BADGER, reply.text);
  },
  async usage() {
    const told = (await model.invoke(p.QUESTION)).usage_metadata;
    p.expectUsage(told.input_tokens, told.output_tokens);
    let whole;
    for await (const chunk of await model.stream(p.QUESTION))
      whole = whole ? whole.concat(chunk) : chunk;
    p.expectUsage(whole.usage_metadata.input_tokens, whole.usage_metadata.output_tokens);
  },
  async stop() {
    const reply = await model.invoke(p.QUESTION, { stop: ["Paris"] });
    p.expect(reply.text, p.ANSWER.split("Paris")[0]);
  },
  async tools() {
    const calls = model.bindTools([weather]);
    const question = new HumanMessage(p.WEATHER);
    let streamed;
    for await (const chunk of await calls.stream([question]))
      streamed = streamed ? streamed.concat(chunk) : chunk;
    for (const message of [await calls.invoke([question]), streamed]) {
      p.expect(message.tool_calls[0].args, { city: "Ulm" });
      const result = await weather.invoke(message.tool_calls[0]);
      p.expect((await calls.invoke([question, message, result])).text, p.SUNNY);
    }
  },
  async structured() {
    const Capital = z.object({ city: z.enum(p.CITIES), large: z.boolean() });
    for (const method of ["jsonSchema", "functionCalling"])
      Capital.parse(await model.withStructuredOutput(Capital, { method }).invoke(p.QUESTION));
  },
  async errors() {
    const error = await p.refused(() => model.invoke(p.TOO_LONG));
    p.expect(error.constructor.name, "ContextOverflowError");
    await p.refused(() => made(p.BASE, { temperature: -1 }).invoke(p.QUESTION), "temperature");
  },
  async cancel() {
    await p.cancelled(async () => {
      const leaving = new AbortController();
      let seen = 0;
      try {
        for await (const _ of await model.stream(p.STORY, { signal: leaving.signal }))
          if (++seen === 5) leaving.abort();
      } catch (error) {
        if (!leaving.signal.aborted) throw error;
      }
    });
  },
});
