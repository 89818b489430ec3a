// Keyboard shortcuts; none fires while one types, in a dialog, or together with Ctrl, Alt or Meta.

import { refreshAll } from './live.js';
import { basePath } from './page.js';

const SEQUENCE_MILLISECONDS = 1200;
const GO = { d: '/', c: '/commands', t: '/troubleshooting' };

export function startShortcuts() {
  let waitsForTarget = false;
  let timer;

  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || isTyping(event.target)) return;
    if (document.querySelector('dialog[open]')) return;

    if (waitsForTarget) {
      waitsForTarget = false;
      if (GO[event.key]) {
        event.preventDefault();
        location.assign(basePath() + GO[event.key]);
        return;
      }
    }
    if (event.key === 'g') {
      waitsForTarget = true;
      clearTimeout(timer);
      timer = setTimeout(() => { waitsForTarget = false; }, SEQUENCE_MILLISECONDS);
    } else if (event.key === '/') {
      event.preventDefault();
      const search = document.querySelector('[data-shortcut-search]');
      search?.focus();
      search?.select();
    } else if (event.key === 'r') {
      event.preventDefault();
      refreshAll();
    } else if (event.key === '?') {
      event.preventDefault();
      document.getElementById('shortcuts')?.showModal();
    }
  });
}

function isTyping(target) {
  return target instanceof HTMLElement
    && (target.isContentEditable || target.matches('textarea, select, input:not([type=checkbox], [type=radio], [type=button], [type=submit])'));
}
