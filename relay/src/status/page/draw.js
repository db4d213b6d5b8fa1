// The relay's part of its status page: what the members of /status mean to the reader.

/** Topics that are shown: the busiest. */
const MAX_TOPICS = 20;
/** The lag is compared with the one of this many answers ago, about 20 s. */
const TREND_ANSWERS = 10;
/** Less is no trend. */
const TREND_SECONDS = 1;
/** What pg_replication_slots.wal_status means. */
const WAL_STATUS = {
  reserved: ["good", "reserved: less than max_wal_size"],
  extended: ["good", "extended: beyond max_wal_size, kept for the slot"],
  unreserved: ["bad", "unreserved: PostgreSQL may remove it at the next checkpoint"],
  lost: ["bad", "lost: WAL that the slot needs is gone"],
};

const lags = [];
let topicsBefore = null;

async function ask() {
  const [status, metrics] = await Promise.all([read("/status"), read("/metrics")]);
  return { status: await status.json(), metrics: await metrics.text(), at: performance.now() };
}

function draw({ status, metrics, at }) {
  show("name", status.name);
  show("version", `Version ${status.version}, started ${time(status.startedAt)}.`);
  drawState(status);
  drawDelivery(status, drawTopics(metrics, at));
  drawSlot(status.slot);
  drawConnections(status);
  fill("waiting", status.sink.silentPartitions.map((silent) => [
    `${silent.topic}/${silent.partition}`,
    silent.waitsFor === "search" ? "the scan for rows that Kafka already has" : "an acknowledgement",
    count(silent.records),
    duration(silent.oldestSeconds),
    duration(silent.silentSeconds),
    silent.cause ?? "not diagnosed yet",
  ]));
  noteChanges([
    ["Phase", status.phase],
    ["State", status.ready ? "ready" : status.problem?.reason ?? "not ready"],
    ["PostgreSQL", connection(status.source.connected)],
    ["Kafka", connection(status.sink.connected)],
    ["Held by", status.slot.activePid === null ? "no connection" : `pid ${status.slot.activePid}`],
    ["WAL status", status.slot.walStatus ?? "unknown"],
    ["Dead letters", status.deadLetters.count],
    ["Partitions that wait", status.sink.silentPartitions.length],
  ]);
}

function drawState({ ready, phase, phaseSince, problem, lastProblem, name }) {
  const state = ready ? `Ready: ${phase}` : `Not ready: ${problem ? problem.reason : phase}`;
  const level = ready ? "good" : phase === "stopped" || problem ? "bad" : "doubt";
  const mark = { good: "✓", bad: "✗", doubt: "…" }[level];
  document.title = `${mark} ${state} – ${name}`;
  show("headline", `${mark} ${state}`);
  find("state").dataset.level = level;
  showIf("message", problem?.message);
  // A standby relay is ready: that another one holds the slot asks for nothing.
  const remedy = ready ? null : problem?.remedy;
  find("advice").hidden = !remedy;
  show("remedy", remedy ?? "");
  const since = problem && !ready ? `Since ${time(problem.since)}. ` : "";
  show("since", `${since}Phase ${phase} since ${time(phaseSince)}.`);
  const over = lastProblem?.until ? lastProblem : null;
  showIf("last", over && `Last problem: ${over.reason}, from ${time(over.since)} to ${time(over.until)}: ${over.message}`);
}

function drawDelivery(status, perSecond) {
  lags.push(status.lagSeconds);
  if (lags.length > TREND_ANSWERS) lags.shift();
  show("lag", `${duration(status.lagSeconds)}${trend(lags)}`);
  show("reading", status.notReadingBecause ? `paused: ${status.notReadingBecause}` : "yes");
  const { events, bytes: limit } = status.inFlightLimit;
  show("in-flight", `${count(status.inFlightEvents)} of ${count(events)} events, ${bytes(status.inFlightBytes)} of ${bytes(limit)}`);
  meter("in-flight-meter", status.inFlightBytes, limit);
  show("acknowledged", `${perSecond} events per second`);
  const last = status.sink.lastAcknowledgementAt;
  show("last-acknowledgement", last ? time(last) : "none by this process yet");
  show("suppressed", `${count(status.suppressedEvents)} events that Kafka already had`);
  const dead = status.deadLetters;
  const reason = dead.last ? `; last: ${dead.last.reason}, event ${dead.last.id ?? "without a readable id"}, ${time(dead.last.at)}` : "";
  show("dead-letters", `${count(dead.count)} since the start${reason}`);
  show("phantoms", status.phantoms.count ? `${count(status.phantoms.count)}: ${status.phantoms.ids.join(", ")}` : "0");
}

