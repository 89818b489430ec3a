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
