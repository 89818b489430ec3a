// The frame: the drawer's end on wide screens, menus that close, copying.

import { toast } from './toast.js';

export function startShell() {
  const sidebar = document.getElementById('sidebar');
  matchMedia('(width >= 64rem)').addEventListener('change', (event) => {
    if (event.matches && sidebar?.matches(':popover-open')) sidebar.hidePopover();
  });

  document.addEventListener('click', (event) => {
    for (const menu of document.querySelectorAll('[data-menu][open]')) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    const copy = event.target.closest?.('[data-copy]');
    if (copy) copyText(copy.dataset.copy);
  });

  document.addEventListener('keydown', (event) => {
    const menu = event.key === 'Escape' && event.target.closest?.('[data-menu][open]');
    if (!menu) return;
    menu.open = false;
    menu.querySelector('summary').focus();
  });
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast('Copied', { kind: 'success', seconds: 2 });
  } catch {
    toast('Your browser does not allow copying here.', { kind: 'error' });
  }
}

// For screen readers: says what changed without moving the focus.
export function announce(text) {
  const place = document.getElementById('announcer');
  if (place && text) place.textContent = text;
}

// Where the application is mounted, taken from the brand's link to the dashboard.
export function basePath() {
  return (document.querySelector('.brand')?.getAttribute('href') ?? '/').replace(/\/$/, '');
}

// Creates an icon of the sprite that the page itself uses.
export function icon(name) {
  const namespace = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(namespace, 'svg');
  const use = document.createElementNS(namespace, 'use');
  const sprite = document.querySelector('svg.icon use')?.getAttribute('href').split('#')[0] ?? '';
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `${sprite}#${name}`);
  svg.append(use);
  return svg;
}
