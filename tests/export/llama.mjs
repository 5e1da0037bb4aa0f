// Ask llama.cpp, by its binding for Node: node llama.mjs FOLDER REQUEST. FOLDER contains node_modules with node-llama-cpp.
// Of the JSON file REQUEST ({model, lora, texts, prompts, newTokens, stop}), prints the token ids of the texts and, for each
// prompt (token ids), the greedy continuation and the probability of each of its tokens.
import {readFile} from "node:fs/promises";
import {pathToFileURL} from "node:url";

const [folder, request] = process.argv.slice(2);
const binding = pathToFileURL(`${folder}/node_modules/node-llama-cpp/dist/index.js`);
const {getLlama, GgmlType, LlamaLogLevel} = await import(binding);
const {model: modelPath, lora, texts, prompts, newTokens, stop} = JSON.parse(await readFile(request, "utf8"));

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath});
const encoded = texts.map((text) => [...model.tokenize(text, true)]);

const context = await model.createContext({
    contextSize: 1024,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: GgmlType.F32,
    experimentalKvCacheValueType: GgmlType.F32,
    ...(lora && {lora: {adapters: [{filePath: lora, scale: 1}]}})
});
const sequence = context.getSequence();
const answers = [];
for (const ids of prompts) {
    await sequence.clearHistory();
    const answer = {ids: [], probs: []};
    const options = {temperature: 0, yieldEogToken: true};
    for await (const {token, confidence} of sequence.evaluateWithMetadata(ids, {confidence: true}, options)) {
        answer.ids.push(token);
        answer.probs.push(confidence);
        if (answer.ids.length >= newTokens || token === stop) break;
    }
    answers.push(answer);
}
console.log(JSON.stringify({encoded, answers}));
process.exit(0);
