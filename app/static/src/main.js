// What every page needs. Pages add their own module, from ../js/, with the block `page_scripts`.

import { startForms } from './forms.js';
import { startLive } from './live.js';
import { startModals } from './modal.js';
import { startSelections } from './select.js';
import { startShell } from './shell.js';
import { startShortcuts } from './shortcuts.js';
import { startTheme } from './theme.js';
import { startTimes } from './times.js';

for (const start of [
  startTheme, startShell, startTimes, startForms, startModals, startSelections, startShortcuts, startLive,
]) {
  try {
    start();
  } catch (error) {
    // One broken part must not take the others with it; the page works without any of them.
    console.error(error);
  }
}

// By then the page's own module has run as well. Whoever drives the page by a program waits for it:
// a click before would be what it is without scripts.
document.addEventListener('DOMContentLoaded', () => {
  document.documentElement.dataset.ready = '';
});
