// The parts of the dashboard that the server cannot render: the curve of a job, and the playground.

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawCurve(element) {
  const data = [[], [], []];
  const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } };
  const line = (label, colour, more) => ({ label, stroke: style(colour), width: 2, spanGaps: true, points: { fill: style("--paper") }, ...more });
  const chart = new uPlot({
    width: Math.min(element.clientWidth || 700, 740), height: 260,
    scales: { x: { time: false } },
    axes: [{ ...axis, label: "step", labelSize: 20 }, { ...axis, size: 56, label: "loss (nats per token)", labelSize: 20 }],
    series: [{ label: "step" }, line("training loss", "--accent"), line("dev loss", "--other", { points: { show: true, fill: style("--paper") } })],
  }, data, element);
  const source = new EventSource(element.dataset.url);
  source.onmessage = event => {
    for (const [step, train, dev] of JSON.parse(event.data)) {
      if (data[0].length && step <= data[0].at(-1)) continue;  // sent again after a lost connection
      data[0].push(step); data[1].push(train); data[2].push(dev);
    }
    chart.setData(data);
  };
  source.addEventListener("end", () => source.close());
}

async function* sentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer(pane, body, signal) {
  const box = pane.querySelector(".answer"), which = pane.querySelector(".which");
  box.textContent = "";
  box.removeAttribute("contenteditable");
  pane.querySelector(".actions").hidden = true;
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" }, signal,
    body: JSON.stringify({ ...body, stream: true, logprobs: true }),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for await (const chunk of sentEvents(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    which.textContent = `${chunk.model}, weights ${chunk.system_fingerprint.replace("fp_", "")}`;
    for (const choice of chunk.choices) {
      const tokens = choice.logprobs?.content ?? [];
      if (choice.delta.content && tokens.map(t => t.token).join("") === choice.delta.content) {
        for (const t of tokens) {
          const span = document.createElement("span");
          span.textContent = t.token;
          span.title = `probability ${Math.exp(t.logprob).toFixed(3)}`;
          box.append(span);
        }
      } else {
        box.append(choice.delta.content ?? "");
      }
      if (choice.finish_reason === "length") which.textContent += ", cut at the limit";
    }
  }
  box.setAttribute("contenteditable", "plaintext-only");
  box.setAttribute("role", "textbox");
  box.setAttribute("aria-multiline", "true");
  box.setAttribute("aria-label", "answer; it can be corrected before it is kept");
  pane.querySelector(".actions").hidden = false;
}

function playground(form) {
  const field = name => form.elements[name], problem = document.getElementById("problem");
  let abort = null;
  field("scale").addEventListener("input", () => { field("shown").value = Number(field("scale").value).toFixed(1); });
  field("model").addEventListener("change", () => { location.href = `/playground?model=${encodeURIComponent(field("model").value)}`; });
  field("stop").addEventListener("click", () => abort?.abort());
  const messages = system => [
    ...(system ? [{ role: "system", content: system }] : []), { role: "user", content: field("user").value },
  ];
  form.addEventListener("submit", async event => {
    event.preventDefault();
    problem.textContent = "";
    const common = { max_completion_tokens: Number(field("tokens").value) };
    if (field("schema").value.trim()) {
      try {
        common.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(field("schema").value) } };
      } catch (error) {
        problem.textContent = `The schema is not valid JSON: ${error.message}`;
        return;
      }
    }
    abort = new AbortController();
    field("stop").hidden = false;
    const scale = Number(field("scale").value), tuned = field("model").value;
    const panes = [["base", form.dataset.base, ""], ["prompted", form.dataset.base, field("system").value]];
    if (tuned) panes.push(["tuned", scale === 1 ? tuned : `${tuned}@${scale}`, field("system").value]);
    const results = await Promise.allSettled(panes.map(([id, model, system]) => answer(
      document.getElementById(`pane-${id}`), { ...common, model, messages: messages(system) }, abort.signal)));
    problem.textContent = results.filter(r => r.reason && r.reason.name !== "AbortError").map(r => r.reason.message)[0] ?? "";
    field("stop").hidden = true;
  });
  for (const button of document.querySelectorAll(".keep")) {
    button.addEventListener("click", async () => {
      const pane = button.closest("section"), tuned = pane.id === "pane-base" ? "" : field("system").value;
      const response = await fetch("/playground/keep", {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({
          model: field("model").value || form.dataset.base, system: tuned, user: field("user").value,
          answer: pane.querySelector(".answer").innerText,
        }),
      });
      button.textContent = response.ok ? "Kept" : "Not kept";
    });
  }
}

const chart = document.getElementById("curve"), ask = document.getElementById("ask");
if (chart) drawCurve(chart);
if (ask) playground(ask);
