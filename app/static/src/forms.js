// Help while one fills in a form. The server checks everything again.
//
//   <textarea data-json="object">            JSON is checked while typing ("any": every JSON value)
//   <div data-show-when="type=timeout|other"> is shown, and its fields are sent, only when the field
//                                            of that name has one of the values; data-shown from the
//                                            server where it has at the start, so that nothing moves
//   <form data-filters>                      sends only the fields that are filled in
//   <form data-submit-once>                  cannot be sent twice by an impatient click

const CHECK_AFTER_MILLISECONDS = 250;

export function startForms() {
  for (const field of document.querySelectorAll('[data-json]')) watchJson(field);
  for (const form of document.forms) watchConditions(form);
  // A form that came back begins where something is to be corrected.
  document.querySelector('main [aria-invalid="true"]')?.focus();

  document.addEventListener('submit', (event) => {
    if (event.defaultPrevented) return;
    if (event.target.matches('[data-filters]')) leaveOutEmpty(event.target);
    if (event.target.matches('[data-submit-once]')) markBusy(event.target, event.submitter);
  });
  // A page from the back-forward cache is not busy any more.
  window.addEventListener('pageshow', () => {
    for (const busy of document.querySelectorAll('form [aria-busy]')) busy.removeAttribute('aria-busy');
  });
}

// Shows an error under a field, or takes it away; the text also blocks sending.
export function setError(field, text) {
  field.setCustomValidity(text);
  field.toggleAttribute('aria-invalid', Boolean(text));
  if (text) field.setAttribute('aria-invalid', 'true');
  const place = document.getElementById(`${field.id}-error`);
  if (!place) return;
  place.textContent = text;
  place.hidden = !text;
}

// What is wrong with JSON text, in words; empty when it is right.
export function jsonProblem(text, shape = 'any') {
  if (!text.trim()) return '';
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return `Not valid JSON${placeOf(error, text)}`;
  }
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
  return shape === 'object' && !isObject ? 'This must be a JSON object, such as {"key": "value"}.' : '';
}

function watchJson(field) {
  let timer;
  const check = () => setError(field, jsonProblem(field.value, field.dataset.json));
  field.addEventListener('input', () => {
    clearTimeout(timer);
    // What has become right is said at once, what is wrong only after a pause.
    if (!jsonProblem(field.value, field.dataset.json)) check();
    else timer = setTimeout(check, CHECK_AFTER_MILLISECONDS);
  });
  field.addEventListener('blur', check);
}

function placeOf(error, text) {
  const position = /position (\d+)/.exec(error.message)?.[1];
  if (position === undefined) return '.';
  const before = text.slice(0, Number(position)).split('\n');
  return ` at line ${before.length}, column ${before.at(-1).length + 1}.`;
}

function watchConditions(form) {
  const parts = [...form.querySelectorAll('[data-show-when]')];
  if (parts.length === 0) return;
  const update = () => {
    const values = new FormData(form);
    for (const part of parts) {
      const [name, wanted] = part.dataset.showWhen.split('=');
      const shown = wanted.split('|').includes(values.get(name));
      part.toggleAttribute('data-shown', shown);
      for (const field of part.querySelectorAll('input, select, textarea')) field.disabled = !shown;
    }
  };
  form.addEventListener('change', update);
  form.addEventListener('reset', () => setTimeout(update));
  update();
}

function leaveOutEmpty(form) {
  const empty = [...form.elements].filter((field) => field.name && !field.disabled && !field.value);
  for (const field of empty) field.disabled = true;
  setTimeout(() => {
    for (const field of empty) field.disabled = false;
  });
}

function markBusy(form, submitter) {
  setTimeout(() => (submitter ?? form.querySelector('[type=submit]'))?.setAttribute('aria-busy', 'true'));
}
