// The operator's part of its status page.

/** They sum the others up, or say what is meant to be. */
const SUMMARIES = new Set(["Ready", "Suspended", "Reconciling", "Stalled"]);

/** A step was left out, because of a condition that is shown. */
const NOT_REACHED = "NotReached";

async function ask() {
  const [status, metrics] = await Promise.all([read("/status"), read("/metrics")]);
  return { status: await status.json(), metrics: await metrics.text() };
}

function draw({ status, metrics }) {
  show("version", `Version ${status.version}.`);
  drawState(status);
  const retained = retainedBytes(metrics);
  const rows = status.resources.map((resource) => ({ ...resource, id: `${resource.namespace}/${resource.name}` }));
  fill("resources", rows.map((row) => {
    const { text, level, since, message } = summary(row);
    const bytesKept = retained.get(row.id);
    return [row.id, { text, level }, since, bytesKept === undefined ? "–" : bytes(bytesKept), message];
  }));
  const more = status.totalResources - rows.length;
  showIf("resources-more", more > 0 ? `And ${count(more)} more.` : null);
  fill("conditions", rows.flatMap((row) => row.conditions
    .filter(({ type, status, reason }) => status !== "True" && reason !== NOT_REACHED && !SUMMARIES.has(type))
    .map(({ type, status, reason, message }) => [row.id, type, status, reason, message])));
  noteChanges([
    ["Operator", status.leads ? "leads" : "stands by"],
    ["Resources", status.totalResources],
    ...rows.map((row) => [row.id, summary(row).text]),
  ]);
}

function drawState({ ready, message, leads, readyResources, totalResources }) {
  const resources = `${count(readyResources)} of ${count(totalResources)} resources ready`;
  const state = !ready ? "Not ready" : leads ? `Leads: ${resources}` : "Stands by: another process leads";
  const level = !ready || readyResources < totalResources ? "bad" : "good";
  const mark = level === "good" ? "✓" : "✗";
  document.title = `${mark} ${state} – outbox-operator`;
  show("headline", `${mark} ${state}`);
  find("state").dataset.level = level;
  showIf("message", ready ? null : message);
}

/** The condition Ready in words. That of an older specification says nothing about the present one. */
function summary({ current, suspended, deleting, conditions }) {
  const ready = conditions.find(({ type }) => type === "Ready");
  const state = [suspended && "suspended", deleting && "being deleted"].filter(Boolean).join(", ");
  if (!ready) return { text: "not reconciled yet", level: "doubt", since: "–", message: state || "–" };
  const outdated = current || ready.reason === "Unreadable" ? "" : " for an older specification";
  return {
    text: `${ready.status}: ${ready.reason}${outdated}`,
    level: ready.status === "True" && current ? "good" : ready.status === "False" ? "bad" : "doubt",
    since: ready.lastTransitionTime ? time(ready.lastTransitionTime) : "–",
    message: [state, ready.message].filter(Boolean).join("; "),
  };
}

/** namespace/name → bytes, from the lines `outbox_operator_retained_wal_bytes{name="…",namespace="…"} 12` of the metrics. */
function retainedBytes(metrics) {
  const lines = metrics.matchAll(/^outbox_operator_retained_wal_bytes\{name="([^"]*)",namespace="([^"]*)"\} (\S+)$/gm);
  return new Map([...lines].map(([, name, namespace, value]) => [`${namespace}/${name}`, Number(value)]));
}

start("operator", ask, draw);