function trend(lags) {
  const difference = lags.at(-1) - lags[0];
  if (Math.abs(difference) < TREND_SECONDS) return "";
  return difference > 0 ? ", growing" : ", shrinking";
}

function drawSlot(slot) {
  const unknown = slot.exists === null ? "not observed yet" : "–";
  show("slot-name", slot.exists === false ? `${slot.name}: does not exist` : slot.name);
  const free = slot.exists ? `not for ${duration(slot.inactiveSeconds)}: WAL accumulates` : unknown;
  show("slot-held", slot.activePid === null ? free : `by pid ${slot.activePid}`);
  const [level, meaning] = WAL_STATUS[slot.walStatus] ?? ["doubt", slot.walStatus ?? unknown];
  show("wal-status", slot.invalidationReason ? `${meaning} (${slot.invalidationReason})` : meaning);
  find("wal-status").className = slot.exists ? level : "";
  const isLimited = slot.safeBytes !== null;
  const limit = slot.retainedBytes + Math.max(slot.safeBytes, 0);
  show("retained", slot.exists ? `${bytes(slot.retainedBytes)}${isLimited ? ` of ${bytes(limit)}` : ""}` : unknown);
  find("wal-meter").hidden = !isLimited;
  if (isLimited) meter("wal-meter", slot.retainedBytes, limit);
  show("safe", !slot.exists ? unknown : isLimited
    ? `${bytes(Math.max(slot.safeBytes, 0))} of new WAL`
    : "no limit (max_slot_wal_keep_size is not set): the disk of the primary is the limit");
  show("unconfirmed", slot.exists ? bytes(slot.unconfirmedBytes) : unknown);
  show("observed", slot.observedAt ? time(slot.observedAt) : unknown);
}

/** High from 80 % on: browsers show that in another colour. The text beside it has the numbers. */
function meter(id, value, limit) {
  Object.assign(find(id), { max: limit, high: 0.8 * limit, optimum: 0, value });
}

const connection = (connected) => (connected === null ? "not asked yet" : connected ? "connected" : "not connected");

function drawConnections({ source, sink, checkpoint, heartbeat, retention }) {
  const observer = source.observerError ? `; the slot cannot be observed: ${source.observerError}` : "";
  show("postgres", `${connection(source.connected)}: ${source.host}, port ${source.port}, database ${source.database}${observer}`);
  find("postgres").className = source.connected ? "" : "bad";
  show("table", `${source.table}, publication ${source.publication}`);
  show("kafka", `${connection(sink.connected)}: ${sink.bootstrapServers}`);
  find("kafka").className = sink.connected === false ? "bad" : "";
  show("checkpoint", checkpoint ? `${duration(checkpoint.ageSeconds)} old, ${checkpoint.confirmedLsn ?? "nothing confirmed yet"}` : "none");
  const age = heartbeat.ageSeconds === null ? "none expected" : `${duration(heartbeat.ageSeconds)} old`;
  show("heartbeat", heartbeat.intervalSeconds ? `${age}, one every ${heartbeat.intervalSeconds} s` : "off");
  show("retention", retention ? `${retention.error ?? retention.held ?? "done"}, ${time(retention.at)}` : "no maintenance yet");
}

/** Shows the topics, the busiest first. Returns the events per second of all. */
function drawTopics(metrics, at) {
  const totals = eventsByTopic(metrics);
  const seconds = topicsBefore ? (at - topicsBefore.at) / 1000 : 0;
  const rate = (topic) => (seconds ? Math.max(0, totals.get(topic) - (topicsBefore.totals.get(topic) ?? 0)) / seconds : 0);
  const topics = [...totals.keys()].map((topic) => ({ topic, total: totals.get(topic), rate: rate(topic) }));
  topics.sort((a, b) => b.rate - a.rate || b.total - a.total || a.topic.localeCompare(b.topic));
  fill("topics", topics.slice(0, MAX_TOPICS).map(({ topic, total, rate }) => [topic, count(total), perSecond(rate)]));
  const more = topics.length - MAX_TOPICS;
  showIf("topics-more", more > 0 ? `And ${count(more)} more.` : null);
  topicsBefore = { totals, at };
  return perSecond(topics.reduce((sum, { rate }) => sum + rate, 0));
}

const perSecond = (rate) => count(rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate));

/** Topic → events acknowledged, from the lines `outbox_relay_events_total{topic="…"} 12` of the metrics. */
function eventsByTopic(metrics) {
  const lines = metrics.matchAll(/^outbox_relay_events_total\{topic="([^"]*)"\} (\S+)$/gm);
  return new Map([...lines].map(([, topic, total]) => [topic, Number(total)]));
}

start("relay", ask, draw);
