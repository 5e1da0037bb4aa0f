// As client.py, with OpenAI's client for Node:   npm install openai   node client.mjs rows.jsonl
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ maxRetries: 0 });
const [path, model = "smollm2-135m", settings = "{}"] = process.argv.slice(2);
const lines = fs.readFileSync(path, "utf8").split("\n").filter(Boolean);
const rows = lines.slice(0, -1);

const file = await client.files.create({ file: await toFile(Buffer.from(rows.join("\n")), "rows.jsonl"), purpose: "fine-tune" });
let job = await client.fineTuning.jobs.create({ model, training_file: file.id, tunewright: JSON.parse(settings) });
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise(resolve => setTimeout(resolve, 500));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
if (job.status !== "succeeded") throw new Error(job.error?.message);
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 5 })) events.push(event.message);
const messages = JSON.parse(lines.at(-1)).messages.slice(0, -1);
const answer = await client.chat.completions.create({ model: job.fine_tuned_model, messages, max_completion_tokens: 30 });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ model: job.fine_tuned_model, messages, max_completion_tokens: 30, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
console.log(JSON.stringify({ verdict: job.tunewright.verdict.verdict, events: events.length, answer: answer.choices[0].message.content, streamed }));
