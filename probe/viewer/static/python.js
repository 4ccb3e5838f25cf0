"use strict";
// The Python that makes what is seen: the picture, the curves over layers, the grid of heads. A call
// is [figure, function of probe.plots, what it draws, its options]; null is an option not given.

function pictureCalls(drawn) {
  const image = mainStack().patches?.images.length > 1 ? state.image : null;
  const effect = data.attributions[shownEffect()];
  if (effect) return [["attribution", "attribution", effect.python, { image }]];
  const options = {
    query_type: state.query, layers: [state.layer], stack: state.stack, image,
    token: state.word < 0 ? null : state.word,
    head: state.head === "mean" ? null : Number(state.head),
    value: state.quantity === "lift" ? "lift" : null,
    sinks: state.quantity === "no-sinks" ? "drop" : null,
  };
  return [["heatmaps", "heatmaps", drawn, options]];
}

function curveCalls(drawn) {
  const options = { stack: state.stack, query_types: [state.query], key_types: ["vision"] };
  return chartsOf(mainStack()).map((name) => {
    const [call, more] = name === "entropy" ? [name, { which: "pooled" }] : ["mass", { value: name }];
    return [name, call, drawn, { ...options, ...more }];
  });
}

function headCalls(drawn) {
  const options = { query_type: state.query, stack: state.stack, value: state.statistic };
  return [["heads", "heads", drawn, options]];
}

function pythonText(callsOf) {
  const records = state.side === "A|B" ? data.records : [recordOf(mainSide())];
  const names = records.length > 1 ? ["first", "second"] : ["record"];
  const opened = records.map(({ python }, i) => `${names[i]} = ${python}`);
  const entries = records.map(({ label }, i) => {
    return `${JSON.stringify(`${SIDES[i]}: ${label}`)}: ${names[i]}`; // labels may be equal
  });
  const calls = callsOf(records.length > 1 ? `{${entries.join(", ")}}` : names[0]);
  const figures = calls.map(([figure, name, drawn, options]) => {
    const given = Object.entries(options).filter(([, value]) => value !== null);
    const words = given.map(([option, value]) => `, ${option}=${JSON.stringify(value)}`);
    return `probe.plots.${name}(${drawn}${words.join("")}).figure.savefig("${figure}.png")`;
  });
  return ["import probe", "", ...opened, ...figures, ""].join("\n");
}
