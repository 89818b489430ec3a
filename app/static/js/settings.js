// The settings form: checks while one types, marks what is not saved and warns before it is lost,
// and keeps the table of delays up to date. The server makes that table, so the formula is in one
// place.

import { ApiError, request } from '../src/api.js';
import { setError } from '../src/forms.js';
import { morph } from '../src/morph.js';
import { announce } from '../src/page.js';

const PAUSE_MILLISECONDS = 150;

const form = document.getElementById('settings-form');
const fields = [...form.querySelectorAll('[data-setting]')];
const retryFields = fields.filter((field) => field.closest('#retries'));
const bar = form.querySelector('[data-save-bar]');
let isLeaving = false;
let timer;
let asked = 0;

form.addEventListener('input', ({ target }) => {
  if (!target.matches('[data-setting]')) return;
  check(target);
  showUnsaved();
  if (retryFields.includes(target)) {
    clearTimeout(timer);
    timer = setTimeout(showDelays, PAUSE_MILLISECONDS);
  }
});

form.addEventListener('submit', (event) => {
  const wrong = fields.filter((field) => !check(field));
  if (wrong.length === 0) return;
  event.preventDefault();
  wrong[0].focus();
}, { capture: true });

// Leaving by the form or by a button that says so loses nothing unawares.
form.addEventListener('submit', (event) => { isLeaving = !event.defaultPrevented; });
for (const link of document.querySelectorAll('[data-discard]')) {
  link.addEventListener('click', () => { isLeaving = true; });
}
window.addEventListener('pageshow', () => { isLeaving = false; });
window.addEventListener('beforeunload', (event) => {
  if (!isLeaving && fields.some(isChanged)) event.preventDefault();
});

// What was typed before this module came, or what the browser restored.
fields.filter((field) => field.value !== field.defaultValue).forEach(check);
showUnsaved();

function check(field) {
  field.setCustomValidity('');
  const isRight = field.validity.valid;
  setError(field, isRight ? '' : `This must be ${field.dataset.range}.`);
  return isRight;
}

function isChanged(field) {
  return field.value === '' || Number(field.value) !== Number(field.dataset.setting);
}

function showUnsaved() {
  for (const field of fields) mark(field, isChanged(field));
  const changed = fields.filter(isChanged).length;
  const text = changed === 0 ? '' : `${changed} ${changed === 1 ? 'change' : 'changes'} not saved`;
  bar.toggleAttribute('data-shown', changed > 0);
  const place = bar.querySelector('[data-unsaved]');
  if (place.textContent === text) return;
  place.textContent = text;
  announce(text || 'No changes');
}

// Beside its label: what is stored.
function mark(field, changed) {
  const label = form.querySelector(`label[for="${field.id}"]`);
  let note = label.querySelector('.changed');
  if (changed === Boolean(note)) return;
  if (!changed) {
    note.remove();
    return;
  }
  note = document.createElement('span');
  note.className = 'changed';
  note.textContent = `stored: ${field.dataset.setting}`;
  label.append(note);
}

async function showDelays() {
  if (retryFields.some((field) => !field.validity.valid)) return;
  const question = ++asked;
  const values = new URLSearchParams(retryFields.map((field) => [field.name, field.value]));
  try {
    const response = await request(`${form.dataset.delays}?${values}`, { headers: { Accept: 'text/html' } });
    // Only the answer to what stands in the fields now is shown.
    if (response.status !== 200 || question !== asked) return;
    const place = document.getElementById('delays');
    const next = document.createElement('div');
    next.id = place.id;
    next.innerHTML = await response.text();
    morph(place, next);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
}
