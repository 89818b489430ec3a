// The sentence under the load-test form: what to expect of the numbers that are being typed.

const form = document.getElementById("load-form");
const sentence = document.getElementById("expected");

const MIXES = {
  success: { success: 100 },
  mixed: { success: 90, fail_transient_then_succeed: 5, fail_permanent: 5 },
};
const OUTCOMES = [
  [["success", "timeout", "fail_transient_then_succeed"], "complete"],
  [["fail_transient_then_succeed", "fail_transient"], "are retried"],
  [["fail_permanent", "fail_transient"], "go to the troubleshooting queue"],
  [["fail_business"], "fail by a business rule"],
];

function shares() {
  const mix = form.elements.mix.value;
  if (mix !== "custom") return MIXES[mix];
  const fields = [...form.querySelectorAll("[data-share]")];
  return Object.fromEntries(fields.map((field) => [field.dataset.share, Number(field.value) || 0]));
}

function describe() {
  const count = Number(form.elements.count.value) || 0;
  const percent = shares();
  const total = Object.values(percent).reduce((sum, share) => sum + share, 0);
  if (total !== 100) {
    sentence.textContent = `The percentages add up to ${total}, not to 100.`;
    return;
  }
  const parts = OUTCOMES.map(([kinds, text]) => {
    const share = kinds.reduce((sum, kind) => sum + (percent[kind] ?? 0), 0);
    return [Math.round((count * share) / 100), text];
  }).filter(([number]) => number > 0);
  sentence.textContent = parts.length
    ? `About ${parts.map(([number, text]) => `${number.toLocaleString("en")} ${text}`).join(", ")}.`
    : "";
}

form.addEventListener("input", describe);
describe();
