// Score an artifact's own sample request in Node.js and compare with its sample response.
//
//   npm install onnxruntime-node
//   node examples/score.mjs ARTIFACT

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";

const read = (name) => JSON.parse(readFileSync(join(artifact, name), "utf8"));

// Open Inference Protocol v2 to tensors: null is NaN, an integer too large for a double is text.
const toTensor = ({ datatype, shape, data }) =>
  ({
    BYTES: () => new Tensor("string", data, shape),
    INT64: () => new Tensor("int64", BigInt64Array.from(data, BigInt), shape),
    FP32: () => new Tensor("float32", Float32Array.from(data, (x) => x ?? NaN), shape),
  })[datatype]();

const artifact = process.argv[2];
if (!artifact) {
  console.error("usage: node score.mjs ARTIFACT");
  process.exit(2);
}
const session = await InferenceSession.create(join(artifact, "model.onnx"));
const { inputs } = read("sample/request.json");
const feeds = Object.fromEntries(inputs.map((input) => [input.name, toTensor(input)]));

for (const { name, data } of read("sample/response.json").outputs) {
  const found = (await session.run(feeds, [name]))[name].data;
  const gap = Math.max(...data.map((p, row) => Math.abs(p - found[row])));
  console.log(`${name}: ${found.length} rows, largest gap to the sample response ${gap.toExponential(1)}`);
}
