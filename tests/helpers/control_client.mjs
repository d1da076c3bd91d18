// A client of the control API in JavaScript, written from docs/control-api.md alone.
// node control_client.mjs CONTROL TASK UE: submits, follows the task's decisions until three have come, releases it.
import { Dealer, Subscriber } from "zeromq";

const [control_endpoint, task, ue] = process.argv.slice(2);
const control = new Dealer();
control.connect(control_endpoint);
let id = 0;

async function ask(verb, args = {}) {
  await control.send(JSON.stringify({ v: 1, id: ++id, verb, args }));
  for (;;) {
    const [frame] = await control.receive();
    const answer = JSON.parse(frame.toString());
    if (answer.id === id) return answer;
  }
}

const work = {
  kind: "llm", model: "llama-3-8b", context_tokens: 0, new_tokens: 32, max_output_tokens: 200, ttft_s: 2, tpot_s: 0.2,
};
const submitted = await ask("submit", { task, ue, work, fallback: "drop" });
const watching = await ask("watch");
const decisions = new Subscriber();
decisions.connect(watching.result.endpoints.find((endpoint) => endpoint.startsWith("ipc://")));
decisions.subscribe(`decision/${task}`);
const leases = [];
for await (const [topic, payload] of decisions) {
  if (topic.toString() === `decision/${task}`) leases.push(JSON.parse(payload.toString()));
  if (leases.length === 3) break;
}
const released = await ask("release", { task });
const unknown = await ask("show", { task: `${task}-of-nobody` });
console.log(JSON.stringify({ submitted, leases, released, unknown }));
decisions.close();
control.close();
