// What every page needs. Pages add their own module with the block `page_scripts`.

import { startCharts } from './charts.js';
import { startForms } from './forms.js';
import { startLive } from './live.js';
import { startModals } from './modal.js';
import { startSelections } from './select.js';
import { startShell } from './shell.js';
import { startShortcuts } from './shortcuts.js';
import { startTheme } from './theme.js';
import { startTimes } from './times.js';

for (const start of [
  startTheme, startShell, startTimes, startForms, startModals, startSelections, startShortcuts, startCharts, startLive,
]) {
  try {
    start();
  } catch (error) {
    // One broken part must not take the others with it; the page works without any of them.
    console.error(error);
  }
}
