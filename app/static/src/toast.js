// Short messages over the page, read aloud politely, kept while the pointer or the focus is on them.

import { icon } from './page.js';

const LOOKS = {
  success: ['completed', 'check-circle'],
  error: ['failed', 'x-circle'],
  warning: ['tsq', 'alert'],
  info: ['progress', 'info'],
};

// action: { label, run } adds a button, link: { label, href } a link. Returns a function that takes the toast away.
export function toast(text, { kind = 'info', seconds = kind === 'error' ? 10 : 5, action, link } = {}) {
  const [tone, symbol] = LOOKS[kind];
  const element = document.createElement('div');
  element.className = `toast tone-${tone}`;

  const message = document.createElement('p');
  message.className = 'toast-text';
  message.textContent = text;
  element.append(icon(symbol), message);

  let timer;
  const dismiss = () => {
    clearTimeout(timer);
    element.remove();
  };
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(dismiss, seconds * 1000);
  };

  if (link) {
    const anchor = document.createElement('a');
    anchor.className = 'link';
    anchor.href = link.href;
    anchor.textContent = link.label;
    message.append(' ', anchor);
  }
  if (action) {
    element.append(button(action.label, 'btn btn-secondary btn-sm', () => {
      dismiss();
      action.run();
    }));
  }
  const close = button('', 'btn btn-quiet btn-icon btn-sm', dismiss);
  close.setAttribute('aria-label', 'Dismiss');
  close.append(icon('x'));
  element.append(close);

  for (const type of ['pointerenter', 'focusin']) element.addEventListener(type, () => clearTimeout(timer));
  for (const type of ['pointerleave', 'focusout']) element.addEventListener(type, wait);
  document.getElementById('toasts').append(element);
  wait();
  return dismiss;
}

function button(text, className, onClick) {
  const element = document.createElement('button');
  element.type = 'button';
  element.className = className;
  element.textContent = text;
  element.addEventListener('click', onClick);
  return element;
}
