// What operators do, without leaving the page.
//
//   <form data-operations>        its buttons start an action. What is done at once is told in a
//                                 toast; a form that is still to be filled in opens in a dialog
//   <form data-operation-form>    that form; without scripts it is on a page of its own
//   <a data-undo href="…">        takes a retry back

import { ApiError, csrfToken, request } from '../src/api.js';
import { jsonProblem, setError } from '../src/forms.js';
import { refreshAll } from '../src/live.js';
import { setTotal } from '../src/select.js';
import { toast } from '../src/toast.js';


let dialog;

document.addEventListener('submit', (event) => {
  const form = event.target;
  const inDialog = form.matches('[data-operation-form]') && form.closest('dialog');
  if (event.defaultPrevented || !(form.matches('[data-operations]') || inDialog)) return;
  event.preventDefault();
  if (!event.submitter?.matches('[data-nothing]')) send(form, event.submitter);
});

document.addEventListener('click', (event) => {
  const link = event.target.closest?.('[data-undo]');
  if (!link) return;
  event.preventDefault();
  undo(link.getAttribute('href')).then(() => link.remove());
});

// The numbers that "select all" and the tab name follow the list.
document.addEventListener('live:updated', (event) => {
  const list = event.target.querySelector('[data-tsq-total]')?.dataset;
  const form = event.target.closest('[data-select]');
  if (list && form) setTotal(form, list.tsqTotal, list.tsqTotalText, list.tsqTotalIs);
  const inQueue = Number(event.target.querySelector('[data-in-queue]')?.dataset.inQueue);
  const tab = document.querySelector('#queue-tabs .tab');
  if (tab && !Number.isNaN(inQueue)) {
    const label = tab.textContent.replace(/ [\d,]+$/, '');
    tab.textContent = inQueue ? `${label} ${inQueue.toLocaleString('en')}` : label;
  }
});

async function send(form, button) {
  // The same button twice is a double click; another one is another wish.
  if (button?.getAttribute('aria-busy') === 'true') return;
  button?.setAttribute('aria-busy', 'true');
  try {
    const target = button?.hasAttribute('formaction') ? button.formAction : form.action;
    const response = await request(target, {
      method: 'POST',
      body: new FormData(form, button),
      headers: { Accept: 'application/json, text/html;q=0.9' },
    });
    await show(response, form);
  } catch (error) {
    if (!(error instanceof ApiError)) console.error(error);
    toast(error.message, { kind: 'error' });
  } finally {
    button?.removeAttribute('aria-busy');
  }
}

async function show(response, form) {
  if (response.redirected) {
    location.assign(response.url);
    return;
  }
  if (/json/.test(response.headers.get('Content-Type') ?? '')) {
    const answer = await response.json();
    if (!response.ok) throw new ApiError(response.status, answer);
    dialog?.close();
    tell(answer);
    form.querySelector('[data-select-none]')?.click();
    if (form.closest('dialog')) document.querySelector('[data-operations] [data-select-none]')?.click();
    await refreshAll();
    return;
  }
  const page = new DOMParser().parseFromString(await response.text(), 'text/html');
  const next = page.querySelector('[data-operation-form]');
  if (next) open(next);
  else location.reload();
}

function tell({ text, kind, undo: url, undo_seconds: seconds, follow }) {
  const link = follow ? { label: 'Follow', href: follow } : undefined;
  if (!url) toast(text, { kind, link });
  else toast(text, { kind, link, seconds, action: { label: 'Undo', run: () => undo(url) } });
}

async function undo(url) {
  const body = new FormData();
  body.set('confirmed', 'yes');
  body.set('csrf_token', csrfToken());
  try {
    const response = await request(url, { method: 'POST', body, headers: { Accept: 'application/json' } });
    const answer = await response.json();
    if (!response.ok) throw new ApiError(response.status, answer);
    tell(answer);
  } catch (error) {
    toast(error.message, { kind: 'error' });
  }
  await refreshAll();
}

// Shows the form in a dialog; one that came back with errors takes the place of the one before.
function open(form) {
  const own = document.importNode(form, true);
  own.classList.remove('card', 'max-w-prose');
  own.querySelector('.card-body').className = 'dialog-body stack';
  const foot = own.querySelector('[data-operation-foot]');
  foot.className = 'dialog-foot';
  const back = foot.querySelector('[data-operation-back]');
  const cancel = document.createElement('button');
  cancel.type = 'button';
  cancel.className = back.className;
  cancel.textContent = back.textContent;
  cancel.dataset.modalClose = '';
  back.remove();
  foot.prepend(cancel);

  dialog ??= newDialog();
  const heading = document.createElement('h2');
  heading.id = 'operation-title';
  heading.textContent = form.dataset.title;
  const head = document.createElement('div');
  head.className = 'dialog-head';
  head.append(heading);
  dialog.replaceChildren(head, own);
  for (const field of dialog.querySelectorAll('[data-json]')) {
    field.addEventListener('input', () => setError(field, jsonProblem(field.value, field.dataset.json)));
  }
  if (!dialog.open) dialog.showModal();
  dialog.querySelector('[aria-invalid], textarea, input:not([type=hidden])')?.focus();
}

function newDialog() {
  const element = document.createElement('dialog');
  element.className = 'dialog';
  element.setAttribute('aria-labelledby', 'operation-title');
  element.addEventListener('close', () => element.replaceChildren());
  document.body.append(element);
  return element;
}
