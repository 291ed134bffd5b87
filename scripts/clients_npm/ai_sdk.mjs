// Vercel's AI SDK, with @ai-sdk/openai-compatible; with the word "responses" behind, with
// @ai-sdk/openai as it is by default, which is the Responses protocol.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import * as p from "./program.mjs";

const responses = process.argv[2] === "responses";
const provider = (baseURL) =>
  responses
    ? createOpenAI({ baseURL, apiKey: p.KEY })
    : createOpenAICompatible({
        name: "sightline",
        baseURL,
        apiKey: p.KEY,
        includeUsage: true,
        supportsStructuredOutputs: true,
      });
const model = provider(p.BASE)(p.MODEL);
const given = { model, prompt: p.QUESTION, maxRetries: 0 };
const Capital = z.object({ city: z.enum(p.CITIES), large: z.boolean() });
const weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => (city === "Ulm" ? "sunny" : ""),
});
const silent = { onError() {} };

await p.report(responses ? "@ai-sdk/openai" : "@ai-sdk/openai-compatible", {
  async chat() {
    p.expect((await generateText(given)).text, p.ANSWER);
  },
  async stream() {
    const pieces = [];
    for await (const text of streamText(given).textStream) pieces.push(text);
    p.expectPieces(pieces);
  },
  async picture() {
    const content = [
      { type: "text", text: p.LOOK },
      { type: "image", image: p.picture() },
    ];
    const { text } = await generateText({
      model: provider(p.EYES)("demo"),
      messages: [{ role: "user", content }],
      maxOutputTokens: responses ? 16 : 8,
    });
    p.expectIn(p.BADGER, text);
  },
  async usage() {
    const { usage } = await generateText(given);
    p.expectUsage(usage.inputTokens, usage.outputTokens);
    const streamed = streamText(given);
    await streamed.consumeStream();
    const told = await streamed.usage;
    p.expectUsage(told.inputTokens, told.outputTokens);
  },
  ...(responses
    ? {}
    : {
        async stop() {
          const { text } = await generateText({ ...given, stopSequences: ["Paris"] });
          p.expect(text, p.ANSWER.split("Paris")[0]);
        },
      }),
  async tools() {
    const asked = { ...given, prompt: p.WEATHER, tools: { weather }, stopWhen: stepCountIs(3) };
    p.expect((await generateText(asked)).text, p.SUNNY);
    const streamed = streamText(asked);
    await streamed.consumeStream();
    p.expect(await streamed.text, p.SUNNY);
  },
  async structured() {
    Capital.parse((await generateObject({ ...given, schema: Capital })).object);
    const streamed = streamObject({ ...given, schema: Capital });
    for await (const _ of streamed.partialObjectStream);
    Capital.parse(await streamed.object);
  },
  async errors() {
    await p.refused(() => generateText({ ...given, prompt: p.TOO_LONG }));
    await p.refused(() => generateText({ ...given, temperature: -1 }), "temperature");
    let error;
    const asked = { ...given, prompt: p.TOO_LONG, onError: (one) => (error = one.error) };
    await streamText(asked).consumeStream(silent);
    p.expectIn("context ends at", error);
  },
  async cancel() {
    await p.cancelled(async () => {
      const leaving = new AbortController();
      let seen = 0;
      const asked = { ...given, prompt: p.STORY, abortSignal: leaving.signal };
      for await (const _ of streamText(asked).textStream) if (++seen === 5) leaving.abort();
    });
  },
});
