// The sentences under the forms: what to expect of what is being typed.

const load = document.getElementById("load-form");
const one = document.getElementById("send-form");
const sentence = document.getElementById("expected");
const sentenceOfOne = document.getElementById("expected-one");
const configured = Number(sentence.dataset.budget);
const leaseMs = Number(sentence.dataset.leaseMs);
const defaultTimeoutMs = Number(sentence.dataset.timeoutMs);

const MIXES = JSON.parse(sentence.dataset.mixes);
// Every kind, in the order in which the server deals out what is left over by rounding.
const KINDS = [...load.querySelectorAll("[data-share]")].map((field) => field.dataset.share);
const ENDS = {
  completed: "complete",
  tsq: "go to the troubleshooting queue",
  failed: "fail by a business rule",
};

// How a command of this kind ends, and after how many attempts.
function outcome(kind, budget, timeMs, failures) {
  const outlasts = timeMs >= leaseMs;
  if (kind === "timeout") {
    if (!outlasts) return { end: "completed", attempts: 1 };
    return budget > 1 ? { end: "completed", attempts: 2, again: true } : { end: "tsq", attempts: 1 };
  }
  // The worker gives it up with its lease, each time.
  if (outlasts) return { end: "tsq", attempts: budget, again: budget > 1 };
  switch (kind) {
    case "fail_permanent":
      return { end: "tsq", attempts: 1 };
    case "fail_business":
      return { end: "failed", attempts: 1 };
    case "fail_transient":
      return { end: "tsq", attempts: budget };
    case "fail_transient_then_succeed":
      return failures < budget
        ? { end: "completed", attempts: failures + 1 }
        : { end: "tsq", attempts: budget };
    default:
      return { end: "completed", attempts: 1 };
  }
}

function whole(form, name, fallback) {
  const text = form.elements[name].value.trim();
  return text === "" ? fallback : Number(text);
}

// Percentages as whole thousandths, which add up exactly.
function shares() {
  const mix = load.elements.mix.value;
  const fields = [...load.querySelectorAll("[data-share]")];
  const given =
    mix === "custom"
      ? Object.fromEntries(fields.map((field) => [field.dataset.share, Number(field.value) || 0]))
      : MIXES[mix];
  return KINDS.map((kind) => [kind, Math.round((given[kind] ?? 0) * 1000)]);
}

// How many commands of each kind there will be: by largest remainder, as the server does it.
function allocated(count) {
  const parts = shares().map(([kind, share]) => {
    const exact = share * count;
    return { kind, number: Math.floor(exact / 100000), rest: exact % 100000 };
  });
  let left = count - parts.reduce((sum, part) => sum + part.number, 0);
  for (const part of [...parts].sort((a, b) => b.rest - a.rest)) {
    if (left <= 0) break;
    part.number += 1;
    left -= 1;
  }
  return parts;
}

const said = (number) => number.toLocaleString("en");

// What the form would refuse has no outcome.
const isRefused = (form) =>
  [...form.querySelectorAll('input[type="number"]')].some(
    (field) => field.checkVisibility() && !field.validity.valid,
  );
const REFUSED = "A value is out of range.";

function describeLoad() {
  if (isRefused(load)) {
    sentence.textContent = REFUSED;
    return;
  }
  const total = shares().reduce((sum, [, share]) => sum + share, 0);
  if (total !== 100000) {
    sentence.textContent = `The percentages add up to ${total / 1000}, not to 100.`;
    return;
  }
  const count = whole(load, "count", 0);
  const budget = whole(load, "load_max_attempts", configured);
  const delay = whole(load, "delay_ms", 0);
  const timeout = whole(load, "timeout_ms", 0) || defaultTimeoutMs;
  const ends = { completed: 0, tsq: 0, failed: 0 };
  let retried = 0;
  let again = 0;
  let isNoTimeout = false;
  for (const { kind, number } of allocated(count)) {
    const time = kind === "timeout" ? timeout : delay;
    const found = outcome(kind, budget, time, 1);
    ends[found.end] += number;
    if (found.again) again += number;
    else if (found.attempts > 1) retried += number;
    if (kind === "timeout" && number > 0 && time < leaseMs) isNoTimeout = true;
  }
  const parts = [
    [ends.completed, ENDS.completed],
    [retried, "are retried"],
    [again, "are delivered again after their lease"],
    [ends.tsq, ENDS.tsq],
    [ends.failed, ENDS.failed],
  ].filter(([number]) => number > 0);
  const texts = parts.map(([number, text]) => `${said(number)} ${text}`);
  const notes = [];
  if (texts.length) notes.push(`About ${texts.join(", ")}.`);
  if (delay >= leaseMs) notes.push(notInTime("The processing delay"));
  if (isNoTimeout) notes.push(noTimeout());
  sentence.textContent = notes.join(" ");
}

const notInTime = (what) =>
  `${what} is not below the visibility timeout of ${said(leaseMs)} ms: attempts end with their lease.`;
const noTimeout = () =>
  `A timeout must exceed the visibility timeout of ${said(leaseMs)} ms; it completes like a success.`;

function describeOne() {
  if (isRefused(one)) {
    sentenceOfOne.textContent = REFUSED;
    return;
  }
  const kind = one.elements.type.value;
  const budget = whole(one, "max_attempts", configured);
  const typed = whole(one, "execution_time_ms", 0);
  const time = kind === "timeout" ? typed || defaultTimeoutMs : typed;
  const found = outcome(kind, budget, time, whole(one, "transient_failures", 1));
  const attempts = found.attempts === 1 ? "1 attempt" : `${said(found.attempts)} attempts`;
  const end = {
    completed: `Completes on attempt ${said(found.attempts)}.`,
    tsq: `Goes to the troubleshooting queue after ${attempts}.`,
    failed: "Fails on its first attempt: a business rule refuses it.",
  }[found.end];
  const notes = [end];
  if (kind === "timeout" && time < leaseMs) notes.push(noTimeout());
  if (kind !== "timeout" && time >= leaseMs) notes.push(notInTime("The execution time"));
  sentenceOfOne.textContent = notes.join(" ");
}

// A timeout needs a time; what was filled in for it goes when another behaviour is chosen.
function fillTime() {
  const field = one.elements.execution_time_ms;
  const isTimeout = one.elements.type.value === "timeout";
  if (isTimeout && !Number(field.value)) field.value = defaultTimeoutMs;
  else if (!isTimeout && field.value === String(defaultTimeoutMs)) field.value = 0;
}

load.addEventListener("input", describeLoad);
one.addEventListener("change", (event) => {
  if (event.target.name === "type") fillTime();
  describeOne();
});
one.addEventListener("input", describeOne);
describeLoad();
describeOne();
